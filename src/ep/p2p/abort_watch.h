/**
 * How a failure of the communicator reaches kernels that wait: a thread looks for it and sets a word
 * that they poll. The rank's own thread may be waiting for its stream at that time, and so for these
 * kernels.
 */
#ifndef XP_EP_P2P_ABORT_WATCH_H
#define XP_EP_P2P_ABORT_WATCH_H

#include "expar/comm.h"

typedef struct xp_ep_abort_watch xp_ep_abort_watch;

/**
 * @param comm  borrowed, until stop
 * @param flag  set to 1, with release order, within about 20 ms of the communicator's failure; borrowed
 */
XP_NODISCARD xp_status xp_ep_abort_watch_start(const xp_comm *comm, uint32_t *flag,
                                               xp_ep_abort_watch **watch);
/** NULL is accepted. */
void xp_ep_abort_watch_stop(xp_ep_abort_watch *watch);

#endif
