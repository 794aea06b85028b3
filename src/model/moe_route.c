/* The router: fp32 logits, scores and assignments; its gradient from the routing weights and the two
 * extra losses. */
#include "model/moe_core_internal.h"

static xp_gemm_args gemm_args(int64_t m, int64_t n, int64_t k, const void *a, const void *b,
                              void *c) {
    return (xp_gemm_args){.m = m,
                          .n = n,
                          .k = k,
                          .a = a,
                          .b = b,
                          .c = c,
                          .ldc = n,
                          .ab_dtype = XP_F32,
                          .c_dtype = XP_F32,
                          .alpha = 1.0F};
}

/* Gradients of the extra losses' inputs; the losses themselves are added in forward only (losses
 * not NULL). */
static xp_status extra_losses(xp_moe_core *core, const xp_moe_pass *pass, double *losses,
                              xp_stream *stream) {
    const xp_moe_core_args *args = &core->args;
    bool aux = args->aux_coeff != 0.0, z = args->z_coeff != 0.0;
    if (!aux && !z)
        return XP_OK;
    const xp_router_losses_args extra = {.n_tokens = pass->n_tokens,
                                         .seq_len = pass->seq_len,
                                         .n_experts = args->n_experts,
                                         .top_k = args->top_k,
                                         .scores = pass->saved->scores,
                                         .topk_idx = pass->saved->topk_idx,
                                         .targets = pass->targets,
                                         .loss_scale = pass->loss_scale,
                                         .aux_coeff = (float)args->aux_coeff,
                                         .z_coeff = (float)args->z_coeff,
                                         .lse = z ? pass->saved->router_lse : NULL,
                                         .aux_density = aux ? pass->saved->aux_density : NULL,
                                         .losses = losses};
    return core->ops->router_losses(stream, &extra);
}

static xp_status route(xp_moe_core *core, const xp_moe_pass *pass, double *losses,
                       xp_stream *stream) {
    const xp_moe_core_args *args = &core->args;
    xp_moe_saved *saved = pass->saved;
    /* Products of bf16 values are exact in fp32, so this is x and Wg upcast without the copies. */
    xp_gemm_args gemm = gemm_args(pass->n_tokens, args->n_experts, args->dim, pass->x,
                                  pass->weights->gate, saved->scores);
    gemm.trans_b = true;
    gemm.lda = gemm.ldb = args->dim;
    gemm.ab_dtype = args->dtype;
    XP_TRY(core->ops->gemm(stream, &gemm));
    const xp_router_args router = {.n_tokens = pass->n_tokens,
                                   .n_experts = args->n_experts,
                                   .top_k = args->top_k,
                                   .score_func = args->score_func,
                                   .route_norm = args->route_norm,
                                   .route_scale = (float)args->route_scale,
                                   .logits = saved->scores,
                                   .bias = pass->weights->bias,
                                   .forced = core->forced,
                                   .scores = saved->scores,
                                   .topk_idx = saved->topk_idx,
                                   .topk_weight = saved->topk_weight,
                                   .lse = args->z_coeff != 0.0 ? saved->router_lse : NULL};
    XP_TRY(core->ops->router_forward(stream, &router));
    return extra_losses(core, pass, losses, stream);
}

xp_status xp_moe_route(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    XP_TRY(route(core, pass, pass->losses, stream));
    if (!pass->counts)
        return XP_OK;
    const xp_histogram_args histogram = {.n = pass->n_tokens * core->args.top_k,
                                         .n_experts = core->args.n_experts,
                                         .ids = pass->saved->topk_idx,
                                         .counts = pass->counts,
                                         .acc = true};
    xp_stream *side;
    XP_TRY(xp_side_fork(pass->side, stream, &side));
    return core->ops->histogram(side, &histogram);
}

xp_status xp_moe_core_reroute(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    return route(core, pass, NULL, stream);
}

/* d_gate (+)= dlogits^T x, dx += dlogits gate, of fp32 rows. */
static xp_status linear_backward_f32(xp_moe_core *core, const xp_moe_pass *pass,
                                     xp_stream *stream) {
    const xp_moe_core_args *args = &core->args;
    const xp_moe_weights *w = pass->weights;
    xp_gemm_args d_gate =
        gemm_args(args->n_experts, args->dim, pass->n_tokens, core->d_logits, pass->x, w->d_gate);
    d_gate.trans_a = true;
    d_gate.lda = args->n_experts;
    d_gate.ldb = args->dim;
    d_gate.acc = pass->accumulate;
    xp_stream *side;
    XP_TRY(xp_side_fork(pass->side, stream, &side));
    XP_TRY(core->ops->gemm(side, &d_gate));
    xp_gemm_args dx =
        gemm_args(pass->n_tokens, args->dim, args->n_experts, core->d_logits, w->gate, pass->dx);
    dx.lda = args->n_experts;
    dx.ldb = args->dim;
    dx.acc = true;
    return core->ops->gemm(stream, &dx);
}

static xp_status linear_backward(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    const xp_moe_core_args *args = &core->args;
    if (args->dtype == XP_F32)
        return linear_backward_f32(core, pass, stream);
    xp_router_linear_args linear = {.n_tokens = pass->n_tokens,
                                    .dim = args->dim,
                                    .n_experts = args->n_experts,
                                    .dlogits = core->d_logits,
                                    .x = pass->x,
                                    .gate = pass->weights->gate,
                                    .dx = pass->dx,
                                    .d_gate = pass->weights->d_gate,
                                    .grad_dtype = args->grad_dtype,
                                    .acc = pass->accumulate,
                                    .scratch = core->router_scratch};
    if (!pass->side)
        return core->ops->router_linear_backward(stream, &linear);
    xp_stream *side;
    linear.part = XP_ROUTER_ROWS;
    XP_TRY(core->ops->router_linear_backward(stream, &linear));
    XP_TRY(xp_side_fork(pass->side, stream, &side));
    linear.part = XP_ROUTER_GATE;
    return core->ops->router_linear_backward(side, &linear);
}

xp_status xp_moe_route_backward(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    const xp_moe_core_args *args = &core->args;
    const xp_moe_saved *saved = pass->saved;
    const xp_router_backward_args router = {
        .n_tokens = pass->n_tokens,
        .n_experts = args->n_experts,
        .top_k = args->top_k,
        .score_func = args->score_func,
        .route_norm = args->route_norm,
        .route_scale = (float)args->route_scale,
        .scores = saved->scores,
        .topk_idx = saved->topk_idx,
        .d_topk_weight = core->d_topk_weight,
        .seq_len = pass->seq_len,
        .aux_density = args->aux_coeff != 0.0 ? saved->aux_density : NULL,
        .lse = args->z_coeff != 0.0 ? saved->router_lse : NULL,
        .z_scale = 2.0F * (float)args->z_coeff * pass->loss_scale,
        .dlogits = core->d_logits};
    XP_TRY(core->ops->router_backward(stream, &router));
    return linear_backward(core, pass, stream);
}
