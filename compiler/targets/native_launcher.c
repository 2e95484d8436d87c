/* The program's own executable: loads the libraries inside it, then runs the network inside it.
   Input: what embed.S includes, and a command line. Output: that of native_runner.cc.
   Later libraries find earlier ones by their soname, so nothing is on the board's disk but this
   file. Plain C without constructors: C libraries before 2.34 would not run any. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#include "native_library.h"
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
    const char *fact = NULL;
    last = fleetcut_load(libraries[i].name, libraries[i].bytes, &files[i], &fact, argc, argv);
    if (last == NULL) return refuse(libraries[i].name, fact);
  }
  for (int i = 0; i < kLibraries; ++i) close(files[i]);
  void *const entry = dlsym(last, FLEETCUT_ENTRY);
  if (entry == NULL) return refuse(FLEETCUT_ENTRY, dlerror());
  return ((fleetcut_entry *)entry)(&program, argc, argv);
}
