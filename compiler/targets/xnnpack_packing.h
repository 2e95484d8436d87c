/* Sub-networks whose operators share memory: XNNPACK's own packed weights, written by us.
   XNNPACK packs weights once, when an operator is made. Its allocator is ours, so that every
   sub-network's operators get the same memory for them, and a switch writes it. How weights are
   arranged in it depends on the CPU, and is found by letting XNNPACK pack numbers. */
#ifndef FLEETCUT_XNNPACK_PACKING_H
#define FLEETCUT_XNNPACK_PACKING_H

#include "xnnpack_network.h"

/* Numbers every CPU's kernels stay within. */
enum { kMostStep = 8, kMostTaps = 64 };

typedef struct {
  uint32_t rows; /* output channels of a block; its biases come first */
  uint32_t step; /* input channels that are arranged together, as a rule 1 */
  uint8_t place[kMostStep * kBlock]; /* [input channel][row]: of a weight within a step */
  uint8_t tap[kMostTaps];            /* which tap lies where */
} fleetcut_layout;

/* The packed weights of one operator. */
typedef struct fleetcut_packed {
  float *start;
  size_t size; /* bytes */
  fleetcut_layout layout;
} fleetcut_packed;

const struct xnn_allocator *fleetcut_allocator(void);

/* Before the operators of each sub-network are made: they begin at the start of the memory. */
const char *fleetcut_share_memory(const fleetcut_graph *graphs, uint32_t count);
void fleetcut_begin_network(void);

/* Makes an operator whose weights are written by fleetcut_write. */
const char *fleetcut_make_shared(const fleetcut_operator *o, const float *weights,
                                 xnn_operator_t *made, fleetcut_packed *packed);

/* Pages of the file that are read: they are given back, and memory holds what runs. */
typedef struct {
  fleetcut_bytes file;
  size_t read; /* bytes, since they were */
} fleetcut_reading;

void fleetcut_write(const fleetcut_operator *o, const float *weights,
                    const fleetcut_packed *packed, fleetcut_reading *reading);

#endif
