/* The table of CUDA entries; ops.c calls them behind its argument checks. */
#include "ops/cuda/cuda_ops.h"

const xp_ops xp_cuda_ops = {
    .name = "cuda",
    .gemm = {.gemm = xp_cuda_gemm,
             .grouped_forward = xp_cuda_grouped_forward,
             .grouped_dgrad = xp_cuda_grouped_dgrad,
             .grouped_wgrad = xp_cuda_grouped_wgrad},
    .norm = {.embed_forward = xp_cuda_embed_forward,
             .embed_backward = xp_cuda_embed_backward,
             .rmsnorm_forward = xp_cuda_rmsnorm_forward,
             .rmsnorm_apply = xp_cuda_rmsnorm_apply,
             .rmsnorm_backward = xp_cuda_rmsnorm_backward,
             .qknorm_rope_forward = xp_cuda_qknorm_rope_forward,
             .qknorm_rope_backward = xp_cuda_qknorm_rope_backward},
    .attention = {.forward = xp_cuda_attention_forward,
                  .backward = xp_cuda_attention_backward,
                  .scratch = xp_cuda_attention_scratch},
    .moe = {.router_forward = xp_cuda_router_forward,
            .router_backward = xp_cuda_router_backward,
            .router_losses = xp_cuda_router_losses,
            .histogram = xp_cuda_histogram,
            .silu_gate_prob_forward = xp_cuda_silu_gate_prob_forward,
            .silu_gate_prob_backward = xp_cuda_silu_gate_prob_backward},
    .loss = {.cross_entropy = xp_cuda_cross_entropy},
    .optim = {.adamw = xp_cuda_adamw,
              .clip_scale = xp_cuda_clip_scale,
              .sum_squares = xp_cuda_sum_squares,
              .axpy = xp_cuda_axpy,
              .sum = xp_cuda_sum,
              .draw = xp_cuda_draw},
};

const xp_moe_ops xp_cuda_plain_activation = {
    .silu_gate_prob_forward = xp_cuda_silu_gate_prob_plain_forward,
    .silu_gate_prob_backward = xp_cuda_silu_gate_prob_plain_backward,
};
