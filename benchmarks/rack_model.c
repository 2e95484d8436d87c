/* A model of the rack's benchmark: a program of fleetcut's executable protocol that sleeps.
 *
 * Input: --describe, or --serve --threads N and then a line a request on stdin. Output: a JSON line
 * each. An inference is SLEEP_NS of sleep, so that 64 simulated boards can run at once on two cores
 * as 64 real ones would: it stands for their time, not for a network.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLEEP_NS 20000000L

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void bench(long count) {
    printf("{\"latency_ns\": [");
    for (long i = 0; i < count; i++) {
        struct timespec nap = {0, SLEEP_NS};
        long long start = now_ns();
        nanosleep(&nap, NULL);
        printf("%s%lld", i ? ", " : "", now_ns() - start);
    }
    printf("]}\n");
}

static int put(const char *path) {
    float zero[4] = {0};
    FILE *out = fopen(path, "wb");
    return out && fwrite(zero, sizeof zero, 1, out) == 1 && fclose(out) == 0;
}

int main(int argc, char **argv) {
    char line[4096];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "--describe") == 0) {
        puts("{\"input_shape\": [1, 4], \"output_shape\": [1, 4], \"runtime\": \"sleep\", "
             "\"version\": \"1\", \"precision\": \"fp32\"}");
        return 0;
    }
    puts("{\"ready\": true, \"load_ns\": 1000}");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "bench ", 6) == 0)
            bench(strtol(line + 6, NULL, 10));
        else if (strncmp(line, "output ", 7) == 0)
            puts(put(line + 7) ? "{\"ok\": true}" : "{\"error\": \"no output\"}");
        else
            puts("{\"ok\": true}");
    }
    return 0;
}
