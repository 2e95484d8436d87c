/* The networks of a program, ready to run: one, or the sub-networks of a switchable one.
   Functions return NULL, or what is wrong in words. */
#ifndef FLEETCUT_XNNPACK_NETWORK_H
#define FLEETCUT_XNNPACK_NETWORK_H

#include <stddef.h>
#include <xnnpack.h>

#include "native_program.h"
#include "xnnpack_plan.h"

/* One plan. */
typedef struct {
  const fleetcut_plan *plan;
  const fleetcut_operator *table;
  const float *weights;
  xnn_operator_t *operators; /* NULL where the operator is ours */
  struct fleetcut_packed *packed; /* of a switchable network: where its weights go */
} fleetcut_graph;

typedef struct {
  fleetcut_bytes bytes;
  const fleetcut_switchable *switchable; /* NULL: there is one network */
  const fleetcut_ratio *ratios;
  fleetcut_graph *graphs;
  uint32_t count, present; /* the one that runs, at first the widest */
  float *arena;
  pthreadpool_t threads; /* NULL: the caller's alone */
} fleetcut_network;

/* bytes: a plan or a switchable network; they stay. Only reads them. */
const char *fleetcut_open(fleetcut_network *network, fleetcut_bytes bytes);

/* Opens, and makes everything ready to run. threads: at least 1. */
const char *fleetcut_load(fleetcut_network *network, fleetcut_bytes bytes, int threads);

/* Makes another sub-network ready; it takes a copy of its weights. */
const char *fleetcut_switch(fleetcut_network *network, uint32_t position);

/* Of a switchable network: what a sub-network answers to the golden input. */
const void *fleetcut_golden(const fleetcut_network *network, uint32_t position);

/* One inference of the present network; tensors as the network's own, channels first. */
const char *fleetcut_infer(const fleetcut_network *network, const float *input, float *output);

/* The operators of a plan, for who packs their weights. small: of a picture a row larger than the
   window; XNNPACK remembers where an input lies by its size, and finds that anew when it changes. */
enum xnn_status fleetcut_make(const fleetcut_operator *o, const float *weights,
                              xnn_operator_t *made);
enum xnn_status fleetcut_set_up(const fleetcut_operator *o, xnn_operator_t made, float *arena,
                                pthreadpool_t threads, int small);
const char *fleetcut_fault_of(enum xnn_status status);

static inline int fleetcut_has_weights(const fleetcut_operator *o) {
  return o->kind == kConvolution || o->kind == kFullyConnected;
}

static inline size_t fleetcut_taps(const fleetcut_operator *o) {
  return (size_t)o->kernel_height * o->kernel_width;
}

#endif
