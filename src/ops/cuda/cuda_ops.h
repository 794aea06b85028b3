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

/** The complete table, for xp_cuda_backend.ops. */
extern const xp_ops xp_cuda_ops;
/**
 * Plain activation kernels, one element a thread in fp64: what the fused ones are measured against
 * on this device. Only the two silu_gate_prob entries are set.
 */
extern const xp_ops xp_cuda_plain_activation;

/* The CUDA column of XP_OP_LIST. */
#define XP_CUDA_PROTOTYPE(entry, queued, args_type, check, cuda)                                   \
    xp_status cuda(xp_stream *stream, const args_type *args);
XP_OP_LIST(XP_CUDA_PROTOTYPE)
#undef XP_CUDA_PROTOTYPE

/* attention.c chooses between attention_forward_hopper.cu and attention_hopper.cu (backward),
 * cudnn_sdpa.c, attention_mma.cu and attention_plain.cu */
size_t xp_cuda_attention_scratch(const xp_device *device, const xp_attention_args *args,
                                 bool backward);
/** For xp_cuda_backend.attention_by_cudnn. */
bool xp_cuda_attention_by_cudnn(xp_device *device, const void *args, const char **why);
/**
 * bf16, 1 to 65535 rows and heads, heads of 8 to 128 elements in eights, pointers and leading
 * dimensions of 16 bytes. Backward takes xp_attention_sums_bytes() of scratch.
 */
xp_status xp_cuda_attention_mma_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_mma_backward(xp_stream *stream, const xp_attention_backward_args *args);
/** sm_90a, bf16, heads of 64 or 128 elements, pointers and leading dimensions of 16 bytes. Backward
 * takes xp_attention_hopper_plan() of scratch; forward wants a positive scale and
 * xp_attention_forward_plan(). */
xp_status xp_cuda_attention_hopper_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_hopper_backward(xp_stream *stream,
                                            const xp_attention_backward_args *args);
xp_status xp_cuda_attention_plain_forward(xp_stream *stream, const xp_attention_args *args);
xp_status xp_cuda_attention_plain_backward(xp_stream *stream,
                                           const xp_attention_backward_args *args);

/** grouped_silu.cu; see xp_ops.fuses_silu. */
bool xp_cuda_fuses_silu(const xp_device *device, const xp_silu_sizes *sizes);

xp_status xp_cuda_silu_gate_prob_plain_forward(xp_stream *stream,
                                               const xp_silu_gate_prob_args *args);
xp_status xp_cuda_silu_gate_prob_plain_backward(xp_stream *stream,
                                                const xp_silu_gate_prob_backward_args *args);

#ifdef __cplusplus
}
#endif
#endif
