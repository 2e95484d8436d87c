/* Runs the one network that native_launcher.c was linked with, on Debian's XNNPACK.
   Input: raw little-endian float32 tensors on stdin, or with --serve one command a line.
   Output: raw float32, or one JSON line an answer, on stdout; messages on stderr.
   The same words as native_runner.cc, without C++: a board of 32 bits needs no second runtime. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "xnnpack_network.h"

enum { kMaxThreads = 1024, kMaxSamples = 1000000, kDefaultSamples = 100, kFaultSize = 512 };

static const char kUsage[] =
    "usage: PROGRAM [--threads N]                  raw float32 tensors on stdin, answers on stdout\n"
    "       PROGRAM --describe                     shapes, runtime and precision as JSON\n"
    "       PROGRAM --selftest [--threads N]       golden input against golden output; exit 0 or 1\n"
    "       PROGRAM --benchmark [N] [--threads N]  nanoseconds of N inferences of the golden input\n"
    "       PROGRAM --serve [--threads N]          'input FILE', 'bench N', 'output FILE', 'quit'\n";

/* The loaded network and the tensor it answers to, at first the golden input. */
typedef struct {
  const fleetcut_program *program;
  fleetcut_network network;
  float *input, *output, *coming;
  size_t input_count, output_count;
  int answered; /* output is the answer to input */
  int64_t load_ns;
} session;

static char fault_text[kFaultSize];

/* A fault in words, kept until the next one. */
__attribute__((format(printf, 1, 2))) static const char *fault(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(fault_text, sizeof fault_text, format, arguments);
  va_end(arguments);
  return fault_text;
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static size_t count_of(const fleetcut_shape *shape) {
  size_t product = 1;
  for (size_t i = 0; i < shape->rank; ++i) product *= (size_t)shape->sizes[i];
  return product;
}

/* ---- The network --------------------------------------------------------------------------- */

static const char *start(session *s, const fleetcut_program *program, int threads) {
  const int64_t began_ns = now_ns();
  *s = (session){.program = program,
                 .input_count = count_of(&program->input_shape),
                 .output_count = count_of(&program->output_shape)};
  s->input = malloc(s->input_count * sizeof(float));
  s->coming = malloc(s->input_count * sizeof(float));
  s->output = malloc(s->output_count * sizeof(float));
  if (s->input == NULL || s->coming == NULL || s->output == NULL) return "out of memory";
  memcpy(s->input, program->golden_input.start, s->input_count * sizeof(float));
  const char *wrong = fleetcut_load(&s->network, program->model, threads);
  s->load_ns = now_ns() - began_ns;
  return wrong == NULL ? NULL : fault("cannot load the network: %s", wrong);
}

/* One inference; its duration in *elapsed_ns. */
static const char *infer(session *s, int64_t *elapsed_ns) {
  const int64_t began_ns = now_ns();
  const char *wrong = fleetcut_infer(&s->network, s->input, s->output);
  *elapsed_ns = now_ns() - began_ns;
  s->answered = wrong == NULL;
  return wrong == NULL ? NULL : fault("the inference failed: %s", wrong);
}

static const char *answer(session *s) {
  int64_t elapsed_ns;
  return s->answered ? NULL : infer(s, &elapsed_ns);
}

/* ---- Files ---------------------------------------------------------------------------------- */

/* A stream's next tensor into s->input; *ended where there is none. */
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

static const char *write_tensor(const session *s, FILE *stream, const char *name) {
  const size_t written = fwrite(s->output, sizeof(float), s->output_count, stream);
  if (written != s->output_count || fflush(stream) != 0) return fault("cannot write %s", name);
  return NULL;
}

static const char *read_file(session *s, const char *name) {
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

static const char *write_file(session *s, const char *name) {
  const char *wrong = answer(s);
  if (wrong != NULL) return wrong;
  FILE *const file = fopen(name, "wbe");
  if (file == NULL) return fault("cannot write %s", name);
  wrong = write_tensor(s, file, name);
  if (fclose(file) != 0 && wrong == NULL) wrong = fault("cannot write %s", name);
  return wrong;
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void put_quoted(const char *text) {
  putchar('"');
  for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; ++c) {
    if (*c == '"' || *c == '\\') {
      printf("\\%c", *c);
    } else if (*c < 0x20 || *c >= 0x7f) {
      printf("\\u%04x", *c);
    } else {
      putchar(*c);
    }
  }
  putchar('"');
}

static void put_shape(const char *name, const fleetcut_shape *shape) {
  printf("\"%s\":[", name);
  for (size_t i = 0; i < shape->rank; ++i) printf(i == 0 ? "%d" : ",%d", (int)shape->sizes[i]);
  putchar(']');
}

static void put_number(double value) {
  if (isfinite(value)) {
    printf("%.9g", value);
  } else {
    fputs("null", stdout);
  }
}

static void put_member(const char *name, const char *value) {
  printf(",\"%s\":", name);
  put_quoted(value);
}

static void end_line(void) {
  fputs("}\n", stdout);
  fflush(stdout);
}

/* ---- Verbs ---------------------------------------------------------------------------------- */

static int refuse(const char *wrong) {
  fprintf(stderr, "%s\n", wrong);
  return 1;
}

static int describe(const fleetcut_program *program) {
  putchar('{');
  put_shape("input_shape", &program->input_shape);
  putchar(',');
  put_shape("output_shape", &program->output_shape);
  put_member("runtime", "xnnpack");
  put_member("version", program->version);
  put_member("precision", program->precision);
  put_member("machine", program->machine);
  put_member("libc", program->libc);
  printf(",\"threads\":%d,\"atol\":", program->threads);
  put_number(program->atol);
  end_line();
  return 0;
}

static int selftest(session *s) {
  const char *wrong = answer(s);
  if (wrong != NULL) return refuse(wrong);
  double max_abs_err = 0;
  for (size_t i = 0; i < s->output_count && !isnan(max_abs_err); ++i) {
    float expected;
    memcpy(&expected, s->program->golden_output.start + i * sizeof expected, sizeof expected);
    const double deviation = fabs((double)s->output[i] - expected);
    if (!(deviation <= max_abs_err)) max_abs_err = deviation; /* a NaN stays */
  }
  const int passed = max_abs_err <= s->program->atol;
  fputs("{\"max_abs_err\":", stdout);
  put_number(max_abs_err);
  fputs(",\"atol\":", stdout);
  put_number(s->program->atol);
  printf(",\"passed\":%s", passed ? "true" : "false");
  end_line();
  return passed ? 0 : 1;
}

/* The durations of so many inferences, said once all are over. */
static const char *bench(session *s, long samples) {
  int64_t *const latency_ns = malloc((size_t)samples * sizeof *latency_ns);
  const char *wrong = latency_ns == NULL ? "out of memory" : NULL;
  for (long i = 0; wrong == NULL && i < samples; ++i) wrong = infer(s, &latency_ns[i]);
  if (wrong == NULL) {
    fputs("{\"latency_ns\":[", stdout);
    for (long i = 0; i < samples; ++i) {
      printf(i == 0 ? "%lld" : ",%lld", (long long)latency_ns[i]);
    }
    putchar(']');
    end_line();
  }
  free(latency_ns);
  return wrong;
}

static int run_all(session *s) {
  for (int first = 1;; first = 0) {
    int ended;
    const char *wrong = read_tensor(s, stdin, "stdin", &ended);
    if (wrong == NULL && ended) return first ? refuse("stdin is empty") : 0;
    if (wrong == NULL) {
      take(s);
      wrong = answer(s);
    }
    if (wrong == NULL) wrong = write_tensor(s, stdout, "stdout");
    if (wrong != NULL) return refuse(wrong);
  }
}

/* A whole number from 1 to most, and nothing after it; 0 for anything else. */
static long parse_count(const char *text, long most) {
  char *end;
  errno = 0;
  const long value = text[0] >= '0' && text[0] <= '9' ? strtol(text, &end, 10) : 0;
  return value >= 1 && value <= most && errno == 0 && *end == '\0' ? value : 0;
}

/* Answers one line of --serve, or says what is wrong with it. */
static const char *reply(session *s, char *line) {
  char *const space = strchr(line, ' ');
  const char *argument = space == NULL ? "" : space + 1;
  if (space != NULL) *space = '\0';
  if (strcmp(line, "bench") == 0) {
    const long samples = parse_count(argument, kMaxSamples);
    return samples == 0 ? "bench needs a number from 1 to 1000000" : bench(s, samples);
  }
  const int input = strcmp(line, "input") == 0;
  if (!input && strcmp(line, "output") != 0) {
    return fault("unknown command '%.40s', expected input, bench, output or quit", line);
  }
  if (*argument == '\0') return fault("%s needs a file name", line);
  const char *wrong = input ? read_file(s, argument) : write_file(s, argument);
  if (wrong == NULL) {
    fputs("{\"ok\":true", stdout);
    end_line();
  }
  return wrong;
}

static int serve(session *s) {
  printf("{\"ready\":true,\"load_ns\":%lld", (long long)s->load_ns);
  end_line();
  char *line = NULL;
  size_t room = 0;
  for (ssize_t length; (length = getline(&line, &room, stdin)) > 0;) {
    if (line[length - 1] == '\n') line[length - 1] = '\0';
    if (strcmp(line, "quit") == 0) break;
    const char *wrong = reply(s, line);
    if (wrong != NULL) {
      fputs("{\"error\":", stdout);
      put_quoted(wrong);
      end_line();
    }
  }
  free(line);
  return 0;
}

/* ---- Command line --------------------------------------------------------------------------- */

typedef struct {
  const char *verb; /* NULL: stdin to stdout */
  long threads;     /* 0: as the program was built for */
  long samples;
} options;

static int is_verb(const char *argument) {
  static const char *const verbs[] = {"--describe", "--selftest", "--benchmark", "--serve"};
  for (size_t i = 0; i < sizeof verbs / sizeof *verbs; ++i) {
    if (strcmp(argument, verbs[i]) == 0) return 1;
  }
  return 0;
}

/* 0: the command line is not understood. */
static int parse(int argc, char **argv, options *found) {
  *found = (options){.samples = kDefaultSamples};
  for (int i = 1; i < argc; ++i) {
    const char *next = i + 1 < argc ? argv[i + 1] : "";
    if (is_verb(argv[i]) && found->verb == NULL) {
      found->verb = argv[i];
      if (strcmp(argv[i], "--benchmark") == 0 && *next != '\0' && *next != '-') {
        found->samples = parse_count(next, kMaxSamples);
        if (found->samples == 0) return 0;
        ++i;
      }
    } else if (strcmp(argv[i], "--threads") == 0) {
      found->threads = parse_count(next, kMaxThreads);
      if (found->threads == 0) return 0;
      ++i;
    } else {
      return 0;
    }
  }
  return 1;
}

static int asks(const options *found, const char *verb) {
  return found->verb != NULL && strcmp(found->verb, verb) == 0;
}

__attribute__((visibility("default"))) fleetcut_entry fleetcut_main;

int fleetcut_main(const fleetcut_program *program, int argc, char **argv) {
  options found;
  if (!parse(argc, argv, &found)) {
    fputs(kUsage, stderr);
    return 2;
  }
  if (asks(&found, "--describe")) return describe(program);
  static session s;
  const char *wrong = start(&s, program, found.threads > 0 ? (int)found.threads : program->threads);
  if (wrong != NULL) return refuse(wrong);
  if (asks(&found, "--selftest")) return selftest(&s);
  if (asks(&found, "--serve")) return serve(&s);
  if (!asks(&found, "--benchmark")) return run_all(&s);
  wrong = bench(&s, found.samples);
  return wrong == NULL ? 0 : refuse(wrong);
}
