/** Barriers between the ranks of a p2p group on GPUs, in the group's mode. */
#ifndef XP_EP_P2P_CUDA_BARRIER_H
#define XP_EP_P2P_CUDA_BARRIER_H

#include "ep/p2p/cuda/state.h"

/** Which barrier, and what each rank gives the others with it. */
typedef struct xp_ep_barrier {
    p2p_point point;
    int64_t min_rounds; /* see xp_ep_barrier_args */
    bool locks;
    const int32_t *payload; /* n_payload words for rank r at payload + r * stride */
    int64_t n_payload, stride;
    const void *payload_address; /* or this address for everybody */
} xp_ep_barrier;

/** The same for a kernel that makes the barrier itself. */
xp_ep_barrier_args xp_ep_p2p_barrier_args(const xp_ep_call *call, const xp_ep_barrier *barrier);
/** What is queued behind the barrier on any rank sees all that was queued before it on every rank. */
XP_NODISCARD xp_status xp_ep_p2p_cuda_barrier(const xp_ep_call *call, cudaStream_t stream,
                                              const xp_ep_barrier *barrier);
/** XP_EP_SYNC_EVENTS: the barriers of a dispatch or combine and nothing else, for a call that this
 * rank refuses and others make. */
XP_NODISCARD xp_status xp_ep_p2p_join_barriers(const xp_ep_call *call, cudaStream_t stream);

#endif
