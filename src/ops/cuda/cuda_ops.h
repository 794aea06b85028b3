/**
 * The CUDA entries of the op tables, and how this folder is laid out.
 *
 *   table.c       the one table of xp_cuda_backend.ops: names every entry below
 *   NAME.cu       one op (or a family that shares its kernels): kernels first, then the entries
 *   *.cuh         what kernels share: vector loads, sums over warps and blocks (static inline)
 *   libraries.c   cuBLASLt and cuDNN of one device, opened at first use
 *
 * An entry gets arguments that ops.c has checked, launches on the stream and returns: no
 * synchronisation, no allocation. It begins with xp_cuda_enter() and ends with
 * xp_cuda_check(cudaGetLastError(), "name"). No floating-point atomics: sums over many blocks go
 * through partial sums in the caller's scratch that one more kernel adds in block order.
 */
#ifndef XP_OPS_CUDA_CUDA_OPS_H
#define XP_OPS_CUDA_CUDA_OPS_H

#include "device/cuda/cuda_device.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const xp_ops xp_cuda_ops;
/** Plain activation kernels, one element a thread in fp64: what the fused ones are measured
 * against on this device. Only the two silu_gate_prob entries are set. */
extern const xp_moe_ops xp_cuda_plain_activation;

/* gemm.c, grouped_*.cu */
xp_status xp_cuda_gemm(xp_stream *stream, const xp_gemm_args *args);
xp_status xp_cuda_grouped_forward(xp_stream *stream, const xp_grouped_args *args);
xp_status xp_cuda_grouped_dgrad(xp_stream *stream, const xp_grouped_args *args);
xp_status xp_cuda_grouped_wgrad(xp_stream *stream, const xp_grouped_args *args);

/* embed.cu, rmsnorm.cu, rmsnorm_backward.cu, qknorm_rope.cu */
xp_status xp_cuda_embed_forward(xp_stream *stream, const xp_embed_args *args);
xp_status xp_cuda_embed_backward(xp_stream *stream, const xp_embed_args *args);
xp_status xp_cuda_rmsnorm_forward(xp_stream *stream, const xp_rmsnorm_args *args);
xp_status xp_cuda_rmsnorm_apply(xp_stream *stream, const xp_rmsnorm_apply_args *args);
xp_status xp_cuda_rmsnorm_backward(xp_stream *stream, const xp_rmsnorm_backward_args *args);
xp_status xp_cuda_qknorm_rope_forward(xp_stream *stream, const xp_qknorm_rope_args *args);
xp_status xp_cuda_qknorm_rope_backward(xp_stream *stream, const xp_qknorm_rope_backward_args *args);

/* attention.c chooses between cudnn_sdpa.c, attention_mma.cu and attention_plain.cu */
xp_status xp_cuda_attention_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_backward(xp_stream *stream, const xp_attention_backward_args *args);
size_t xp_cuda_attention_scratch(const xp_device *device, const xp_attention_args *args,
                                 bool backward);
/** bf16, 1 to 65535 rows and heads, heads of 8 to 128 elements in eights, pointers and leading
 * dimensions of 16 bytes. Backward takes xp_attention_sums_bytes() of scratch. */
xp_status xp_cuda_attention_mma_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_mma_backward(xp_stream *stream, const xp_attention_backward_args *args);
xp_status xp_cuda_attention_plain_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_plain_backward(xp_stream *stream,
                                           const xp_attention_backward_args *args);

/* router.cu, router_losses.cu, histogram.cu, silu_gate_prob.cu */
xp_status xp_cuda_router_forward(xp_stream *stream, const xp_router_args *args);
xp_status xp_cuda_router_backward(xp_stream *stream, const xp_router_backward_args *args);
xp_status xp_cuda_router_losses(xp_stream *stream, const xp_router_losses_args *args);
xp_status xp_cuda_histogram(xp_stream *stream, const xp_histogram_args *args);
xp_status xp_cuda_silu_gate_prob_forward(xp_stream *stream, const xp_silu_gate_prob_args *args);
xp_status xp_cuda_silu_gate_prob_backward(xp_stream *stream,
                                          const xp_silu_gate_prob_backward_args *args);
xp_status xp_cuda_silu_gate_prob_plain_forward(xp_stream *stream,
                                               const xp_silu_gate_prob_args *args);
xp_status xp_cuda_silu_gate_prob_plain_backward(xp_stream *stream,
                                                const xp_silu_gate_prob_backward_args *args);

/* cross_entropy.cu, elementwise.cu, reductions.cu, draw.cu */
xp_status xp_cuda_cross_entropy(xp_stream *stream, const xp_cross_entropy_args *args);
xp_status xp_cuda_adamw(xp_stream *stream, const xp_adamw_args *args);
xp_status xp_cuda_axpy(xp_stream *stream, const xp_axpy_args *args);
xp_status xp_cuda_clip_scale(xp_stream *stream, const xp_clip_scale_args *args);
xp_status xp_cuda_sum_squares(xp_stream *stream, const xp_sum_squares_args *args);
xp_status xp_cuda_draw(xp_stream *stream, const xp_draw_args *args);
xp_status xp_cuda_sum(xp_stream *stream, const float *x, int64_t n, double *out);

#ifdef __cplusplus
}
#endif
#endif
