/** RMSNorm backward of rows that a block holds in one or two 16-byte vectors a thread. */
#ifndef XP_OPS_CUDA_RMSNORM_BACKWARD_RING_H
#define XP_OPS_CUDA_RMSNORM_BACKWARD_RING_H

#include <cuda_runtime.h>
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Whether the kernel serves these arguments: width, alignment. */
bool xp_cuda_rmsnorm_ring_serves(const xp_rmsnorm_backward_args *args);
/** dx, and into args->scratch the partial sums of dw: [xp_ops_n_gpu_blocks(N), D]. */
xp_status xp_cuda_rmsnorm_ring_backward(cudaStream_t stream, const xp_rmsnorm_backward_args *args);

#ifdef __cplusplus
}
#endif
#endif
