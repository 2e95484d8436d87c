#define _GNU_SOURCE
#include "native_library.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { kUnread = 0x6ffff000 /* DT_HIOS: an entry that the loader skips */ };

typedef struct {
  size_t start, end;
} range;

typedef void initialiser(int argc, char **argv, char **environment);

static const ElfW(Ehdr) *header_of(fleetcut_bytes library) {
  return (const ElfW(Ehdr) *)library.start;
}

static const ElfW(Phdr) *segments_of(fleetcut_bytes library) {
  return (const ElfW(Phdr) *)(library.start + header_of(library)->e_phoff);
}

static int is_code(const ElfW(Shdr) *section) {
  return section->sh_type == SHT_PROGBITS &&
         (section->sh_flags & (SHF_ALLOC | SHF_WRITE)) == SHF_ALLOC;
}

/* What the loader does not read, in whole pages: the sections of code and constants, if they lie
   together. Offsets in the library's file. */
static range hole_in(fleetcut_bytes library) {
  const ElfW(Ehdr) *header = header_of(library);
  const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(library.start + header->e_shoff);
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  range hole = {SIZE_MAX - page, 0};
  for (int i = 0; i < header->e_shnum; ++i) {
    const range section = {sections[i].sh_offset, sections[i].sh_offset + sections[i].sh_size};
    if (!is_code(&sections[i])) continue;
    if (section.start < hole.start) hole.start = section.start;
    if (section.end > hole.end) hole.end = section.end;
  }
  for (int i = 0; i < header->e_shnum; ++i) {
    const range section = {sections[i].sh_offset, sections[i].sh_offset + sections[i].sh_size};
    const int is_read = !is_code(&sections[i]) && sections[i].sh_type != SHT_NOBITS;
    if (is_read && section.start < hole.end && section.end > hole.start) return (range){0, 0};
  }
  hole = (range){(hole.start + page - 1) / page * page, hole.end / page * page};
  return hole.start < hole.end ? hole : (range){0, 0};
}

static int write_at(int file, const unsigned char *bytes, size_t size, size_t offset) {
  while (size > 0) {
    const ssize_t written = pwrite(file, bytes, size, (off_t)offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return -1;
    bytes += written;
    size -= (size_t)written;
    offset += (size_t)written;
  }
  return 0;
}

static const ElfW(Dyn) *dynamic_of(fleetcut_bytes library) {
  const ElfW(Phdr) *segments = segments_of(library);
  for (int i = 0; i < header_of(library)->e_phnum; ++i) {
    if (segments[i].p_type == PT_DYNAMIC) {
      return (const ElfW(Dyn) *)(library.start + segments[i].p_offset);
    }
  }
  return NULL;
}

/* In the copy: no constructors. */
static int hide_constructors(int file, fleetcut_bytes library) {
  for (const ElfW(Dyn) *entry = dynamic_of(library); entry->d_tag != DT_NULL; ++entry) {
    ElfW(Dyn) changed = *entry;
    if (entry->d_tag == DT_INIT) changed.d_tag = kUnread;
    if (entry->d_tag == DT_INIT_ARRAYSZ) changed.d_un.d_val = 0;
    const size_t offset = (size_t)((const unsigned char *)entry - library.start);
    if (memcmp(&changed, entry, sizeof changed) != 0 &&
        write_at(file, (const unsigned char *)&changed, sizeof changed, offset) != 0) {
      return -1;
    }
  }
  return 0;
}

static int copy_of(const char *name, fleetcut_bytes library, range hole) {
  const size_t size = (size_t)(library.end - library.start);
  const int file = (int)syscall(SYS_memfd_create, name, 1u /* MFD_CLOEXEC */);
  if (file < 0 || ftruncate(file, (off_t)size) != 0 ||
      write_at(file, library.start, hole.start, 0) != 0 ||
      write_at(file, library.start + hole.end, size - hole.end, hole.end) != 0) {
    return -1;
  }
  if (hole.end > 0 && hide_constructors(file, library) != 0) return -1;
  return file;
}

/* Where bytes of this program lie in its file; SIZE_MAX if they are not of it. */
struct place {
  const unsigned char *byte;
  size_t offset;
};
static int holds(struct dl_phdr_info *object, size_t size, void *argument) {
  (void)size;
  struct place *place = argument;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
    const uintptr_t start = object->dlpi_addr + segment->p_vaddr, byte = (uintptr_t)place->byte;
    if (segment->p_type == PT_LOAD && byte >= start && byte < start + segment->p_filesz) {
      place->offset = segment->p_offset + (byte - start);
      return 1;
    }
  }
  return 1; /* The program itself comes first. */
}

/* Maps the hole's pages over what the loader has mapped there. */
static int fill(fleetcut_bytes library, range hole, uintptr_t base) {
  struct place place = {library.start, SIZE_MAX};
  dl_iterate_phdr(holds, &place);
  const int program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  if (place.offset == SIZE_MAX || program < 0) return -1;
  const ElfW(Phdr) *segments = segments_of(library);
  int done = 0;
  for (int i = 0; i < header_of(library)->e_phnum && done == 0; ++i) {
    const ElfW(Phdr) *segment = &segments[i];
    if (segment->p_type != PT_LOAD || (segment->p_flags & PF_W) != 0) continue;
    const size_t start = segment->p_offset > hole.start ? segment->p_offset : hole.start;
    const size_t past = segment->p_offset + segment->p_filesz;
    const size_t end = past < hole.end ? past : hole.end;
    if (start >= end) continue;
    const int protection = ((segment->p_flags & PF_R) ? PROT_READ : 0) |
                           ((segment->p_flags & PF_X) ? PROT_EXEC : 0);
    void *const there = (void *)(base + segment->p_vaddr + (start - segment->p_offset));
    if (mmap(there, end - start, protection, MAP_PRIVATE | MAP_FIXED, program,
             (off_t)(place.offset + start)) == MAP_FAILED) {
      done = -1;
    }
  }
  close(program);
  return done;
}

static void construct(fleetcut_bytes library, uintptr_t base, int argc, char **argv) {
  initialiser *const *array = NULL;
  size_t count = 0;
  for (const ElfW(Dyn) *entry = dynamic_of(library); entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_INIT) ((initialiser *)(base + entry->d_un.d_ptr))(argc, argv, environ);
    if (entry->d_tag == DT_INIT_ARRAY) array = (initialiser *const *)(base + entry->d_un.d_ptr);
    if (entry->d_tag == DT_INIT_ARRAYSZ) count = entry->d_un.d_val / sizeof *array;
  }
  for (size_t i = 0; i < count; ++i) array[i](argc, argv, environ);
}

/* "/proc/self/fd/" and the number. */
static void path_of(int file, char *path) {
  char digits[12];
  int count = 0;
  do digits[count++] = (char)('0' + file % 10);
  while ((file /= 10) > 0);
  path = stpcpy(path, "/proc/self/fd/");
  while (count > 0) *path++ = digits[--count];
  *path = '\0';
}

void *fleetcut_load(const char *name, fleetcut_bytes library, int *file, const char **fact,
                    int argc, char **argv) {
  const range hole = hole_in(library);
  char path[32];
  *file = copy_of(name, library, hole);
  if (*file < 0) {
    *fact = strerror(errno);
    return NULL;
  }
  path_of(*file, path);
  void *const handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  struct link_map *map = NULL;
  if (handle == NULL || dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0) {
    *fact = dlerror();
    return NULL;
  }
  if (hole.end > 0) {
    if (fill(library, hole, map->l_addr) != 0) {
      *fact = strerror(errno);
      return NULL;
    }
    construct(library, map->l_addr, argc, argv);
  }
  fleetcut_let_go(library); /* or tables and data would be resident twice */
  return handle;
}
