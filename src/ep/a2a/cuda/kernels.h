/** Row kernels of the a2a transport: assignment rows between tensors and the buffers of an
 * all-to-all. */
#ifndef XP_EP_A2A_CUDA_KERNELS_H
#define XP_EP_A2A_CUDA_KERNELS_H

#include "ep/common/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Load the kernels declared here: see ep/common/cuda/state.h. */
xp_status xp_ep_cuda_load_a2a_rows(void);

/** out[i] = the token row of send assignment i, for assignments of the round. */
xp_status xp_ep_cuda_pack_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *x, void *out);
/** recv = the first assignment's row of every recv row; `in` has a row for each recv assignment of
 * the round. */
xp_status xp_ep_cuda_unpack_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                 const xp_ep_cuda_rows *rows, const void *in, void *recv);
/** in[i] = the expert row of recv assignment i of the round. */
xp_status xp_ep_cuda_pack_assignments(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                      const xp_ep_cuda_rows *rows, const void *y, void *in);
/** out[t] = both levels of the sum over the token's assignment rows, one row a send assignment. */
xp_status xp_ep_cuda_combine_assignments(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                         const xp_ep_cuda_rows *rows, const void *assignments,
                                         void *out);

#ifdef __cplusplus
}
#endif
#endif
