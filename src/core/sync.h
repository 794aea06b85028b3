/** Waits with a time limit on the monotonic clock: a change of the wall clock neither ends nor
 * prolongs them. */
#ifndef XP_CORE_SYNC_H
#define XP_CORE_SYNC_H

#include <pthread.h>
#include <stdbool.h>

/** A condition variable for xp_cond_wait_until(). Destroy it with pthread_cond_destroy(). */
void xp_cond_init(pthread_cond_t *cond);
/**
 * As pthread_cond_wait(), at most until `deadline_s`.
 * @param deadline_s  a value of xp_time_s()
 * @return false when the deadline has passed
 */
bool xp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, double deadline_s);

#endif
