#define _GNU_SOURCE
#include "xnnpack_packing.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { kAlignment = 64, kProbeOutputs = 64, kGivenBack = 1 << 20 };

static const char kUnknownOrder[] = "XNNPACK arranges weights in an order that is not known here";

/* ---- Memory --------------------------------------------------------------------------------- */

/* A region whose parts are given out one after the other, and again for each sub-network. */
typedef struct {
  unsigned char *start;
  size_t room, used;
} region;

static region packed_region, indirection_region;
static int packing, calls;
static void *second;
static size_t second_size;

static int within(const region *r, const void *pointer) {
  const unsigned char *const byte = pointer;
  return byte >= r->start && byte < r->start + r->room;
}

static void *take(region *r, size_t size) {
  const size_t at = (r->used + kAlignment - 1) / kAlignment * kAlignment;
  if (at + size > r->room) return NULL;
  r->used = at + size;
  return r->start + at;
}

static void *allocate(void *context, size_t size) {
  (void)context;
  return malloc(size);
}

static void deallocate(void *context, void *pointer) {
  (void)context;
  if (!within(&indirection_region, pointer)) free(pointer);
}

/* What XNNPACK remembers of an operator's input; it writes all of it anew. The last one may grow. */
static void *reallocate(void *context, void *pointer, size_t size) {
  (void)context;
  if (pointer == NULL && indirection_region.room > 0) {
    size_t *const block = take(&indirection_region, kAlignment + size);
    if (block == NULL) return NULL;
    *block = size;
    return (unsigned char *)block + kAlignment;
  }
  if (pointer == NULL || !within(&indirection_region, pointer)) return realloc(pointer, size);
  size_t *const room = (size_t *)(void *)((unsigned char *)pointer - kAlignment);
  if (size <= *room) return pointer;
  const size_t end = (size_t)((unsigned char *)pointer - indirection_region.start) + *room;
  if (end != indirection_region.used) return NULL;
  indirection_region.used = end - *room + size;
  *room = size;
  return indirection_region.used <= indirection_region.room ? pointer : NULL;
}

/* XNNPACK's first call makes the operator, its second the weights, its third what pads the input. */
static void *aligned_allocate(void *context, size_t alignment, size_t size) {
  (void)context;
  void *found = NULL;
  ++calls;
  if (packing && calls == 2) {
    found = take(&packed_region, size);
  } else if (posix_memalign(&found, alignment < sizeof found ? sizeof found : alignment, size)) {
    return NULL;
  }
  if (calls == 2) {
    second = found;
    second_size = size;
    if (found != NULL && !packing) memset(found, 0, size);
  }
  return found;
}

static void aligned_deallocate(void *context, void *pointer) {
  (void)context;
  if (!within(&packed_region, pointer)) free(pointer);
}

const struct xnn_allocator *fleetcut_allocator(void) {
  static const struct xnn_allocator allocator = {
      NULL, allocate, reallocate, deallocate, aligned_allocate, aligned_deallocate};
  return &allocator;
}

static const char *reserve(region *r, size_t room) {
  void *const start = mmap(NULL, room, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return "out of memory";
  *r = (region){start, room, 0};
  return NULL;
}

const char *fleetcut_share_memory(const fleetcut_graph *graphs, uint32_t count) {
  size_t weights = kAlignment, pointers = kAlignment;
  for (uint32_t k = 0; k < count; ++k) {
    size_t of_weights = 0, of_pointers = 0;
    for (uint32_t i = 0; i < graphs[k].plan->operators; ++i) {
      const fleetcut_operator *o = &graphs[k].table[i];
      const size_t taps = fleetcut_taps(o), inputs = o->input.channels / o->groups;
      const size_t outputs = o->output.channels + kBlock;
      const size_t points = (size_t)o->output.height * o->output.width + 4 * kBlock;
      of_weights += outputs * (taps * (inputs + kMostStep) + 1) * sizeof(float) + kAlignment;
      of_pointers += taps * points * sizeof(void *) + 4 * kAlignment;
    }
    if (of_weights > weights) weights = of_weights;
    if (of_pointers > pointers) pointers = of_pointers;
  }
  const char *fault = reserve(&packed_region, weights);
  return fault != NULL ? fault : reserve(&indirection_region, pointers);
}

void fleetcut_begin_network(void) { packed_region.used = indirection_region.used = 0; }

/* ---- The order of weights ------------------------------------------------------------------- */

static int is_depthwise(const fleetcut_operator *o) { return o->groups > 1; }

/* The like of an operator, with few channels. */
static fleetcut_operator probe_of(const fleetcut_operator *o) {
  fleetcut_operator probe = *o;
  if (probe.output.channels > kProbeOutputs) probe.output.channels = kProbeOutputs;
  probe.input.channels = is_depthwise(o) ? probe.output.channels : kMostStep;
  if (is_depthwise(o)) probe.groups = probe.output.channels;
  probe.weights = probe.output.channels;
  probe.bias = 0;
  return probe;
}

/* Where a weight of a probe lies, in words from the start of its packed weights. */
static size_t place_of(const fleetcut_layout *layout, size_t taps, size_t inputs, size_t output,
                       size_t tap, size_t input) {
  const size_t rows = layout->rows, step = layout->step, row = output % rows;
  const size_t block = output / rows * rows * (1 + taps * inputs);
  return block + rows + tap * inputs * rows + input / step * step * rows +
         layout->place[input % step * rows + row];
}

/* Fills in how the probe's numbers lie; 0 where that is not an order known here. The number of a
   bias is 1 + output; that of a weight 1 + outputs + ((output × taps) + tap) × inputs + input. */
static int read_layout(const uint32_t *words, size_t count, uint32_t outputs, size_t taps,
                       uint32_t inputs, fleetcut_layout *layout) {
  const size_t column = 1 + taps * inputs, padded = count / column;
  uint32_t rows = 0;
  while (rows < outputs && words[rows] == rows + 1) ++rows;
  if (rows == outputs) rows = (uint32_t)padded;
  if (count % column != 0 || rows == 0 || kBlock % rows != 0 || padded % rows != 0) return 0;
  *layout = (fleetcut_layout){.rows = rows, .step = 1};
  for (size_t place = 0; place < taps * inputs * rows; ++place) {
    const uint32_t word = words[rows + place];
    if (word <= outputs) continue; /* a row beyond the outputs */
    const uint32_t number = word - outputs - 1, input = number % inputs;
    const uint32_t output = (uint32_t)(number / inputs / taps);
    const size_t here = place % (inputs * rows);
    if (output >= rows) return 0;
    while (layout->step < inputs && here / rows / layout->step != input / layout->step) {
      layout->step *= 2;
    }
    layout->tap[place / (inputs * rows)] = (uint8_t)(number / inputs % taps);
  }
  for (size_t place = 0; place < layout->step * rows; ++place) {
    const uint32_t word = words[rows + place];
    if (word <= outputs) continue;
    const uint32_t number = word - outputs - 1;
    layout->place[number % inputs * rows + number / inputs / taps] = (uint8_t)place;
  }
  for (uint32_t output = 0; output < outputs; ++output) {
    for (size_t tap = 0; tap < taps; ++tap) {
      for (uint32_t input = 0; input < inputs; ++input) {
        const size_t at = place_of(layout, taps, inputs, output, tap, input);
        const size_t number = (output * taps + layout->tap[tap]) * inputs + input;
        if (words[at] != number + outputs + 1) return 0;
      }
    }
  }
  return 1;
}

static const char *learn(const fleetcut_operator *o, fleetcut_layout *layout) {
  const fleetcut_operator probe = probe_of(o);
  const size_t taps = fleetcut_taps(o);
  const uint32_t outputs = probe.output.channels;
  const uint32_t inputs = probe.input.channels / probe.groups;
  const size_t count = outputs + outputs * taps * inputs;
  if (taps > kMostTaps || (is_depthwise(o) && o->input.channels != o->groups)) return kUnknownOrder;
  uint32_t *const numbers = malloc(count * sizeof *numbers);
  if (numbers == NULL) return "out of memory";
  for (size_t i = 0; i < count; ++i) numbers[i] = (uint32_t)i + 1;
  xnn_operator_t made = NULL;
  calls = 0;
  second = NULL;
  const char *fault = fleetcut_fault_of(fleetcut_make(&probe, (const float *)numbers, &made));
  if (fault == NULL && (second == NULL || !read_layout(second, second_size / sizeof(uint32_t),
                                                       outputs, taps, inputs, layout))) {
    fault = kUnknownOrder;
  }
  free(numbers);
  if (made != NULL) xnn_delete_operator(made);
  return fault;
}

const char *fleetcut_make_shared(const fleetcut_operator *o, const float *weights,
                                 xnn_operator_t *made, fleetcut_packed *packed) {
  const char *fault = learn(o, &packed->layout);
  if (fault != NULL) return fault;
  packing = 1;
  calls = 0;
  second = NULL;
  fault = fleetcut_fault_of(fleetcut_make(o, weights, made)); /* what it packs is overwritten */
  packing = 0;
  if (fault != NULL) return fault;
  packed->start = second;
  packed->size = second_size;
  const size_t rows = packed->layout.rows, step = packed->layout.step;
  const size_t outputs = (o->output.channels + rows - 1) / rows * rows;
  const size_t inputs = (o->input.channels / o->groups + step - 1) / step * step;
  const size_t count = outputs * (1 + fleetcut_taps(o) * inputs);
  return second != NULL && second_size == count * sizeof(float) ? NULL : kUnknownOrder;
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* So many columns of a block, from shared weights, times factors; rows is a constant here. */
static inline void columns(float *restrict to, const float *restrict from,
                           const float *restrict factors, size_t count, size_t rows) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t row = 0; row < rows; ++row) to[i * rows + row] = from[i * kBlock + row] * factors[row];
  }
}

static void plain_columns(float *to, const float *from, const float *factors, size_t count,
                          size_t rows) {
  switch (rows) {
    case 16:
      columns(to, from, factors, count, 16);
      return;
    case 8:
      columns(to, from, factors, count, 8);
      return;
    case 4:
      columns(to, from, factors, count, 4);
      return;
    default:
      columns(to, from, factors, count, rows);
  }
}

/* The same where several input channels are arranged together; what pads the last of them is 0. */
static void stepped_columns(float *to, const float *from, const float *factors, size_t count,
                            const fleetcut_layout *layout) {
  const size_t rows = layout->rows, step = layout->step;
  const size_t padded = (count + step - 1) / step * step;
  for (size_t i = 0; i < padded; ++i) {
    float *const base = to + i / step * step * rows;
    for (size_t row = 0; row < rows; ++row) {
      base[layout->place[i % step * rows + row]] =
          i < count ? from[i * kBlock + row] * factors[row] : 0;
    }
  }
}

static void give_back(fleetcut_reading *reading, size_t size) {
  reading->read += size;
  if (reading->read < kGivenBack) return;
  fleetcut_let_go(reading->file);
  reading->read = 0;
}

void fleetcut_write(const fleetcut_operator *o, const float *weights,
                    const fleetcut_packed *packed, fleetcut_reading *reading) {
  static const float ones[kBlock] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const fleetcut_layout *layout = &packed->layout;
  const size_t rows = layout->rows, taps = fleetcut_taps(o), step = layout->step;
  const size_t inputs = o->input.channels / o->groups;
  const size_t padded = (inputs + step - 1) / step * step;
  float *to = packed->start;
  for (size_t output = 0; output < o->output.channels; output += rows) {
    const size_t block = output / kBlock, row = output % kBlock;
    const float *factors = o->factors == 0 ? ones : weights + o->factors + output;
    memcpy(to, weights + o->bias + output, rows * sizeof *to);
    to += rows;
    for (size_t place = 0; place < taps; ++place) {
      const size_t tap = block * taps + layout->tap[place];
      const float *from = weights + o->weights + tap * o->shared * kBlock + row;
      if (step == 1) {
        plain_columns(to, from, factors, inputs, rows);
      } else {
        stepped_columns(to, from, factors, inputs, layout);
      }
      to += padded * rows;
    }
    give_back(reading, taps * o->shared * rows * sizeof *to); /* of narrow ones most is skipped */
  }
}
