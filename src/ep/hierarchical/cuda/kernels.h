/** Row kernels of the hierarchical transport: rows whose number the host knows. All arrays of `args`
 * are device memory. They are the entries of xp_ep_row_kernels. */
#ifndef XP_EP_HIERARCHICAL_CUDA_KERNELS_H
#define XP_EP_HIERARCHICAL_CUDA_KERNELS_H

#include "ep/common/cuda/kernels.h"
#include "ep/common/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Load the kernels declared here: see ep/common/cuda/state.h. */
xp_status xp_ep_cuda_load_hierarchical_rows(void);

/** Their context. */
typedef struct xp_ep_cuda_launch {
    cudaStream_t stream;
    xp_ep_cuda_rows rows;
} xp_ep_cuda_launch;

xp_status xp_ep_cuda_copy_rows(void *launch, const xp_ep_copy_args *args);
/** Sums of up to 32 rows. */
xp_status xp_ep_cuda_reduce_rows(void *launch, const xp_ep_reduce_args *args);
/** Tokens of up to 32 rows; without row_assignments and expert_rows. */
xp_status xp_ep_cuda_sum_rows(void *launch, const xp_ep_sum_args *args);

#ifdef __cplusplus
}
#endif
#endif
