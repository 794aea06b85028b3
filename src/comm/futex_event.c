#include "comm/futex_event.h"

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

void xp_futex_event_signal(xp_futex_event *event) {
    /* Sequentially consistent on both sides: either the ringer sees the sleeper, or the sleeper's
     * kernel check sees the count. */
    atomic_fetch_add(&event->count, 1);
    if (atomic_load(&event->n_sleepers) > 0)
        syscall(SYS_futex, &event->count, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void sleep_on(xp_futex_event *event, uint32_t seen, double seconds) {
    struct timespec limit = {.tv_sec = (time_t)seconds};
    limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
    atomic_fetch_add(&event->n_sleepers, 1);
    syscall(SYS_futex, &event->count, FUTEX_WAIT, seen, &limit, NULL, 0);
    atomic_fetch_sub(&event->n_sleepers, 1);
}

bool xp_futex_event_wait(xp_futex_event *event, bool (*done)(void *context), void *context,
                         double deadline_s, double slice_s) {
    for (int i = 0; i < N_SPINS; i++) {
        if (done(context))
            return true;
        relax();
    }
    for (;;) {
        uint32_t seen = atomic_load(&event->count);
        if (done(context))
            return true;
        double left = deadline_s - xp_time_s();
        if (left <= 0)
            return false;
        sleep_on(event, seen, left < slice_s ? left : slice_s);
    }
}
