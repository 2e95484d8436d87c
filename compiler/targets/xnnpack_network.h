/* The network of a plan, ready to run. Every function returns NULL, or what is wrong in words. */
#ifndef FLEETCUT_XNNPACK_NETWORK_H
#define FLEETCUT_XNNPACK_NETWORK_H

#include <stddef.h>
#include <xnnpack.h>

#include "native_program.h"
#include "xnnpack_plan.h"

typedef struct {
  const fleetcut_plan *plan;
  const fleetcut_operator *table;
  xnn_operator_t *operators; /* NULL where the operator is ours */
  float *arena;
  pthreadpool_t threads; /* NULL: the caller's alone */
} fleetcut_network;

/* bytes: the plan; they stay. threads: at least 1. */
const char *fleetcut_load(fleetcut_network *network, fleetcut_bytes bytes, int threads);

/* One inference; input and output as the network's own, channels first. */
const char *fleetcut_infer(const fleetcut_network *network, const float *input, float *output);

#endif
