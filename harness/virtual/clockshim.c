/* A board's slower CPU, memory and runtime, preloaded into whatever the board runs.
 *
 * Input: a shared page (path in FLEETCUT_CLOCK_PAGE). Output: clock_gettime() that first makes the
 * calling thread wait for what it did since its last look at the clock:
 *   - its CPU time, times (stretch - 1): a slower clock;
 *   - its calls of malloc(), times `malloc_ns`: a runtime whose every operator costs more, for
 *     onnxruntime allocates three or four times an operator;
 *   - the bytes of the pages that the process touched, beyond `cache_bytes`, at
 *     `memory_bytes_per_s`: slow memory behind a small cache. Only the main thread, at a look at
 *     CLOCK_MONOTONIC, pays this. The kernel says which pages: their accessed bits.
 * And in the page `busy_ns`, the CPU time of the board's processes on its own, slower cores, and
 * `cpu_ns`, what of it the host's kernel has charged to them, the wait included.
 *
 * Without the page, or with stretch 1 and nothing else, nothing waits. The wait's own CPU time is
 * charged to nobody.
 * A statically linked program, raw rdtsc and direct system calls escape it: see the docs.
 * Only async-signal-safe calls are made after loading; a signal handler that looks at the clock in
 * the middle of a settlement is given the plain time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_MAGIC 0x334b434c43544346ull /* "FCTCLCK3", little-endian */
#define NS_PER_S 1000000000ull
#define SPIN_NS 500000ull      /* spun: on a busy machine a sleeper wakes this late */
#define DEBT_MIN_NS 1000ull    /* less is left to grow: waiting it off would cost more than it */
#define ACCOUNT_NS 5000000ull   /* process CPU time is looked at no more often than this */
#define MALLOCS_MAX 20000u     /* charged between two looks: an import makes 200,000 */
#define METER_CPU_NS 20000ull  /* after less CPU time the pages are not counted */

struct page {
    uint64_t magic;
    _Atomic uint64_t stretch_ppb; /* parts per billion: 2.04 is 2040000000 */
    _Atomic uint64_t busy_ns;
    uint64_t memory_bytes_per_s; /* 0: as fast as the host's */
    uint64_t cache_bytes;
    uint64_t malloc_ns; /* 0: as fast as the host's */
    _Atomic uint64_t cpu_ns;
};

typedef int (*clock_gettime_fn)(clockid_t, struct timespec *);

static clock_gettime_fn real_clock_gettime; /* libc's, which uses the vDSO */
static struct page *page;

static __thread uint64_t last_cpu_ns __attribute__((tls_model("initial-exec")));
static __thread int settling __attribute__((tls_model("initial-exec")));
static __thread uint32_t mallocs __attribute__((tls_model("initial-exec")));
static __thread int is_main __attribute__((tls_model("initial-exec")));

/* The main thread's: how far its CLOCK_MONOTONIC is behind, and its CPU time at the last look. */
static uint64_t hidden_ns;
static uint64_t looked_cpu_ns;
static int closed_a_file; /* since then: it did something else than time an inference */

static atomic_flag accounting = ATOMIC_FLAG_INIT;
static _Atomic uint64_t accounted_cpu_ns; /* process CPU time that is in busy_ns already */
static _Atomic uint64_t waited_cpu_ns;    /* CPU time burnt by waiting, since then */
static _Atomic uint64_t next_account_ns;

static int plain_clock(clockid_t id, struct timespec *ts)
{
    if (real_clock_gettime)
        return real_clock_gettime(id, ts);
    return (int)syscall(SYS_clock_gettime, id, ts); /* looked at before our constructor ran */
}

static uint64_t now_ns(clockid_t id)
{
    struct timespec ts;
    if (plain_clock(id, &ts) != 0)
        return 0;
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t scaled(uint64_t ns, uint64_t ppb)
{
    return (uint64_t)((double)ns * ((double)ppb / 1e9));
}

/* Adds the whole process's CPU time since the last account: worker threads never look at a clock. */
static void account(uint64_t ppb)
{
    if (atomic_flag_test_and_set_explicit(&accounting, memory_order_acquire))
        return;
    uint64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t gone = accounted_cpu_ns + atomic_exchange(&waited_cpu_ns, 0);
    if (cpu > gone)
        atomic_fetch_add_explicit(&page->busy_ns, scaled(cpu - gone, ppb), memory_order_relaxed);
    if (cpu > accounted_cpu_ns) {
        atomic_fetch_add_explicit(&page->cpu_ns, cpu - accounted_cpu_ns, memory_order_relaxed);
        accounted_cpu_ns = cpu;
    }
    atomic_flag_clear_explicit(&accounting, memory_order_release);
}

/* What this thread's mallocs cost on the board, in its own slower time. */
static uint64_t malloc_debt(uint64_t ppb)
{
    uint64_t calls = mallocs < MALLOCS_MAX ? mallocs : MALLOCS_MAX;
    return scaled(calls * page->malloc_ns, ppb > NS_PER_S ? ppb : NS_PER_S);
}

static void wait_until(uint64_t target_ns)
{
    uint64_t wake_ns = target_ns - SPIN_NS;
    if (now_ns(CLOCK_MONOTONIC) < wake_ns) {
        struct timespec ts = {(time_t)(wake_ns / NS_PER_S), (long)(wake_ns % NS_PER_S)};
        while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0 &&
               errno == EINTR)
            ;
    }
    while (now_ns(CLOCK_MONOTONIC) < target_ns) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("yield");
#endif
    }
}

/* Makes the calling thread as late as it would be on a CPU that is `stretch` times slower. */
static void settle(void)
{
    int saved_errno = errno;
    settling = 1;
    atomic_signal_fence(memory_order_seq_cst);
    uint64_t ppb = atomic_load_explicit(&page->stretch_ppb, memory_order_relaxed);
    uint64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    uint64_t start = now_ns(CLOCK_MONOTONIC);
    if (cpu < last_cpu_ns) /* a clone that pthread_atfork did not see: its CPU time began anew */
        last_cpu_ns = cpu;
    uint64_t allocating = malloc_debt(ppb);
    uint64_t debt = ppb > NS_PER_S ? scaled(cpu - last_cpu_ns, ppb - NS_PER_S) : 0;
    debt += allocating;
    if (debt >= DEBT_MIN_NS) {
        wait_until(start + debt);
        uint64_t after = now_ns(CLOCK_THREAD_CPUTIME_ID);
        atomic_fetch_add_explicit(&waited_cpu_ns, after - cpu, memory_order_relaxed);
        atomic_fetch_add_explicit(&page->busy_ns, allocating, memory_order_relaxed);
        cpu = after;
    }
    if (debt == 0 || debt >= DEBT_MIN_NS) {
        last_cpu_ns = cpu;
        mallocs = 0;
    }
    if (start >= atomic_load_explicit(&next_account_ns, memory_order_relaxed)) {
        atomic_store_explicit(&next_account_ns, start + ACCOUNT_NS, memory_order_relaxed);
        account(ppb);
    }
    atomic_signal_fence(memory_order_seq_cst);
    settling = 0;
    errno = saved_errno;
}

/* Bytes of the process's pages touched since forget_touched(); 0 where the kernel does not say. */
static uint64_t touched_bytes(void)
{
    char text[2048];
    int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    const char *field = strstr(text, "Referenced:");
    return field ? strtoull(field + sizeof "Referenced:" - 1, NULL, 10) * 1024 : 0;
}

static void forget_touched(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t written = write(fd, "1", 1);
    close(fd);
    if (written != 1)
        return;
    /* The kernel leaves the TLB as it is, and a page that is in there is not seen to be touched:
     * a range that is too long to be flushed page by page makes it flush everything. */
    size_t length = 4u << 20;
    char *range = mmap(NULL, length, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return;
    ((volatile char *)range)[0] = 1;
    ((volatile char *)range)[length - 1] = 1;
    munmap(range, length);
}

/* Waits for what the main thread fetched from memory. What stays within the cache stays in it.
 *
 * Returns how long that took beyond what it was to take: counting costs up to some ms.
 */
static uint64_t fetch(uint64_t now)
{
    uint64_t touched = touched_bytes();
    if (touched <= page->cache_bytes)
        return now_ns(CLOCK_MONOTONIC) - now;
    double bytes = (double)(touched - page->cache_bytes);
    uint64_t due = now + (uint64_t)(bytes * 1e9 / (double)page->memory_bytes_per_s);
    forget_touched();
    wait_until(due);
    return now_ns(CLOCK_MONOTONIC) - due;
}

/* CLOCK_MONOTONIC of the main thread with slower memory, after the wait for it.
 *
 * The time that counting takes is hidden: the clock falls behind, and catches up at the first look
 * after a file was closed. The agent closes some before and after its samples and none between.
 */
static uint64_t metered_ns(void)
{
    int saved_errno = errno;
    settling = 1;
    atomic_signal_fence(memory_order_seq_cst);
    uint64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    if (closed_a_file)
        hidden_ns = 0;
    closed_a_file = 0;
    if (cpu - looked_cpu_ns >= METER_CPU_NS) {
        hidden_ns += fetch(now_ns(CLOCK_MONOTONIC));
        uint64_t after = now_ns(CLOCK_THREAD_CPUTIME_ID);
        atomic_fetch_add_explicit(&waited_cpu_ns, after - cpu, memory_order_relaxed);
        last_cpu_ns += after - cpu;
        cpu = after;
    }
    looked_cpu_ns = cpu;
    uint64_t shown = now_ns(CLOCK_MONOTONIC) - hidden_ns;
    atomic_signal_fence(memory_order_seq_cst);
    settling = 0;
    errno = saved_errno;
    return shown;
}

__attribute__((visibility("default"))) int clock_gettime(clockid_t id, struct timespec *ts)
{
    int shown = id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_BOOTTIME ||
                id == CLOCK_REALTIME;
    if (!shown || !page || settling)
        return plain_clock(id, ts);
    settle();
    if (id != CLOCK_MONOTONIC || !is_main || !page->memory_bytes_per_s)
        return plain_clock(id, ts);
    uint64_t ns = metered_ns();
    ts->tv_sec = (time_t)(ns / NS_PER_S);
    ts->tv_nsec = (long)(ns % NS_PER_S);
    return 0;
}

__attribute__((visibility("default"))) int close(int fd)
{
    if (is_main && !settling)
        closed_a_file = 1;
    return (int)syscall(SYS_close, fd);
}

#ifdef __GLIBC__
extern void *__libc_malloc(size_t);

__attribute__((visibility("default"))) void *malloc(size_t size)
{
    mallocs++;
    return __libc_malloc(size);
}
#endif

/* A child's CPU clocks start at zero, and a settlement of the parent's is not its own. */
static void in_child(void)
{
    last_cpu_ns = 0;
    settling = 0;
    mallocs = 0;
    is_main = 1;
    hidden_ns = 0;
    looked_cpu_ns = 0;
    closed_a_file = 0;
    accounted_cpu_ns = 0;
    waited_cpu_ns = 0;
    next_account_ns = 0;
    atomic_flag_clear(&accounting);
}

__attribute__((constructor)) static void load(void)
{
    *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("FLEETCUT_CLOCK_PAGE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    struct stat st;
    struct page *found = MAP_FAILED;
    if (fstat(fd, &st) == 0 && (size_t)st.st_size >= sizeof *found)
        found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED)
        return;
    if (found->magic != PAGE_MAGIC) {
        munmap(found, sizeof *found);
        return;
    }
    /* exec keeps the CPU clocks: what the program before us spent is not our debt */
    last_cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
    accounted_cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    looked_cpu_ns = last_cpu_ns;
    pthread_atfork(NULL, NULL, in_child);
    if (found->memory_bytes_per_s) /* a huge page has one accessed bit for 2 MiB */
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    is_main = 1;
    mallocs = 0;
    page = found;
}

__attribute__((destructor)) static void unload(void)
{
    if (!page || settling)
        return;
    settle(); /* a program that never looked at a clock is late at its end */
    account(atomic_load_explicit(&page->stretch_ppb, memory_order_relaxed));
}
