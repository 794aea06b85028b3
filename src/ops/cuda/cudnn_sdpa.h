/**
 * Attention by cuDNN: bf16, causal over whole rows. One plan a shape, made when its scratch is
 * asked for (before step 1) or at first use, and kept with the device.
 */
#ifndef XP_OPS_CUDA_CUDNN_SDPA_H
#define XP_OPS_CUDA_CUDNN_SDPA_H

#include "device/cuda/cuda_device.h"
#include "ops/ops.h"

/** One shape. Leading dimensions count elements. Shapes are compared as bytes: no padding. */
typedef struct xp_sdpa_shape {
    int64_t n_rows, seq_len, n_heads, n_kv_heads, head_dim;
    int64_t ldq, ldk, ldv, ldo, lddq, lddk, lddv; /* the last three: backward, else 0 */
    int64_t backward;                             /* 0, 1 */
    int64_t deterministic;                        /* 0, 1; backward: the same bits on every run */
} xp_sdpa_shape;

typedef struct xp_sdpa_plan xp_sdpa_plan;

/**
 * The device's plan for a shape.
 * @return NULL when cuDNN is missing, or has no engine for the shape; *why then says so (static
 * storage, or as long as the device)
 */
xp_sdpa_plan *xp_sdpa_plan_get(xp_cuda_device *device, const xp_sdpa_shape *shape,
                               const char **why);
/** Bytes of scratch that a run of the plan needs. */
size_t xp_sdpa_plan_scratch(const xp_sdpa_plan *plan);
/** Pointers are those of rows [0, shape.n_rows) of the call. */
xp_status xp_sdpa_plan_forward(xp_sdpa_plan *plan, cudaStream_t stream,
                               const xp_attention_args *args);
xp_status xp_sdpa_plan_backward(xp_sdpa_plan *plan, cudaStream_t stream,
                                const xp_attention_backward_args *args);

#endif
