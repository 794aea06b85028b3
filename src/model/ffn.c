/* The second half of a block: a dense SwiGLU FFN, or experts. */
#include "model/model_internal.h"

static xp_silu_gate_prob_args activation(xp_model *model, int layer) {
    int64_t width = model->arch.hidden_dim;
    void *gate_up = xp_acts_get(&model->acts, layer, XP_ACT_GATE_UP);
    return (xp_silu_gate_prob_args){.n_rows = model->n_tokens,
                                    .dim = width,
                                    .a = gate_up,
                                    .b = xp_offset(gate_up, width, model->args.dtype),
                                    .ld = 2 * width,
                                    .h = model->work.h,
                                    .dtype = model->args.dtype};
}

/* normed -> gate_up */
static xp_status dense_gate_up(xp_model *model, int layer, xp_stream *stream) {
    return xp_linear_forward(model, model->n_tokens, 2 * model->arch.hidden_dim, model->arch.dim,
                             model->work.normed, model->layers[layer].w13.data,
                             xp_acts_get(&model->acts, layer, XP_ACT_GATE_UP), stream);
}

static xp_status dense_forward(xp_model *model, int layer, xp_stream *stream) {
    XP_TRY(dense_gate_up(model, layer, stream));
    const xp_silu_gate_prob_args silu = activation(model, layer);
    XP_TRY(model->ops->silu_gate_prob_forward(stream, &silu));
    return xp_linear_forward(model, model->n_tokens, model->arch.dim, model->arch.hidden_dim,
                             model->work.h, model->layers[layer].w2.data, model->work.branch,
                             stream);
}

static xp_status dense_backward(xp_model *model, int layer, xp_stream *stream) {
    const xp_layer *weights = &model->layers[layer];
    xp_model_work *work = &model->work;
    const int64_t n = model->n_tokens, dim = model->arch.dim, width = model->arch.hidden_dim;
    void *gate_up = xp_acts_get(&model->acts, layer, XP_ACT_GATE_UP);
    /* dh, then in place: h again in dh, da and db in a and b. */
    XP_TRY(
        xp_linear_dgrad(model, n, width, dim, work->d_residual, weights->w2.data, work->h, stream));
    const xp_silu_gate_prob_backward_args silu = {.forward = activation(model, layer),
                                                  .dh = work->h,
                                                  .da = gate_up,
                                                  .db =
                                                      xp_offset(gate_up, width, model->args.dtype),
                                                  .ldd = 2 * width};
    XP_TRY(model->ops->silu_gate_prob_backward(stream, &silu));
    xp_stream *side;
    XP_TRY(xp_side_fork(model->side, stream, &side));
    XP_TRY(xp_linear_wgrad(model, dim, width, n, work->d_residual, work->h, weights->w2.grad,
                           model->accumulate, side));
    XP_TRY(xp_side_mark(model->side, XP_SIDE_RESIDUAL));
    XP_TRY(xp_linear_wgrad(model, 2 * width, dim, n, gate_up, work->normed, weights->w13.grad,
                           model->accumulate, side));
    return xp_linear_dgrad(model, n, dim, 2 * width, gate_up, weights->w13.data, work->d_normed,
                           stream);
}

/* One MoE layer's pass. Counting and losses belong to the forward alone: `forward`. */
static xp_moe_pass moe_pass(xp_model *model, int layer, bool forward) {
    xp_layer *weights = &model->layers[layer];
    xp_model_work *work = &model->work;
    return (xp_moe_pass){
        .n_tokens = model->n_tokens,
        .seq_len = model->seq_len,
        .weights = &weights->moe,
        .saved = &weights->saved,
        .x = work->normed,
        .out = work->branch,
        .d_out = work->d_residual,
        .dx = work->d_normed,
        .targets = work->targets,
        .loss_scale = model->loss_scale,
        .losses = forward ? work->losses + 1 : NULL,
        .counts = forward && model->training ? model->counts + layer * model->arch.n_experts : NULL,
        .accumulate = model->accumulate,
        .defer = true,
        .side = model->side};
}

xp_status xp_ffn_forward(xp_model *model, int layer, xp_stream *stream) {
    if (!model->core)
        return dense_forward(model, layer, stream);
    const xp_moe_pass pass = moe_pass(model, layer, true);
    return xp_moe_core_forward(model->core, &pass, stream);
}

xp_status xp_ffn_backward(xp_model *model, int layer, xp_stream *stream) {
    if (!model->core)
        return dense_backward(model, layer, stream);
    const xp_moe_pass pass = moe_pass(model, layer, false);
    return xp_moe_core_backward(model->core, &pass, stream);
}

xp_status xp_ffn_backward_begin(xp_model *model, int layer, xp_stream *stream) {
    if (!model->core)
        return XP_OK;
    const xp_moe_pass pass = moe_pass(model, layer, false);
    return xp_moe_core_backward_begin(model->core, &pass, stream);
}

bool xp_ffn_is_deferred(const xp_model *model) {
    return model->core && xp_moe_core_is_deferred(model->core);
}

xp_status xp_ffn_backward_end(xp_model *model, xp_stream *stream) {
    return model->core ? xp_moe_core_backward_end(model->core, stream) : XP_OK;
}

xp_status xp_ffn_recompute(xp_model *model, int layer, xp_stream *stream) {
    if (!model->core)
        return model->acts.saved[XP_ACT_GATE_UP] ? XP_OK : dense_gate_up(model, layer, stream);
    if (model->acts.saved[XP_ACT_SCORES])
        return XP_OK;
    const xp_moe_pass pass = moe_pass(model, layer, false);
    return xp_moe_core_reroute(model->core, &pass, stream);
}
