/**
 * Waiting for a word in memory that ranks share (threads, or processes through a shared mapping): a
 * short spin, then sleep in the kernel, because ranks may outnumber cores.
 *
 * A event is what a waiter sleeps on: whoever has changed something the waiter may look for rings
 * it.
 */
#ifndef XP_COMM_FUTEX_EVENT_H
#define XP_COMM_FUTEX_EVENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct xp_futex_event {
    _Atomic uint32_t count;      /* rings so far; the word slept on */
    _Atomic uint32_t n_sleepers; /* ring enters the kernel only when somebody sleeps */
} xp_futex_event;

/** After the change has been stored: wake every sleeper. */
void xp_futex_event_signal(xp_futex_event *event);

/**
 * Wait until done(context) is true.
 * @param deadline_s  xp_time_s() value at which to give up
 * @param slice_s     look at done() at least this often even without a ring: for conditions nobody
 * rings for
 * @return false when the deadline passed first
 */
bool xp_futex_event_wait(xp_futex_event *event, bool (*done)(void *context), void *context,
                         double deadline_s, double slice_s);

#endif
