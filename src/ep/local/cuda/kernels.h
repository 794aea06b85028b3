/** Row kernels of a group of one rank. */
#ifndef XP_EP_LOCAL_CUDA_KERNELS_H
#define XP_EP_LOCAL_CUDA_KERNELS_H

#include "ep/common/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Load the kernels declared here: see ep/common/cuda/state.h. */
xp_status xp_ep_cuda_load_local_rows(void);

/** recv[i] = x[send_token[first row of the round + i]]. */
xp_status xp_ep_cuda_local_dispatch(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                    const xp_ep_cuda_rows *rows, const void *x, void *recv);
/** out[t] = both levels of the sum over the token's expert rows of this round. */
xp_status xp_ep_cuda_local_combine(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                   const xp_ep_cuda_rows *rows, const void *y, void *out);
/** d_topk_weight at (token, k) of every assignment of the round = d_weight of its assignment row. */
xp_status xp_ep_cuda_local_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                   const float *d_weight, float *d_topk_weight);

#ifdef __cplusplus
}
#endif
#endif
