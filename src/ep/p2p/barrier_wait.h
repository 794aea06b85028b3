/**
 * The wait of a cross-rank barrier: one source for the GPU (p2p/cuda/barrier.cu) and for the host, where
 * a test runs it (tests/unit/ep/test_abort.c). A rank polls until a peer's flag has reached its epoch. It
 * stops early when
 *   - another rank has reported a failure in this rank's window,
 *   - this rank's host has set the host abort flag, because the communicator has failed
 *     (p2p/abort_watch.h), or
 *   - its time is up.
 * The host abort flag is page-locked host memory, a thousand times as far away as the window, so it is
 * read once in XP_EP_HOST_ABORT_POLLS polls only: about once a millisecond.
 *
 * Whoever includes this defines before:
 *   XP_EP_WAIT_FN     what stands before a function
 *   load_acquire()    uint32_t, of a word that another rank or the host writes
 *   now_ns()          uint64_t
 *   pause_poll()      between two polls
 */
#ifndef XP_EP_P2P_BARRIER_WAIT_H
#define XP_EP_P2P_BARRIER_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#define XP_EP_HOST_ABORT_POLLS 1024U

typedef struct xp_ep_wait_args {
    const uint32_t *flag;       /* the peer's word, in this rank's window */
    uint32_t epoch;             /* to reach */
    const uint32_t *failed;     /* in this rank's window; not 0: a rank's report */
    const uint32_t *host_abort; /* not 0: this rank's host has given up */
    uint64_t timeout_ns;
    /* The word must be the epoch itself. For words that not every call writes: one that was last written
     * 2^31 calls ago would count as ahead. Only where its writer cannot be ahead of who waits. */
    bool exact;
} xp_ep_wait_args;

typedef enum xp_ep_wait_result {
    XP_EP_WAIT_REACHED = 0,
    XP_EP_WAIT_REPORTED,
    XP_EP_WAIT_HOST_ABORT,
    XP_EP_WAIT_TIMED_OUT,
} xp_ep_wait_result;

/** How long a thread has waited. The driver sets a GPU's timer now and then, back too: one poll counts
 * for at most this long. */
#define XP_EP_LONGEST_POLL_NS 10000000
typedef struct xp_ep_wait_timer {
    uint64_t last, waited;
} xp_ep_wait_timer;

XP_EP_WAIT_FN bool xp_ep_wait_is_over(xp_ep_wait_timer *timer, uint64_t limit_ns) {
    const uint64_t now = now_ns();
    const int64_t passed = (int64_t)(now - timer->last);
    timer->last = now;
    timer->waited += (uint64_t)(passed < 0                       ? 0
                                : passed < XP_EP_LONGEST_POLL_NS ? passed
                                                                 : XP_EP_LONGEST_POLL_NS);
    return timer->waited > limit_ns;
}

/** Epochs count modulo 2^32. */
XP_EP_WAIT_FN bool xp_ep_is_behind(uint32_t seen, uint32_t wanted) {
    return (int32_t)(seen - wanted) < 0;
}

XP_EP_WAIT_FN bool xp_ep_has_reached(const xp_ep_wait_args *args, uint32_t seen) {
    return args->exact ? seen == args->epoch : !xp_ep_is_behind(seen, args->epoch);
}

/** @param[out] report  the word that was found in `failed`, with XP_EP_WAIT_REPORTED */
XP_EP_WAIT_FN xp_ep_wait_result xp_ep_wait_for_flag(const xp_ep_wait_args *args, uint32_t *report) {
    xp_ep_wait_timer timer = {now_ns(), 0};
    for (uint32_t n_polls = 1; !xp_ep_has_reached(args, load_acquire(args->flag)); n_polls++) {
        *report = load_acquire(args->failed);
        if (*report != 0)
            return XP_EP_WAIT_REPORTED;
        if (n_polls % XP_EP_HOST_ABORT_POLLS == 0 && load_acquire(args->host_abort) != 0)
            return XP_EP_WAIT_HOST_ABORT;
        if (xp_ep_wait_is_over(&timer, args->timeout_ns))
            return XP_EP_WAIT_TIMED_OUT;
        pause_poll();
    }
    return XP_EP_WAIT_REACHED;
}

#endif
