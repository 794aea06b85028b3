/** What a p2p group has on GPUs, and its barriers. */
#ifndef XP_EP_P2P_CUDA_STATE_H
#define XP_EP_P2P_CUDA_STATE_H

#include "device/device_internal.h"
#include "ep/common/cuda/plan.h"
#include "ep/p2p/abort_watch.h"
#include "ep/p2p/cuda/kernels.h"
#include "ep/p2p/cuda/launch_locks.h"
#include "ep/p2p/p2p.h"

/** How the ranks synchronise. */
typedef enum xp_ep_sync_mode {
    /* A kernel waits for the peers' flags: each rank on a GPU of its own. The host is not needed. */
    XP_EP_SYNC_KERNEL = 0,
    /* Streams wait for CUDA events on the peers' streams, which the hosts exchange: threads that
     * share a GPU. Kernels that wait for each other there may never run side by side, because CUDA
     * does not promise that streams do. An event is waited for only after what it waits for is
     * queued. */
    XP_EP_SYNC_EVENTS,
    /* Host-synchronised: the host waits for its stream and then for the other hosts. Processes that
     * share a GPU, and tools that run one kernel at a time. */
    XP_EP_SYNC_HOST,
} xp_ep_sync_mode;

/** Which barrier a host has reached: all hosts must have reached the same. */
typedef struct xp_ep_barrier_id {
    int32_t slot, point;
    uint32_t epoch;
    int64_t round;
} xp_ep_barrier_id;

typedef struct xp_ep_p2p_cuda {
    xp_ep_cuda_state common; /* first */
    xp_ep_sync_mode sync;    /* see xp_ep_p2p_sync_mode() */
    /* Dispatch tells the peers of rows in their windows, chunk by chunk, on every rank or on none:
     * processes on GPUs of their own that have bulk copies. See xp_ep_cuda_arrivals. */
    bool tells;
    xp_ep_launch_locks *locks; /* threads; NULL: none */
    xp_ep_abort_watch *watch;  /* XP_EP_SYNC_KERNEL: sets the host abort flag */
    /* Threads, and not for XP_EP_SYNC_KERNEL: a communicator of the hosts that nobody else uses. */
    xp_comm *hosts;
    xp_ep_barrier_id *barrier_ids; /* [R] */
    /* XP_EP_SYNC_EVENTS: two events in turn. When a rank records one again, all ranks have been in a
     * barrier since and have queued their waits. */
    cudaEvent_t events[2], *peer_events; /* [R, 2] */
    int64_t n_barriers;
} xp_ep_p2p_cuda;

static inline xp_ep_p2p_cuda *xp_ep_p2p_cuda_of(const xp_ep_group *group) {
    return group->device_state;
}

/** The mode of a call that is queued now: threads with a GPU each begin host-synchronised (see
 * xp_device_set_host_synchronized()). */
static inline xp_ep_sync_mode xp_ep_p2p_sync_mode(const xp_ep_group *group) {
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    const bool first = state->hosts != NULL && xp_device_is_host_synchronized(group->device);
    return state->sync == XP_EP_SYNC_KERNEL && first ? XP_EP_SYNC_HOST : state->sync;
}

/** A slot's abort flags in `rank`'s window. */
xp_ep_abort_flags *xp_ep_p2p_abort_flags(const xp_ep_call *call, int rank);
/** An index for `phase` that kernels can carry. */
int xp_ep_p2p_phase_index(const char *phase);

/* Entries of xp_ep_backend. */

xp_status xp_ep_p2p_cuda_create(xp_ep_group *group);
void xp_ep_p2p_cuda_destroy(xp_ep_group *group);

/** XP_ECOMM on this rank, and soon on all, when a barrier has failed. Never waits. */
XP_NODISCARD xp_status xp_ep_p2p_cuda_failure(const xp_ep_group *group);
/** After a failure, between threads: until no rank's kernels can use this one's memory any more. Not
 * between begin and end of a call. */
void xp_ep_p2p_cuda_drain(const xp_ep_group *group);

#endif
