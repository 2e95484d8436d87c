/* The network, its golden tensors and the libraries it runs on, read-only in the program.
   64: what XNNPACK may align to, and kernels of AVX-512. 65536: a page, on any machine, for code is
   mapped from here (native_library.h). */
.section .rodata
.macro embed name, file, alignment=64
.balign \alignment
.global \name\()_start
.global \name\()_end
\name\()_start: .incbin "\file"
\name\()_end:
.endm
embed model, model.pte
embed golden_input, golden_input.bin
embed golden_output, golden_output.bin
#define LIBRARY(name) embed name, name.so, 65536;
FLEETCUT_LIBRARIES
.section .note.GNU-stack,"",%progbits
