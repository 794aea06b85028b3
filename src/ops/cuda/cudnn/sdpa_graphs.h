/**
 * Attention as a graph of cuDNN's operations. The engines recognise the graph as a whole, so its
 * operations, their order and the types of what passes between them are those that NVIDIA's own
 * frontend library writes for causal attention.
 */
#ifndef XP_OPS_CUDA_CUDNN_SDPA_GRAPHS_H
#define XP_OPS_CUDA_CUDNN_SDPA_GRAPHS_H

#include "ops/cuda/cudnn/cudnn_graph.h"
#include "ops/cuda/cudnn_sdpa.h"

/** Names of the tensors a run passes. */
enum {
    XP_SDPA_Q = 1,
    XP_SDPA_K,
    XP_SDPA_V,
    XP_SDPA_OUT,
    XP_SDPA_LSE,    /* [B, H, S] fp32 */
    XP_SDPA_SCALE,  /* host: of the scores */
    XP_SDPA_HIDDEN, /* host: score of a key that is not seen */
    XP_SDPA_ONE,    /* host: 1 */
    XP_SDPA_DOUT,
    XP_SDPA_DQ,
    XP_SDPA_DK,
    XP_SDPA_DV,
    XP_SDPA_SUMS,   /* scratch [B, H, S] fp32: dout . out */
    XP_SDPA_DQ_SUMS /* scratch [B, H, S, C] fp32, unless deterministic */
};

/** Score of a key that is not seen; what the library's version wants. */
float xp_sdpa_hidden_score(const xp_cudnn_api *api);

/** Add the operations; errors stay in the graph. */
void xp_sdpa_forward_graph(xp_cudnn_graph *graph, const xp_sdpa_shape *shape);
void xp_sdpa_backward_graph(xp_cudnn_graph *graph, const xp_sdpa_shape *shape);

#endif
