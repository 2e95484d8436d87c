/* Which sub-network runs: the clock watched, the policy asked, the switches kept.
   The rule is that of device_agents/switching.py and contract/switching.py. */
#ifndef FLEETCUT_XNNPACK_SWITCHING_H
#define FLEETCUT_XNNPACK_SWITCHING_H

#include "xnnpack_network.h"

enum { kMostLogged = 10000, kMostFolders = 64 };

typedef struct {
  int64_t monotonic_ns, khz, took_ns;
  uint32_t before, after;
} fleetcut_switched;

typedef struct {
  int following;
  int64_t next_ns;
  size_t folders;
  char *paths[kMostFolders]; /* of scaling_cur_freq of each cpufreq policy */
  size_t logged;
  fleetcut_switched *log;
} fleetcut_watch;

int64_t fleetcut_now_ns(void);

/* From now on the clock below root decides, "" for the board's own; where none can be read, the
   present sub-network stays. NULL, or what is wrong. */
const char *fleetcut_follow(fleetcut_watch *watch, const char *root);

/* Looks, unless that was done in the last 5 ms, and switches where the policy says so. */
const char *fleetcut_look(fleetcut_watch *watch, fleetcut_network *network);

#endif
