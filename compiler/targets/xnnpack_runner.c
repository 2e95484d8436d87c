/* Runs the one network that native_launcher.c was linked with, on Debian's XNNPACK.
   Input: raw little-endian float32 tensors on stdin, or with --serve one command a line.
   Output: raw float32, or one JSON line an answer, on stdout; messages on stderr.
   A switchable network stays with its widest sub-network until it is told to follow the clock.
   The same words as native_runner.cc, without C++: a board of 32 bits needs no second runtime. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "xnnpack_session.h"

enum { kMaxThreads = 1024, kMaxSamples = 1000000, kDefaultSamples = 100 };

static const char kUsage[] =
    "usage: PROGRAM [--threads N]                  raw float32 tensors on stdin, answers on stdout\n"
    "       PROGRAM --describe                     shapes, runtime and precision as JSON\n"
    "       PROGRAM --selftest [--threads N]       golden input against golden output; exit 0 or 1\n"
    "       PROGRAM --benchmark [N] [--threads N]  nanoseconds of N inferences of the golden input\n"
    "       PROGRAM --serve [--threads N]          'input FILE', 'bench N', 'output FILE', 'quit'\n"
    "of a switchable network:\n"
    "       PROGRAM --follow [ROOT] [...]          the clock below ROOT decides; switches on stderr\n"
    "       PROGRAM --serve                        'follow ROOT', 'switches' too\n";

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

/* What each sub-network cuts off, the widest first. */
static const char *describe_ratios(const fleetcut_program *program) {
  fleetcut_network network;
  const char *wrong = fleetcut_open(&network, program->model);
  if (wrong != NULL || network.switchable == NULL) return wrong;
  fputs(",\"target_ms\":", stdout);
  put_number(network.switchable->target_ms);
  fputs(",\"ratios\":[", stdout);
  for (uint32_t k = 0; k < network.count; ++k) {
    if (k > 0) putchar(',');
    put_number(network.ratios[k].ratio);
  }
  putchar(']');
  return NULL;
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
  const char *wrong = describe_ratios(program);
  end_line();
  return wrong == NULL ? 0 : refuse(wrong);
}

static double deviation(const float *found, const void *expected, size_t count) {
  double max_abs_err = 0;
  for (size_t i = 0; i < count && !isnan(max_abs_err); ++i) {
    float value;
    memcpy(&value, (const unsigned char *)expected + i * sizeof value, sizeof value);
    const double error = fabs((double)found[i] - value);
    if (!(error <= max_abs_err)) max_abs_err = error; /* a NaN stays */
  }
  return max_abs_err;
}

/* Every network's answer to the golden input; of a switchable one the last is the widest, again. */
static int selftest(session *s) {
  double worst = 0;
  const uint32_t count = s->network.switchable == NULL ? 1 : s->network.count + 1;
  for (uint32_t k = 0; k < count && !isnan(worst); ++k) {
    const uint32_t position = k % s->network.count;
    const char *wrong = position == s->network.present ? NULL : session_change(s, position);
    if (wrong == NULL) wrong = session_answer(s);
    if (wrong != NULL) return refuse(wrong);
    const void *golden = s->network.switchable == NULL ? s->program->golden_output.start
                                                       : fleetcut_golden(&s->network, position);
    const double error = deviation(s->output, golden, s->output_count);
    if (!(error <= worst)) worst = error;
  }
  const int passed = worst <= s->program->atol;
  fputs("{\"max_abs_err\":", stdout);
  put_number(worst);
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
  for (long i = 0; wrong == NULL && i < samples; ++i) wrong = session_infer(s, &latency_ns[i]);
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

/* One switch as JSON. */
static void put_switch(FILE *stream, const fleetcut_switched *one) {
  fprintf(stream,
          "{\"monotonic_ns\":%lld,\"khz\":%lld,\"before\":%u,\"after\":%u,\"took_ns\":%lld}",
          (long long)one->monotonic_ns, (long long)one->khz, (unsigned)one->before, (unsigned)one->after,
          (long long)one->took_ns);
}

/* Those since the last time. */
static void tell_switches(session *s) {
  for (; s->told < s->watch.logged; ++s->told) {
    put_switch(stderr, &s->watch.log[s->told]);
    fputc('\n', stderr);
  }
}

static void put_switches(const session *s) {
  fputs("{\"switches\":[", stdout);
  for (size_t i = 0; i < s->watch.logged; ++i) {
    if (i > 0) putchar(',');
    put_switch(stdout, &s->watch.log[i]);
  }
  putchar(']');
  end_line();
}

static int run_all(session *s) {
  for (int first = 1;; first = 0) {
    int ended;
    const char *wrong = session_read(s, stdin, "stdin", &ended);
    if (wrong == NULL && ended) return first ? refuse("stdin is empty") : 0;
    if (wrong == NULL) wrong = session_answer(s);
    tell_switches(s);
    if (wrong == NULL) wrong = session_write(s, stdout, "stdout");
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
  if (strcmp(line, "switches") == 0 && s->network.switchable != NULL) {
    put_switches(s);
    return NULL;
  }
  const int input = strcmp(line, "input") == 0, follows = strcmp(line, "follow") == 0;
  if (!input && !follows && strcmp(line, "output") != 0) {
    return fault("unknown command '%.40s', expected input, bench, output or quit", line);
  }
  if (*argument == '\0') return fault("%s needs a file name", line);
  const char *wrong = follows ? session_follow(s, argument)
                      : input ? session_read_file(s, argument)
                              : session_write_file(s, argument);
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
  const char *root; /* NULL: the clock is not followed */
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
    } else if (strcmp(argv[i], "--follow") == 0 && found->root == NULL) {
      const int named = *next != '\0' && *next != '-';
      found->root = named ? next : "/";
      i += named;
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
  const char *wrong = session_start(&s, program, found.threads > 0 ? (int)found.threads : program->threads);
  if (wrong != NULL) return refuse(wrong);
  if (found.root != NULL) wrong = session_follow(&s, found.root);
  if (wrong != NULL) return refuse(wrong);
  if (asks(&found, "--selftest")) return selftest(&s);
  if (asks(&found, "--serve")) return serve(&s);
  if (!asks(&found, "--benchmark")) return run_all(&s);
  wrong = bench(&s, found.samples);
  tell_switches(&s);
  return wrong == NULL ? 0 : refuse(wrong);
}
