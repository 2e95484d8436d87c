#define _GNU_SOURCE
#include "xnnpack_switching.h"

#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Governors decide every 10 ms or more seldom, and a look costs 2 to 50 us. */
static const int64_t kLookNs = 5000000;

int64_t fleetcut_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* As device_agents/platforms/linux.py finds them. */
static const char *const kPatterns[] = {"/sys/devices/system/cpu/cpufreq/policy[0-9]*",
                                        "/sys/devices/system/cpu/cpu[0-9]*/cpufreq"};

static void forget(fleetcut_watch *watch) {
  for (size_t i = 0; i < watch->folders; ++i) free(watch->paths[i]);
  watch->folders = watch->logged = 0;
  watch->next_ns = 0;
}

const char *fleetcut_follow(fleetcut_watch *watch, const char *root) {
  if (watch->log == NULL) watch->log = malloc(kMostLogged * sizeof *watch->log);
  if (watch->log == NULL) return "out of memory";
  forget(watch);
  for (size_t i = 0; watch->folders == 0 && i < sizeof kPatterns / sizeof *kPatterns; ++i) {
    char *pattern;
    glob_t found;
    if (asprintf(&pattern, "%s%s/scaling_cur_freq", root, kPatterns[i]) < 0) return "out of memory";
    if (glob(pattern, 0, NULL, &found) == 0) {
      for (size_t n = 0; n < found.gl_pathc && watch->folders < kMostFolders; ++n) {
        watch->paths[watch->folders++] = strdup(found.gl_pathv[n]);
      }
      globfree(&found);
    }
    free(pattern);
  }
  watch->following = 1;
  return NULL;
}

/* A file's number, or 0. */
static int64_t read_number(const char *path) {
  char text[32];
  const int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = '\0';
  const long long value = strtoll(text, NULL, 10);
  return value > 0 ? value : 0;
}

/* The highest clock of all: the work goes to the fast cores. 0: none can be read. */
static int64_t clock_khz(const fleetcut_watch *watch) {
  int64_t highest = 0;
  for (size_t i = 0; i < watch->folders; ++i) {
    const int64_t khz = read_number(watch->paths[i]);
    if (khz > highest) highest = khz;
  }
  return highest;
}

/* The sub-network whose latency comes closest to the target; of two that are as close the wider.
   The present one stays unless another comes closer by the hysteresis. */
static uint32_t choose(const fleetcut_network *network, int64_t khz) {
  const double target_ms = network->switchable->target_ms;
  uint32_t best = 0;
  double nearest = INFINITY, present = INFINITY;
  for (uint32_t k = 0; k < network->count; ++k) {
    const fleetcut_ratio *law = &network->ratios[k];
    const double latency_ms = law->a_ms + law->b_ms_khz / (double)khz;
    const double distance = fabs(latency_ms - target_ms) / target_ms;
    if (k == network->present) present = distance;
    if (distance < nearest) {
      nearest = distance;
      best = k;
    }
  }
  return nearest < present - network->switchable->hysteresis ? best : network->present;
}

const char *fleetcut_look(fleetcut_watch *watch, fleetcut_network *network) {
  const int64_t now_ns = watch->following ? fleetcut_now_ns() : 0;
  if (!watch->following || now_ns < watch->next_ns) return NULL;
  watch->next_ns = now_ns + kLookNs;
  const int64_t khz = clock_khz(watch);
  if (khz == 0) return NULL;
  const uint32_t before = network->present, after = choose(network, khz);
  if (after == before) return NULL;
  const char *fault = fleetcut_switch(network, after);
  if (fault == NULL && watch->logged < kMostLogged) {
    const int64_t took_ns = fleetcut_now_ns() - now_ns;
    watch->log[watch->logged++] = (fleetcut_switched){now_ns, khz, took_ns, before, after};
  }
  return fault;
}
