/** Plans and gradients of weights over collectives on device memory: what the a2a and the
 * hierarchical transport have in common on GPUs. */
#ifndef XP_EP_CUDA_MAILBOX_H
#define XP_EP_CUDA_MAILBOX_H

#include "ep/cuda/cuda_group.h"
#include "ep/transport/mailbox.h"

/** What the host reads of a plan besides the counts: with them, and when there are several rounds
 * once more at the end. */
typedef struct xp_ep_cuda_more {
    const xp_ep_cuda_fetch *first, *last;
    int n_first, n_last; /* up to 2 each */
} xp_ep_cuda_more;

/**
 * Build the plan; the host has blocks and assignments by round afterwards. It waits for the device once,
 * and once more for several rounds.
 * @return XP_EINVAL on every rank when one's routing is refused
 */
XP_NODISCARD xp_status xp_ep_cuda_mailbox_build(const xp_ep_step *step, cudaStream_t stream,
                                                xp_ep_cuda_plan *view, const xp_ep_mailbox *box,
                                                const xp_ep_cuda_more *more);
/** Assignments of this step's round to or from rank r, in this rank's numbering. */
xp_ep_span xp_ep_cuda_send_assignments(const xp_ep_step *step, int r);
xp_ep_span xp_ep_cuda_recv_assignments(const xp_ep_step *step, int r);
/** Things of `size` bytes, one an assignment of this step's round: the recv side's lie packed. */
XP_NODISCARD xp_status xp_ep_cuda_exchange_assignments(const xp_ep_step *step,
                                                       const xp_ep_mailbox *box, bool home,
                                                       int64_t size, const void *send, void *recv);
/** As xp_ep_mailbox_weights(). */
XP_NODISCARD xp_status xp_ep_cuda_mailbox_weights(const xp_ep_step *step, const xp_ep_mailbox *box,
                                                  const xp_ep_home *home);

#endif
