/** QK-norm + RoPE for bf16 heads of 64, 128 or 256 with both norms: a warp works on a token. */
#ifndef XP_OPS_CUDA_QKNORM_ROPE_TOKENS_H
#define XP_OPS_CUDA_QKNORM_ROPE_TOKENS_H

#include <cuda_runtime.h>
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Whether the kernels below serve these arguments: type, head size, norms, alignment. */
bool xp_cuda_qknorm_tokens_serve(const xp_qknorm_rope_args *args);
xp_status xp_cuda_qknorm_tokens_forward(cudaStream_t stream, const xp_qknorm_rope_args *args);
/** dqkv, and into args->scratch the partial sums of dq_norm and dk_norm: [xp_ops_n_gpu_blocks(T), 2C]. */
xp_status xp_cuda_qknorm_tokens_backward(cudaStream_t stream,
                                         const xp_qknorm_rope_backward_args *args);

#ifdef __cplusplus
}
#endif
#endif
