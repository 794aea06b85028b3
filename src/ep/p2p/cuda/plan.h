/** Plans of a p2p group on GPUs. */
#ifndef XP_EP_P2P_CUDA_PLAN_H
#define XP_EP_P2P_CUDA_PLAN_H

#include "ep/p2p/cuda/state.h"

/**
 * Queue the kernels and barriers of a plan, in the group's mode. The call has begun.
 * @return XP_EINVAL only where the host waits anyway: a rank's routing was refused
 */
XP_NODISCARD xp_status xp_ep_p2p_cuda_build_plan(const xp_ep_call *call, cudaStream_t stream,
                                                 xp_ep_cuda_plan *view);

#endif
