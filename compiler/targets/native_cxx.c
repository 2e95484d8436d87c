/* What GCC 12's libstdc++.a and libgcc_eh.a want of a C library newer than the floor.
   Input: calls from those archives. Output: the same answers by older means. Linked into the one
   library that stands for libstdc++.so.6 and libgcc_s.so.1 inside a native executable. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INSIDE __attribute__((visibility("hidden")))

/* glibc 2.32. Never true: the atomic instruction is right with one thread too. Exported, because
   the runner's own shared_ptrs look at it. */
__attribute__((visibility("default"))) char __libc_single_threaded = 0;

/* glibc 2.33. */
INSIDE int fstat64(int file, struct stat64 *found) { return (int)syscall(SYS_fstat, file, found); }

/* glibc 2.36. Only std::random_device asks. */
INSIDE uint32_t arc4random(void) {
  uint32_t word;
  while (syscall(SYS_getrandom, &word, sizeof word, 0) != sizeof word) {
  }
  return word;
}

/* In glibc's static part, which is not linked. */
extern void *__dso_handle;
int __cxa_atexit(void (*function)(void *), void *argument, void *object);
INSIDE int atexit(void (*function)(void)) {
  return __cxa_atexit((void (*)(void *))function, NULL, __dso_handle);
}

struct search {
  uintptr_t pc;
  struct dl_find_object *found;
};

static int holds_pc(struct dl_phdr_info *object, size_t size, void *argument) {
  (void)size;
  struct search *search = argument;
  const ElfW(Phdr) *code = NULL, *frames = NULL;
  uintptr_t first = UINTPTR_MAX, past = 0;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
    const uintptr_t start = object->dlpi_addr + segment->p_vaddr;
    if (segment->p_type == PT_GNU_EH_FRAME) frames = segment;
    if (segment->p_type != PT_LOAD) continue;
    if (start < first) first = start;
    if (start + segment->p_memsz > past) past = start + segment->p_memsz;
    if (search->pc >= start && search->pc < start + segment->p_memsz) code = segment;
  }
  if (code == NULL || frames == NULL) return 0;
  search->found->dlfo_flags = 0;
  search->found->dlfo_map_start = (void *)first;
  search->found->dlfo_map_end = (void *)past;
  search->found->dlfo_link_map = NULL;
  search->found->dlfo_eh_frame = (void *)(object->dlpi_addr + frames->p_vaddr);
  return 1;
}

/* glibc 2.35: where an exception finds the frames of a function. */
INSIDE int _dl_find_object(void *pc, struct dl_find_object *found) {
  struct search search = {(uintptr_t)pc, found};
  return dl_iterate_phdr(holds_pc, &search) == 1 ? 0 : -1;
}
