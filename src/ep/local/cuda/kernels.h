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
/** What a combine reads and writes: see xp_ep_combine_args. */
typedef struct xp_ep_cuda_local_sums {
    const void *y;
    const float *d_weight;
    void *out;
    float *d_topk_weight;
} xp_ep_cuda_local_sums;
/** out[t] = both levels of the sum over the token's expert rows of this round. With one round sums->d_topk_weight
 * too (of -1: 0), where it and sums->d_weight are not NULL. */
xp_status xp_ep_cuda_local_combine(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                   const xp_ep_cuda_rows *rows, const xp_ep_cuda_local_sums *sums);
/** d_topk_weight at (token, k) of every assignment of the round = d_weight of its assignment row. */
xp_status xp_ep_cuda_local_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                   const float *d_weight, float *d_topk_weight);

#ifdef __cplusplus
}
#endif
#endif
