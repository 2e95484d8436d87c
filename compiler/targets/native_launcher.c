/* The program's own executable: loads the libraries inside it, then runs the network inside it.
   Input: what embed.S includes, and a command line. Output: that of native_runner.cc.
   Each library becomes a file in memory (memfd_create(2), Linux 3.17), and the C library's loader
   opens that. Later libraries find earlier ones by their soname, so nothing is on the board's disk
   but this file. Plain C without constructors: C libraries before 2.34 would not run any. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native_program.h"

#define EMBEDDED(name) extern const unsigned char name##_start[], name##_end[];
#define LIBRARY(name) EMBEDDED(name)
EMBEDDED(model)
EMBEDDED(golden_input)
EMBEDDED(golden_output)
FLEETCUT_LIBRARIES
#undef LIBRARY

#define LIBRARY(name) {#name, {name##_start, name##_end}},
static const struct {
  const char *name;
  fleetcut_bytes bytes;
} libraries[] = {FLEETCUT_LIBRARIES};
enum { kLibraries = sizeof libraries / sizeof *libraries };

static const int32_t input_sizes[] = {FLEETCUT_INPUT_SHAPE};
static const int32_t output_sizes[] = {FLEETCUT_OUTPUT_SHAPE};

static int refuse(const char *name, const char *fact) {
  const char *said[] = {"cannot load ", name, " from this program: ", fact, "\n"};
  for (size_t i = 0; i < sizeof said / sizeof *said; ++i) {
    if (write(STDERR_FILENO, said[i], strlen(said[i])) < 0) break;
  }
  return 1;
}

/* A descriptor of a file in memory with these bytes, or -1 and errno. */
static int file_of(const char *name, fleetcut_bytes bytes) {
  const fleetcut_bytes whole = bytes;
  const int file = (int)syscall(SYS_memfd_create, name, 1u /* MFD_CLOEXEC */);
  while (file >= 0 && bytes.start < bytes.end) {
    const ssize_t written = write(file, bytes.start, (size_t)(bytes.end - bytes.start));
    if (written < 0 && errno != EINTR) return -1;
    if (written > 0) bytes.start += written;
  }
  fleetcut_let_go(whole); /* or it would be resident twice */
  return file;
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

int main(int argc, char **argv) {
  static const fleetcut_program program = {
      {model_start, model_end},
      {golden_input_start, golden_input_end},
      {golden_output_start, golden_output_end},
      {input_sizes, sizeof input_sizes / sizeof *input_sizes},
      {output_sizes, sizeof output_sizes / sizeof *output_sizes},
      FLEETCUT_ATOL,
      FLEETCUT_THREADS,
      FLEETCUT_VERSION,
      FLEETCUT_PRECISION,
      FLEETCUT_MACHINE,
      FLEETCUT_LIBC,
  };
  int files[kLibraries];
  void *last = NULL;
  for (int i = 0; i < kLibraries; ++i) {
    char path[32];
    files[i] = file_of(libraries[i].name, libraries[i].bytes);
    if (files[i] < 0) return refuse(libraries[i].name, strerror(errno));
    path_of(files[i], path);
    last = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (last == NULL) return refuse(libraries[i].name, dlerror());
  }
  /* Only now: the loader takes a path that it has seen for the library that it was. */
  for (int i = 0; i < kLibraries; ++i) close(files[i]);
  void *const entry = dlsym(last, FLEETCUT_ENTRY);
  if (entry == NULL) return refuse(FLEETCUT_ENTRY, dlerror());
  return ((fleetcut_entry *)entry)(&program, argc, argv);
}
