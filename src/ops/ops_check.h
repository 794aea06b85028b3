/** Argument checks of the op tables: XP_EINVAL names the op and what is wrong. Sizes of 0 pass, and
 * then pointers may be NULL. */
#ifndef XP_OPS_OPS_CHECK_H
#define XP_OPS_OPS_CHECK_H

#include "ops/ops.h"

xp_status xp_ops_check_gemm(const xp_gemm_args *args);
typedef enum xp_grouped_kind {
    XP_GROUPED_FORWARD = 0,
    XP_GROUPED_DGRAD,
    XP_GROUPED_WGRAD
} xp_grouped_kind;
xp_status xp_ops_check_grouped(const xp_grouped_args *args, xp_grouped_kind kind);

xp_status xp_ops_check_embed(const xp_embed_args *args, bool backward);
xp_status xp_ops_check_rmsnorm(const xp_rmsnorm_args *args);
xp_status xp_ops_check_rmsnorm_apply(const xp_rmsnorm_apply_args *args);
xp_status xp_ops_check_rmsnorm_backward(const xp_rmsnorm_backward_args *args);
xp_status xp_ops_check_qknorm_rope(const xp_qknorm_rope_args *args);
xp_status xp_ops_check_qknorm_rope_backward(const xp_qknorm_rope_backward_args *args);

xp_status xp_ops_check_attention(const xp_attention_args *args);
xp_status xp_ops_check_attention_backward(const xp_attention_backward_args *args);

xp_status xp_ops_check_router(const xp_router_args *args);
xp_status xp_ops_check_router_backward(const xp_router_backward_args *args);
xp_status xp_ops_check_router_losses(const xp_router_losses_args *args);
xp_status xp_ops_check_histogram(const xp_histogram_args *args);
xp_status xp_ops_check_silu(const xp_silu_gate_prob_args *args, bool need_h);
xp_status xp_ops_check_silu_backward(const xp_silu_gate_prob_backward_args *args);

xp_status xp_ops_check_cross_entropy(const xp_cross_entropy_args *args);
xp_status xp_ops_check_adamw(const xp_adamw_args *args);
xp_status xp_ops_check_clip_scale(const xp_clip_scale_args *args);
xp_status xp_ops_check_sum_squares(const xp_sum_squares_args *args);
xp_status xp_ops_check_axpy(const xp_axpy_args *args);
xp_status xp_ops_check_draw(const xp_draw_args *args);
xp_status xp_ops_check_sum(const float *x, int64_t n, const double *out);

#endif
