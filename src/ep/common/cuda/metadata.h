/** The metadata exchange on a GPU: collectives on device memory. */
#ifndef XP_EP_COMMON_CUDA_METADATA_H
#define XP_EP_COMMON_CUDA_METADATA_H

#include "ep/common/cuda/plan.h"
#include "ep/common/metadata.h"

/** What the host reads of a plan besides the counts: with them, and with several rounds once more at
 * the end. */
typedef struct xp_ep_cuda_more {
    const xp_ep_cuda_fetch *first, *last;
    int n_first, n_last; /* up to 2 each */
} xp_ep_cuda_more;

/**
 * Build the plan. The host has counts and assignments by round afterwards: it waits for the device
 * once, and once more with several rounds.
 * @return XP_EINVAL on every rank when one rank's routing is refused
 */
XP_NODISCARD xp_status xp_ep_cuda_metadata_build(const xp_ep_call *call, cudaStream_t stream,
                                                 xp_ep_cuda_plan *view,
                                                 const xp_ep_metadata *metadata,
                                                 const xp_ep_cuda_more *more);
/** Assignments of this call's round to or from rank r, in this rank's numbering. */
xp_ep_span xp_ep_cuda_send_assignments(const xp_ep_call *call, int r);
xp_ep_span xp_ep_cuda_recv_assignments(const xp_ep_call *call, int r);
/** Items of `size` bytes, one per assignment of this call's round; the recv side's lie packed.
 * @param combine  from the recv side back to the send side */
XP_NODISCARD xp_status xp_ep_cuda_exchange_items(const xp_ep_call *call,
                                                 const xp_ep_metadata *metadata, bool combine,
                                                 int64_t size, const void *send, void *recv);
/** Gradients of weights to their sources and into d_topk_weight; nothing without d_weight. */
XP_NODISCARD xp_status xp_ep_cuda_metadata_weights(const xp_ep_call *call,
                                                   const xp_ep_metadata *metadata,
                                                   const xp_ep_combine_args *args);

#endif
