/* A network as a table: written by xnnpack_plan.py, walked by xnnpack_network.c.
   Little-endian words of 32 bits; what counts floats says so. Tensors are channels last and lie in
   one arena; weights lie behind the table, each at a multiple of 64 bytes.
   A switchable network is several such tables over one set of weights: fleetcut_switchable, then
   a fleetcut_ratio for each, then the plans, then the weights. */
#ifndef FLEETCUT_XNNPACK_PLAN_H
#define FLEETCUT_XNNPACK_PLAN_H

#include <stdint.h>

#define FLEETCUT_PLAN_MAGIC 0x31504e58u       /* "XNP1" */
#define FLEETCUT_SWITCHABLE_MAGIC 0x31534e58u /* "XNS1" */

enum { kBlock = 16 }; /* output channels that lie side by side in shared weights */

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
  uint32_t shared;  /* 0, or the input channels of the whole that this is the first part of: then
                       the weights lie as [outputs / kBlock][taps][shared][kBlock] */
  uint32_t factors; /* of shared weights: what each output channel is multiplied by, or 0 */
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

/* One sub-network. Its latency is a_ms + b_ms_khz / clock in kHz. */
typedef struct {
  double ratio; /* of its channels that are cut off */
  double a_ms, b_ms_khz;
  uint32_t plan;   /* bytes from the start of the fleetcut_switchable */
  uint32_t golden; /* its answer to the golden input: floats from the start of the weights */
} fleetcut_ratio;

/* The widest sub-network is the first. */
typedef struct {
  uint32_t magic;
  uint32_t networks;
  double target_ms;
  double hysteresis; /* fraction of target_ms by which another must come closer to it */
} fleetcut_switchable;

_Static_assert(sizeof(fleetcut_plan) == 13 * 4, "as xnnpack_plan.py writes it");
_Static_assert(sizeof(fleetcut_operator) == 32 * 4, "as xnnpack_plan.py writes it");
_Static_assert(sizeof(fleetcut_ratio) == 32, "as xnnpack_plan.py writes it");
_Static_assert(sizeof(fleetcut_switchable) == 24, "as xnnpack_plan.py writes it");

#endif
