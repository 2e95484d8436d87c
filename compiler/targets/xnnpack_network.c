/* Walks a plan: makes XNNPACK's operators of its records, and runs them one after the other.
   Input: the bytes that xnnpack_plan.py wrote. Output: answers to float32 tensors.
   Weights are packed by XNNPACK while it makes an operator; the file's pages are then let go.
   Of a switchable network's plans only one is ready at a time: all share what memory they use. */
#include "xnnpack_network.h"

#include <stdlib.h>
#include <string.h>

#include "xnnpack_packing.h"

enum { kAlignment = 64 };

static const char *const kFaults[] = {
    [xnn_status_success] = NULL,
    [xnn_status_uninitialized] = "XNNPACK is not initialised",
    [xnn_status_invalid_parameter] = "XNNPACK refuses a parameter of an operator",
    [xnn_status_invalid_state] = "XNNPACK refuses an operator in this state",
    [xnn_status_unsupported_parameter] = "XNNPACK does not support a parameter of an operator",
    [xnn_status_unsupported_hardware] = "XNNPACK does not run on this CPU",
    [xnn_status_out_of_memory] = "out of memory",
};

const char *fleetcut_fault_of(enum xnn_status status) {
  return (size_t)status < sizeof kFaults / sizeof *kFaults ? kFaults[status] : "XNNPACK failed";
}

static size_t positions(const fleetcut_tensor *tensor) {
  return (size_t)tensor->height * tensor->width;
}

static enum xnn_status make_convolution(const fleetcut_operator *o, const float *weights,
                                        xnn_operator_t *made) {
  return xnn_create_convolution2d_nhwc_f32(
      o->top, o->right, o->bottom, o->left, o->kernel_height, o->kernel_width, o->stride_height,
      o->stride_width, o->dilation_height, o->dilation_width, o->groups,
      o->input.channels / o->groups, o->output.channels / o->groups, o->input.channels,
      o->output.channels, weights + o->weights, weights + o->bias, o->low, o->high, 0, made);
}

/* Its weights read positions as they lie here, channels last. */
static enum xnn_status make_fully_connected(const fleetcut_operator *o, const float *weights,
                                            xnn_operator_t *made) {
  const size_t inputs = positions(&o->input) * o->input.channels, outputs = o->output.channels;
  return xnn_create_fully_connected_nc_f32(inputs, outputs, inputs, outputs, weights + o->weights,
                                           weights + o->bias, o->low, o->high, 0, made);
}

static enum xnn_status make_pool(const fleetcut_operator *o, xnn_operator_t *made) {
  const size_t channels = o->input.channels;
  if (o->kind == kMaxPool) {
    return xnn_create_max_pooling2d_nhwc_f32(
        o->top, o->right, o->bottom, o->left, o->kernel_height, o->kernel_width, o->stride_height,
        o->stride_width, o->dilation_height, o->dilation_width, channels, channels, channels,
        o->low, o->high, 0, made);
  }
  return xnn_create_average_pooling2d_nhwc_f32(
      o->top, o->right, o->bottom, o->left, o->kernel_height, o->kernel_width, o->stride_height,
      o->stride_width, channels, channels, channels, o->low, o->high, 0, made);
}

enum xnn_status fleetcut_make(const fleetcut_operator *o, const float *weights,
                              xnn_operator_t *made) {
  const size_t channels = o->input.channels;
  switch (o->kind) {
    case kConvolution:
      return make_convolution(o, weights, made);
    case kFullyConnected:
      return make_fully_connected(o, weights, made);
    case kAdd:
      return xnn_create_add_nd_f32(o->low, o->high, 0, made);
    case kMultiply:
      return xnn_create_multiply_nd_f32(o->low, o->high, 0, made);
    case kClamp:
      return xnn_create_clamp_nc_f32(channels, channels, channels, o->low, o->high, 0, made);
    case kHardSwish:
      return xnn_create_hardswish_nc_f32(channels, channels, channels, 0, made);
    case kSigmoid:
      return xnn_create_sigmoid_nc_f32(channels, channels, channels, 0, made);
    case kMaxPool:
    case kAveragePool:
      return make_pool(o, made);
    case kGlobalAverage:
      return xnn_create_global_average_pooling_nwc_f32(channels, channels, channels, o->low,
                                                       o->high, 0, made);
    case kPad:
      return xnn_create_constant_pad_nd_x32(&o->scale, 0, made);
    case kHardSigmoid:
      *made = NULL;
      return xnn_status_success;
    default:
      return xnn_status_invalid_parameter;
  }
}

static enum xnn_status set_up_binary(const fleetcut_operator *o, xnn_operator_t made,
                                     float *arena, pthreadpool_t threads) {
  const size_t one[] = {1, o->input.height, o->input.width, o->input.channels};
  const size_t other[] = {1, o->second.height, o->second.width, o->second.channels};
  const float *x = arena + o->input.at, *y = arena + o->second.at;
  return (o->kind == kAdd ? xnn_setup_add_nd_f32 : xnn_setup_multiply_nd_f32)(
      made, 4, one, 4, other, x, y, arena + o->output.at, threads);
}

static enum xnn_status set_up_pad(const fleetcut_operator *o, xnn_operator_t made, float *arena,
                                  pthreadpool_t threads) {
  const size_t shape[] = {1, o->input.height, o->input.width, o->input.channels};
  const size_t before[] = {0, o->top, o->left, 0}, after[] = {0, o->bottom, o->right, 0};
  return xnn_setup_constant_pad_nd_x32(made, 4, shape, before, after, arena + o->input.at,
                                       arena + o->output.at, threads);
}

/* Tells an operator where its tensors lie. */
enum xnn_status fleetcut_set_up(const fleetcut_operator *o, xnn_operator_t made, float *arena,
                                pthreadpool_t threads, int small) {
  const float *x = arena + o->input.at;
  float *y = arena + o->output.at;
  const size_t count = positions(&o->input);
  const size_t width = small ? o->dilation_width * (o->kernel_width - 1) + 1 : o->input.width;
  size_t height = o->input.height;
  if (small) { /* no picture as large as its window: XNNPACK averages that in another way */
    height = o->dilation_height * (o->kernel_height - 1) + 2;
    if (height == o->input.height && width == o->input.width) ++height;
  }
  switch (o->kind) {
    case kConvolution:
      return xnn_setup_convolution2d_nhwc_f32(made, 1, height, width, x, y, threads);
    case kFullyConnected:
      return xnn_setup_fully_connected_nc_f32(made, 1, x, y, threads);
    case kAdd:
    case kMultiply:
      return set_up_binary(o, made, arena, threads);
    case kClamp:
      return xnn_setup_clamp_nc_f32(made, count, x, y, threads);
    case kHardSwish:
      return xnn_setup_hardswish_nc_f32(made, count, x, y, threads);
    case kSigmoid:
      return xnn_setup_sigmoid_nc_f32(made, count, x, y, threads);
    case kMaxPool:
      return xnn_setup_max_pooling2d_nhwc_f32(made, 1, height, width, x, y, threads);
    case kAveragePool:
      return xnn_setup_average_pooling2d_nhwc_f32(made, 1, height, width, x, y, threads);
    case kGlobalAverage:
      return xnn_setup_global_average_pooling_nwc_f32(made, 1, count, x, y, threads);
    case kPad:
      return set_up_pad(o, made, arena, threads);
    default:
      return xnn_status_success;
  }
}

/* XNNPACK has no operator for it. */
static void hard_sigmoid(const fleetcut_operator *o, float *arena) {
  const float *x = arena + o->input.at;
  float *y = arena + o->output.at;
  const size_t count = positions(&o->input) * o->input.channels;
  for (size_t i = 0; i < count; ++i) {
    const float value = x[i] * o->scale + o->shift;
    y[i] = value < 0 ? 0 : value > 1 ? 1 : value;
  }
}

/* The file's pages that hold the weights of an operator. */
static fleetcut_bytes weights_of(const fleetcut_operator *o, const float *weights) {
  const size_t outputs = (o->output.channels + kBlock - 1) / kBlock * kBlock;
  const size_t inputs = o->shared != 0 ? o->shared : o->input.channels / o->groups;
  const size_t rows = o->shared != 0 ? outputs : o->output.channels;
  const float *const start = weights + o->weights;
  return (fleetcut_bytes){(const unsigned char *)start,
                          (const unsigned char *)(start + fleetcut_taps(o) * inputs * rows)};
}

static const char *open_plan(fleetcut_graph *graph, fleetcut_bytes bytes) {
  const fleetcut_plan *plan = (const fleetcut_plan *)(const void *)bytes.start;
  const size_t size = (size_t)(bytes.end - bytes.start);
  if (size < sizeof *plan || plan->magic != FLEETCUT_PLAN_MAGIC) return "this is no plan";
  const uint64_t table = sizeof *plan + (uint64_t)plan->operators * sizeof(fleetcut_operator);
  const uint64_t end = plan->weights + (uint64_t)plan->weights_count * sizeof(float);
  if (table > plan->weights || end > size) return "the plan is cut short";
  *graph = (fleetcut_graph){
      .plan = plan,
      .table = (const fleetcut_operator *)(const void *)(plan + 1),
      .weights = (const float *)(const void *)(bytes.start + plan->weights),
      .operators = calloc(plan->operators + 1, sizeof *graph->operators),
      .packed = calloc(plan->operators + 1, sizeof *graph->packed),
  };
  return graph->operators == NULL || graph->packed == NULL ? "out of memory" : NULL;
}

const char *fleetcut_open(fleetcut_network *network, fleetcut_bytes bytes) {
  const fleetcut_switchable *head = (const fleetcut_switchable *)(const void *)bytes.start;
  const size_t size = (size_t)(bytes.end - bytes.start);
  const int switchable = size >= sizeof *head && head->magic == FLEETCUT_SWITCHABLE_MAGIC;
  *network = (fleetcut_network){.bytes = bytes, .count = switchable ? head->networks : 1};
  if (switchable) {
    network->switchable = head;
    network->ratios = (const fleetcut_ratio *)(const void *)(head + 1);
    if (size < sizeof *head + (uint64_t)head->networks * sizeof *network->ratios) {
      return "the switchable network is cut short";
    }
  }
  network->graphs = calloc(network->count, sizeof *network->graphs);
  if (network->graphs == NULL) return "out of memory";
  const char *fault = NULL;
  for (uint32_t k = 0; fault == NULL && k < network->count; ++k) {
    const size_t at = switchable ? network->ratios[k].plan : 0;
    fault = at > size ? "the switchable network is cut short"
                      : open_plan(&network->graphs[k], (fleetcut_bytes){bytes.start + at, bytes.end});
  }
  return fault;
}

/* Makes a plan's operators. */
static const char *make_all(const fleetcut_network *network, fleetcut_graph *graph) {
  const char *fault = NULL;
  for (uint32_t i = 0; fault == NULL && i < graph->plan->operators; ++i) {
    const fleetcut_operator *o = &graph->table[i];
    xnn_operator_t *made = &graph->operators[i];
    fault = fleetcut_has_weights(o) && o->shared != 0
                ? fleetcut_make_shared(o, graph->weights, made, &graph->packed[i])
                : fleetcut_fault_of(fleetcut_make(o, graph->weights, made));
    if (fleetcut_has_weights(o)) {
      fleetcut_let_go(weights_of(o, graph->weights)); /* or they would be resident twice */
    }
    for (int small = network->switchable != NULL; fault == NULL && small >= 0; --small) {
      fault = fleetcut_fault_of(
          fleetcut_set_up(o, *made, network->arena, network->threads, small));
    }
  }
  return fault;
}

const char *fleetcut_load(fleetcut_network *network, fleetcut_bytes bytes, int threads) {
  const char *fault = fleetcut_open(network, bytes);
  if (fault != NULL) return fault;
  size_t floats = 0;
  for (uint32_t k = 0; k < network->count; ++k) {
    if (network->graphs[k].plan->arena > floats) floats = network->graphs[k].plan->arena;
  }
  const size_t size = (floats * sizeof(float) + XNN_EXTRA_BYTES) / kAlignment + 1;
  void *arena = NULL;
  network->threads = threads > 1 ? pthreadpool_create((size_t)threads) : NULL;
  if (posix_memalign(&arena, kAlignment, size * kAlignment) != 0 ||
      (threads > 1 && network->threads == NULL)) {
    return "out of memory";
  }
  network->arena = memset(arena, 0, size * kAlignment);
  const int switchable = network->switchable != NULL;
  fault = fleetcut_fault_of(xnn_initialize(switchable ? fleetcut_allocator() : NULL));
  if (fault == NULL && switchable) fault = fleetcut_share_memory(network->graphs, network->count);
  for (uint32_t k = 0; fault == NULL && k < network->count; ++k) {
    fleetcut_begin_network();
    fault = make_all(network, &network->graphs[k]);
  }
  return fault != NULL || !switchable ? fault : fleetcut_switch(network, 0);
}

/* Whether XNNPACK remembers where its inputs lie: not where every point is its own input. */
static int has_window(const fleetcut_operator *o) {
  const int moves = o->stride_height * o->stride_width > 1 || o->top + o->left > 0 ||
                    o->right + o->bottom > 0 || fleetcut_taps(o) > 1;
  return moves && (o->kind == kConvolution || o->kind == kMaxPool || o->kind == kAveragePool);
}

const char *fleetcut_switch(fleetcut_network *network, uint32_t position) {
  const fleetcut_graph *graph = &network->graphs[position];
  fleetcut_reading reading = {network->bytes, 0};
  const char *fault = NULL;
  for (uint32_t i = 0; fault == NULL && i < graph->plan->operators; ++i) {
    const fleetcut_operator *o = &graph->table[i];
    if (fleetcut_has_weights(o)) {
      fleetcut_write(o, graph->weights, &graph->packed[i], &reading);
    }
    for (int small = 1; fault == NULL && has_window(o) && small >= 0; --small) {
      fault = fleetcut_fault_of(
          fleetcut_set_up(o, graph->operators[i], network->arena, network->threads, small));
    }
  }
  fleetcut_let_go(reading.file);
  network->present = position;
  return fault;
}

/* To channels last, or back: from[a][b] becomes to[b][a]. */
static void transpose(const float *from, float *to, size_t rows, size_t columns) {
  if (rows == 1 || columns == 1) {
    memcpy(to, from, rows * columns * sizeof *to);
    return;
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      to[column * rows + row] = from[row * columns + column];
    }
  }
}

const void *fleetcut_golden(const fleetcut_network *network, uint32_t position) {
  return network->graphs[position].weights + network->ratios[position].golden;
}

const char *fleetcut_infer(const fleetcut_network *network, const float *input, float *output) {
  const fleetcut_graph *graph = &network->graphs[network->present];
  const fleetcut_tensor *x = &graph->plan->input, *y = &graph->plan->output;
  transpose(input, network->arena + x->at, x->channels, positions(x));
  for (uint32_t i = 0; i < graph->plan->operators; ++i) {
    if (graph->operators[i] == NULL) {
      hard_sigmoid(&graph->table[i], network->arena);
      continue;
    }
    const char *fault =
        fleetcut_fault_of(xnn_run_operator(graph->operators[i], network->threads));
    if (fault != NULL) return fault;
  }
  transpose(network->arena + y->at, output, positions(y), y->channels);
  return NULL;
}
