/* A network as a table: written by xnnpack_plan.py, walked by xnnpack_network.c.
   Little-endian words of 32 bits; what counts floats says so. Tensors are channels last and lie in
   one arena; weights lie behind the table, each at a multiple of 64 bytes. */
#ifndef FLEETCUT_XNNPACK_PLAN_H
#define FLEETCUT_XNNPACK_PLAN_H

#include <stdint.h>

#define FLEETCUT_PLAN_MAGIC 0x31504e58u /* "XNP1" */

enum fleetcut_kind {
  kConvolution, /* depthwise is one of as many groups as channels */
  kFullyConnected, /* over a whole picture: the kernel is as large as the input */
  kAdd,
  kMultiply,
  kClamp,
  kHardSwish,
  kSigmoid,
  kHardSigmoid,
  kMaxPool,
  kAveragePool,
  kGlobalAverage,
  kPad,
  kKinds
};

typedef struct {
  uint32_t channels, height, width;
  uint32_t at; /* floats from the start of the arena */
} fleetcut_tensor;

typedef struct {
  uint32_t kind;
  fleetcut_tensor input, second, output; /* second: of kAdd and kMultiply */
  uint32_t groups;
  uint32_t kernel_height, kernel_width, stride_height, stride_width;
  uint32_t dilation_height, dilation_width;
  uint32_t top, right, bottom, left; /* rows and columns of padding */
  uint32_t weights, bias;            /* floats from the start of the weights; in XNNPACK's order */
  float low, high;                   /* what the answer is clamped to */
  float scale, shift;                /* of kHardSigmoid; scale is kPad's value */
} fleetcut_operator;

typedef struct {
  uint32_t magic;
  uint32_t operators;     /* so many records follow */
  uint32_t arena;         /* floats */
  uint32_t weights;       /* bytes from the start of the plan */
  uint32_t weights_count; /* floats */
  fleetcut_tensor input, output;
} fleetcut_plan;

_Static_assert(sizeof(fleetcut_plan) == 13 * 4, "as xnnpack_plan.py writes it");
_Static_assert(sizeof(fleetcut_operator) == 30 * 4, "as xnnpack_plan.py writes it");

#endif
