#include "comm/flag.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"

/* Rounds of the spin before sleeping, about 5 us: longer than two running ranks need to meet, far
 * shorter than a time slice. */
#define N_SPINS 100

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

void xp_bell_ring(xp_bell *bell) {
    /* Sequentially consistent on both sides: either the ringer sees the sleeper, or the sleeper's
     * kernel check sees the count. */
    atomic_fetch_add(&bell->count, 1);
    if (atomic_load(&bell->n_sleepers) > 0)
        syscall(SYS_futex, &bell->count, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void sleep_on(xp_bell *bell, uint32_t seen, double seconds) {
    struct timespec limit = {.tv_sec = (time_t)seconds};
    limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
    atomic_fetch_add(&bell->n_sleepers, 1);
    syscall(SYS_futex, &bell->count, FUTEX_WAIT, seen, &limit, NULL, 0);
    atomic_fetch_sub(&bell->n_sleepers, 1);
}

bool xp_bell_wait(xp_bell *bell, bool (*done)(void *context), void *context, double deadline_s,
                  double slice_s) {
    for (int i = 0; i < N_SPINS; i++) {
        if (done(context))
            return true;
        relax();
    }
    for (;;) {
        uint32_t seen = atomic_load(&bell->count);
        if (done(context))
            return true;
        double left = deadline_s - xp_time_s();
        if (left <= 0)
            return false;
        sleep_on(bell, seen, left < slice_s ? left : slice_s);
    }
}
