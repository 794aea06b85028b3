/** What other layers of expar use of expert parallelism besides the public calls of expar/ep.h. */
#ifndef XP_EP_INTERNAL_H
#define XP_EP_INTERNAL_H

#include "expar/ep.h"

/* Limits of the GPU kernels: a warp handles a token with one lane per assignment, and per-rank sets
 * are one 32-bit mask. */
#define XP_EP_GPU_MAX_TOP_K 32
#define XP_EP_GPU_MAX_RANKS 32

/**
 * Device bytes that the communicators of a group's slots reserve where each rank has a GPU of its
 * own. For predictions.
 */
size_t xp_ep_comm_bytes(const xp_ep_config *config, int n_ranks);

/**
 * Resolve XP_EP_AUTO: p2p where the ranks can address each other's memory, else a2a.
 * @return XP_OK; XP_ENOTSUP: p2p was asked for and the ranks span several nodes
 */
XP_NODISCARD xp_status xp_ep_choose_transport(xp_ep_config *config, bool peer_accessible);
/** Collective (nothing for one rank). XP_EINVAL on every rank when a config is not rank 0's. */
XP_NODISCARD xp_status xp_ep_check_same_config(xp_comm *comm, const xp_ep_config *config);

/**
 * How many rounds calls with this plan need, as far as the host knows without waiting.
 * @param[out] n_rounds  those of the routing, or max_rounds when only the device knows
 * @return true: they are the routing's, and the same on every rank
 */
bool xp_ep_plan_known_rounds(const xp_ep_plan *plan, int64_t *n_rounds);

/**
 * SMs that dispatch and combine of the calls from here on take, instead of config.num_sms; 0: as the
 * config says. GPUs only; results do not depend on it, and ranks need not agree.
 */
void xp_ep_group_set_sms(xp_ep_group *group, int n_sms);

/**
 * Two words that the device can read. They become non-zero when the device has refused a routing,
 * or a barrier between ranks has failed: whatever was computed since is wrong, and the optimizer
 * must not use it. NULL for groups whose host learns of both before the call returns.
 */
void xp_ep_group_abort_flags(const xp_ep_group *group, const int32_t *flags[2]);

#endif
