#define _GNU_SOURCE
#include "xnnpack_session.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { kFaultSize = 512 };

static char fault_text[kFaultSize];

const char *fault(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(fault_text, sizeof fault_text, format, arguments);
  va_end(arguments);
  return fault_text;
}

static size_t count_of(const fleetcut_shape *shape) {
  size_t product = 1;
  for (size_t i = 0; i < shape->rank; ++i) product *= (size_t)shape->sizes[i];
  return product;
}

const char *session_start(session *s, const fleetcut_program *program, int threads) {
  const int64_t began_ns = fleetcut_now_ns();
  *s = (session){.program = program,
                 .input_count = count_of(&program->input_shape),
                 .output_count = count_of(&program->output_shape)};
  s->input = malloc(s->input_count * sizeof(float));
  s->coming = malloc(s->input_count * sizeof(float));
  s->output = malloc(s->output_count * sizeof(float));
  if (s->input == NULL || s->coming == NULL || s->output == NULL) return "out of memory";
  memcpy(s->input, program->golden_input.start, s->input_count * sizeof(float));
  const char *wrong = fleetcut_load(&s->network, program->model, threads);
  s->load_ns = fleetcut_now_ns() - began_ns;
  return wrong == NULL ? NULL : fault("cannot load the network: %s", wrong);
}

const char *session_infer(session *s, int64_t *elapsed_ns) {
  const int64_t began_ns = fleetcut_now_ns();
  const char *wrong = fleetcut_look(&s->watch, &s->network);
  if (wrong == NULL) wrong = fleetcut_infer(&s->network, s->input, s->output);
  *elapsed_ns = fleetcut_now_ns() - began_ns;
  s->answered = wrong == NULL;
  return wrong == NULL ? NULL : fault("the inference failed: %s", wrong);
}

const char *session_answer(session *s) {
  int64_t elapsed_ns;
  return s->answered ? NULL : session_infer(s, &elapsed_ns);
}

const char *session_change(session *s, uint32_t position) {
  s->answered = 0;
  return fleetcut_switch(&s->network, position);
}

/* A stream's next tensor into s->coming. */
static const char *read_tensor(session *s, FILE *stream, const char *name, int *ended) {
  const size_t size = s->input_count * sizeof(float);
  const size_t found = fread(s->coming, 1, size, stream);
  *ended = found == 0;
  if (found == 0) return NULL;
  if (found != size) return fault("%s ends within a tensor of %zu bytes", name, size);
  return NULL;
}

static void take(session *s) {
  float *const present = s->input;
  s->input = s->coming;
  s->coming = present;
  s->answered = 0;
}

const char *session_read(session *s, FILE *stream, const char *name, int *ended) {
  const char *wrong = read_tensor(s, stream, name, ended);
  if (wrong == NULL && !*ended) take(s);
  return wrong;
}

const char *session_write(const session *s, FILE *stream, const char *name) {
  const size_t written = fwrite(s->output, sizeof(float), s->output_count, stream);
  if (written != s->output_count || fflush(stream) != 0) return fault("cannot write %s", name);
  return NULL;
}

const char *session_read_file(session *s, const char *name) {
  FILE *const file = fopen(name, "rbe");
  if (file == NULL) return fault("cannot open %s", name);
  int ended;
  const char *wrong = read_tensor(s, file, name, &ended);
  if (wrong == NULL && ended) wrong = fault("%s is empty", name);
  if (wrong == NULL && fgetc(file) != EOF) wrong = fault("%s is longer than a tensor", name);
  fclose(file);
  if (wrong == NULL) take(s);
  return wrong;
}

const char *session_write_file(session *s, const char *name) {
  const char *wrong = session_answer(s);
  if (wrong != NULL) return wrong;
  FILE *const file = fopen(name, "wbe");
  if (file == NULL) return fault("cannot write %s", name);
  wrong = session_write(s, file, name);
  if (fclose(file) != 0 && wrong == NULL) wrong = fault("cannot write %s", name);
  return wrong;
}

const char *session_follow(session *s, const char *root) {
  if (s->network.switchable == NULL) return "this network has one width: it follows no clock";
  s->told = 0;
  return fleetcut_follow(&s->watch, strcmp(root, "/") == 0 ? "" : root);
}
