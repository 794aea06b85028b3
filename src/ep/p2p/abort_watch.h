/**
 * Failures between the host and kernels that wait, both ways. A thread looks for a failure of the
 * communicator and sets a word that waiting kernels poll; and it looks for a failure that a kernel has
 * found (its time was up) and reports it to the communicator, so that the other ranks and what is queued
 * behind the kernel do not wait another time limit. The rank's own thread may be waiting for its stream at
 * that time, and so for these kernels.
 */
#ifndef XP_EP_P2P_ABORT_WATCH_H
#define XP_EP_P2P_ABORT_WATCH_H

#include "expar/comm.h"

typedef struct xp_ep_abort_watch xp_ep_abort_watch;

typedef struct xp_ep_abort_watch_args {
    const xp_comm *comm; /* borrowed, until stop */
    uint32_t *flag; /* set to 1, with release order, within about 20 ms of a failure; borrowed */
    /* not XP_OK: a kernel has failed, and the communicator has been told; called by the watching thread */
    xp_status (*kernel_error)(const void *context);
    const void *context; /* borrowed */
} xp_ep_abort_watch_args;

/** @param args  copied */
XP_NODISCARD xp_status xp_ep_abort_watch_start(const xp_ep_abort_watch_args *args,
                                               xp_ep_abort_watch **watch);
/** NULL is accepted. */
void xp_ep_abort_watch_stop(xp_ep_abort_watch *watch);

#endif
