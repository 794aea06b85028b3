/** The host's half of building plans on a GPU. */
#ifndef XP_EP_COMMON_CUDA_PLAN_H
#define XP_EP_COMMON_CUDA_PLAN_H

#include "ep/common/cuda/state.h"

/** The kernels' view of a plan, without routing. */
xp_ep_cuda_plan xp_ep_cuda_plan_view(const xp_ep_call *call);
/**
 * Begin a build: the plan is not valid, its rounds are max_rounds (all are launched, empty ones
 * leave at once). A routing that cannot even be read counts as no tokens; bad_kind tells the
 * device, which tells the other ranks.
 */
xp_ep_cuda_plan xp_ep_cuda_plan_start(const xp_ep_call *call, const xp_ep_routing *routing);
/** End it. @return XP_EINVAL when this rank's routing could not be read; else the plan is valid */
XP_NODISCARD xp_status xp_ep_cuda_plan_finish(const xp_ep_call *call, const xp_ep_cuda_plan *view);

/** A copy from device memory to page-locked memory. */
typedef struct xp_ep_cuda_fetch {
    void *to;
    const void *from;
    size_t n_bytes;
} xp_ep_cuda_fetch;
/** Make the copies and wait for the stream; counted as one wait of the host. */
XP_NODISCARD xp_status xp_ep_cuda_fetch_all(const xp_ep_call *call, const xp_ep_cuda_fetch *all,
                                            int n);
/** Copy what plan_wait says to plan->host and wait for the plan's stream. */
XP_NODISCARD xp_status xp_ep_cuda_plan_fetch(xp_ep_plan *plan);
/** From plan->host. XP_EINVAL: a rank's routing was refused. */
XP_NODISCARD xp_status xp_ep_cuda_plan_counts(const xp_ep_plan *plan, xp_ep_counts *counts);

/* Entries of xp_ep_backend. */

/** The arrays and plan->host. */
xp_status xp_ep_cuda_plan_create(xp_ep_plan *plan);
void xp_ep_cuda_plan_destroy(xp_ep_plan *plan);
xp_status xp_ep_cuda_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts);

#endif
