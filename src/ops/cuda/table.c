/* The table of CUDA entries, made from XP_OP_LIST; ops.c calls them behind its argument checks. */
#include "ops/cuda/cuda_ops.h"

#define CUDA_ENTRY(entry, queued, args_type, check, cuda) .entry = cuda,

const xp_ops xp_cuda_ops = {
    .name = "cuda",
    XP_OP_LIST(CUDA_ENTRY).attention_scratch = xp_cuda_attention_scratch,
    .fuses_silu = xp_cuda_fuses_silu,
};

const xp_ops xp_cuda_plain_activation = {
    .name = "cuda plain activation",
    .silu_gate_prob_forward = xp_cuda_silu_gate_prob_plain_forward,
    .silu_gate_prob_backward = xp_cuda_silu_gate_prob_plain_backward,
};
