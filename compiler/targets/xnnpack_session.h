/* One loaded network, the tensor that it answers to, and where tensors come from and go to.
   Functions return NULL, or what is wrong in words, which stay until the next fault. */
#ifndef FLEETCUT_XNNPACK_SESSION_H
#define FLEETCUT_XNNPACK_SESSION_H

#include <stdio.h>

#include "xnnpack_switching.h"

/* input: at first the golden one. told: switches already said on stderr. */
typedef struct {
  const fleetcut_program *program;
  fleetcut_network network;
  fleetcut_watch watch;
  size_t told;
  float *input, *output, *coming;
  size_t input_count, output_count;
  int answered; /* output is the answer to input */
  int64_t load_ns;
} session;

/* A fault in words. */
__attribute__((format(printf, 1, 2))) const char *fault(const char *format, ...);

const char *session_start(session *s, const fleetcut_program *program, int threads);

/* One inference; its duration in *elapsed_ns, with the look at the clock and a switch. */
const char *session_infer(session *s, int64_t *elapsed_ns);

/* Sees to it that output is the answer to input. */
const char *session_answer(session *s);

/* Another sub-network, whatever the clock says. */
const char *session_change(session *s, uint32_t position);

/* From now on the clock below root decides. */
const char *session_follow(session *s, const char *root);

/* A stream's next tensor becomes the input; *ended where there is none. */
const char *session_read(session *s, FILE *stream, const char *name, int *ended);
const char *session_write(const session *s, FILE *stream, const char *name);

/* The one tensor of a file; a bad one leaves the input as it was. */
const char *session_read_file(session *s, const char *name);
const char *session_write_file(session *s, const char *name);

#endif
