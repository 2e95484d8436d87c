/* Loads a shared library that lies inside the program, its code straight from the program's file.
   Input: the library's bytes, as embed.S includes them. Output: what dlopen returns.

   The C library's loader opens files only, so it is given one in memory (memfd_create(2), Linux
   3.17). Into that goes what the loader reads: headers, tables, data. Code and constants, nine
   tenths, stay a hole until the loader has come back, and are then mapped from the program's own
   file over it: a copy took 15 ms for ONNX Runtime, and 29 MB of memory. Constructors are code, so
   the loader finds none; they are called once the code is there. */
#ifndef FLEETCUT_NATIVE_LIBRARY_H
#define FLEETCUT_NATIVE_LIBRARY_H

#include "native_program.h"

/* NULL with *fact set to what is wrong. file: the memory's descriptor, to be closed once no other
   library is loaded: the loader takes a path that it has seen for the library that it was. */
void *fleetcut_load(const char *name, fleetcut_bytes library, int *file, const char **fact,
                    int argc, char **argv);

#endif
