#include "core/sync.h"

#include <errno.h>
#include <time.h>

void xp_cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

bool xp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, double deadline_s) {
    struct timespec until = {.tv_sec = (time_t)deadline_s};
    until.tv_nsec = (long)((deadline_s - (double)until.tv_sec) * 1e9);
    return pthread_cond_timedwait(cond, lock, &until) != ETIMEDOUT;
}
