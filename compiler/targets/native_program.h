/* What the linked-in network is: handed by native_launcher.c to native_runner.cc. */
#ifndef FLEETCUT_NATIVE_PROGRAM_H
#define FLEETCUT_NATIVE_PROGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
  const unsigned char *start, *end;
} fleetcut_bytes;

typedef struct {
  const int32_t *sizes;
  size_t rank;
} fleetcut_shape;

typedef struct {
  fleetcut_bytes model, golden_input, golden_output; /* .pte, plan or .ort; raw little-endian float32 */
  fleetcut_shape input_shape, output_shape;
  double atol; /* of the golden output, absolute */
  int threads; /* unless --threads says otherwise */
  const char *version, *precision, *machine, *libc; /* of the runtime; "fp32"; "aarch64"; "glibc 2.27" */
} fleetcut_program;

#define FLEETCUT_ENTRY "fleetcut_main"
typedef int fleetcut_entry(const fleetcut_program *program, int argc, char **argv);

/* Pages of the program's own file that are done with: they come back from it if they are read. */
static inline void fleetcut_let_go(fleetcut_bytes bytes) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t start = ((uintptr_t)bytes.start + page - 1) / page * page;
  const uintptr_t end = (uintptr_t)bytes.end / page * page;
  if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
}

#endif
