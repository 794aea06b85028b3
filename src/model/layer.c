/* A transformer block: attention here, the FFN in ffn.c. Norms take the residual sum before them.
 */
#include "model/model_internal.h"

#include <math.h>

typedef struct widths {
    int64_t dim, q, kv, qkv;
} widths;

static widths widths_of(const xp_arch *arch) {
    int64_t q = (int64_t)arch->n_heads * arch->head_dim;
    int64_t kv = (int64_t)arch->n_kv_heads * arch->head_dim;
    return (widths){.dim = arch->dim, .q = q, .kv = kv, .qkv = q + 2 * kv};
}

float xp_attention_scale(const xp_arch *arch) {
    return 1.0F / sqrtf((float)arch->head_dim);
}

static xp_qknorm_rope_args rope_args(xp_model *model, int layer, const float *rope) {
    const xp_layer *weights = &model->layers[layer];
    const xp_arch *arch = &model->arch;
    return (xp_qknorm_rope_args){.n_tokens = model->n_tokens,
                                 .n_heads = arch->n_heads,
                                 .n_kv_heads = arch->n_kv_heads,
                                 .head_dim = arch->head_dim,
                                 .eps = (float)arch->norm_eps,
                                 .qkv = xp_acts_get(&model->acts, layer, XP_ACT_QKV),
                                 .q_norm = weights->q_norm.data,
                                 .k_norm = weights->k_norm.data,
                                 .positions = model->work.positions,
                                 .rope = rope,
                                 .q = model->work.q,
                                 .k = model->work.k,
                                 .dtype = model->args.dtype};
}

static xp_attention_args attention_args(xp_model *model, int layer) {
    const xp_arch *arch = &model->arch;
    widths w = widths_of(arch);
    const char *qkv = xp_acts_get(&model->acts, layer, XP_ACT_QKV);
    return (xp_attention_args){.n_rows = model->n_rows,
                               .seq_len = model->seq_len,
                               .n_heads = arch->n_heads,
                               .n_kv_heads = arch->n_kv_heads,
                               .head_dim = arch->head_dim,
                               .scale = xp_attention_scale(arch),
                               .q = model->work.q,
                               .k = model->work.k,
                               .v = xp_offset(qkv, w.q + w.kv, model->args.dtype),
                               .ldq = w.q,
                               .ldk = w.kv,
                               .ldv = w.qkv,
                               .ldo = w.q,
                               .doc_start = model->has_doc_start ? model->work.doc_start : NULL,
                               .out = xp_acts_get(&model->acts, layer, XP_ACT_ATTENTION),
                               .lse = xp_acts_get(&model->acts, layer, XP_ACT_LSE),
                               .dtype = model->args.dtype,
                               .scratch = model->work.attention_scratch,
                               .scratch_bytes = model->work.attention_scratch_bytes};
}

/* normed -> qkv -> q, k -> attention output -> branch */
static xp_status attention_forward(xp_model *model, int layer, const xp_attend *attend,
                                   xp_stream *stream) {
    const xp_layer *weights = &model->layers[layer];
    xp_model_work *work = &model->work;
    widths w = widths_of(&model->arch);
    void *qkv = xp_acts_get(&model->acts, layer, XP_ACT_QKV);
    void *out = xp_acts_get(&model->acts, layer, XP_ACT_ATTENTION);
    XP_TRY(xp_linear_forward(model, model->n_tokens, w.qkv, w.dim, work->normed, weights->wqkv.data,
                             qkv, stream));
    const xp_qknorm_rope_args rope = rope_args(model, layer, attend ? attend->rope : work->rope);
    XP_TRY(model->ops->qknorm_rope_forward(stream, &rope));
    const xp_attention_args attention = attention_args(model, layer);
    if (attend)
        XP_TRY(attend->attend(attend->context, layer, work->q, work->k, attention.v, w.qkv, out,
                              stream));
    else
        XP_TRY(model->ops->attention_forward(stream, &attention));
    return xp_linear_forward(model, model->n_tokens, w.dim, w.q, out, weights->wo.data,
                             work->branch, stream);
}

/* input + branch -> mid, norm of it -> normed */
static xp_status enter_ffn(xp_model *model, int layer, xp_stream *stream) {
    return xp_norm_forward(model, xp_acts_get(&model->acts, layer, XP_ACT_INPUT),
                           model->work.branch, xp_acts_get(&model->acts, layer, XP_ACT_MID),
                           &model->layers[layer].post_norm, model->work.normed,
                           xp_acts_get(&model->acts, layer, XP_ACT_MID_RSTD), stream);
}

xp_status xp_layer_forward(xp_model *model, int layer, const xp_attend *attend, xp_stream *stream) {
    void *input = xp_acts_get(&model->acts, layer, XP_ACT_INPUT);
    const void *before = layer > 0 ? xp_acts_get(&model->acts, layer - 1, XP_ACT_MID) : input;
    /* The previous layer's last sum is made here, inside the norm that reads it. */
    XP_TRY(xp_norm_forward(model, before, layer > 0 ? model->work.branch : NULL, input,
                           &model->layers[layer].input_norm, model->work.normed,
                           xp_acts_get(&model->acts, layer, XP_ACT_INPUT_RSTD), stream));
    XP_TRY(attention_forward(model, layer, attend, stream));
    XP_TRY(enter_ffn(model, layer, stream));
    return xp_ffn_forward(model, layer, stream);
}

/* From the layer's input everything that backward reads, up to the FFN's input in work.normed. */
static xp_status recompute(xp_model *model, int layer, xp_stream *stream) {
    XP_TRY(xp_norm_apply(model, xp_acts_get(&model->acts, layer, XP_ACT_INPUT),
                         xp_acts_get(&model->acts, layer, XP_ACT_INPUT_RSTD),
                         &model->layers[layer].input_norm, model->work.normed, stream));
    XP_TRY(attention_forward(model, layer, NULL, stream));
    return enter_ffn(model, layer, stream);
}

static xp_status wqkv_gradient(xp_model *model, int layer, xp_stream *stream) {
    const widths w = widths_of(&model->arch);
    return xp_linear_wgrad(model, w.qkv, w.dim, model->n_tokens, model->work.dqkv,
                           model->work.normed, model->layers[layer].wqkv.grad, model->accumulate,
                           stream);
}

/* d_residual -> gradients of wo, attention, norms of q and k; leaves d_normed, and dqkv and normed for
 * the gradient of wqkv, which a side stream has computed */
static xp_status attention_backward(xp_model *model, int layer, xp_stream *stream) {
    const xp_layer *weights = &model->layers[layer];
    xp_model_work *work = &model->work;
    widths w = widths_of(&model->arch);
    const int64_t n = model->n_tokens;
    const void *out = xp_acts_get(&model->acts, layer, XP_ACT_ATTENTION);
    xp_stream *side;
    XP_TRY(xp_side_fork(model->side, stream, &side));
    XP_TRY(xp_linear_wgrad(model, w.dim, w.q, n, work->d_residual, out, weights->wo.grad,
                           model->accumulate, side));
    XP_TRY(xp_side_mark(model->side, XP_SIDE_RESIDUAL));
    XP_TRY(xp_linear_dgrad(model, n, w.q, w.dim, work->d_residual, weights->wo.data,
                           work->d_attention, stream));
    const xp_qknorm_rope_args rope = rope_args(model, layer, work->rope);
    /* After a full recomputation q and k are still there. */
    if (model->acts.saved[XP_ACT_QKV] && !model->side)
        XP_TRY(model->ops->qknorm_rope_forward(stream, &rope));
    XP_TRY(xp_side_wait(model->side, XP_SIDE_QK, stream));
    const xp_attention_backward_args attention = {
        .forward = attention_args(model, layer),
        .dout = work->d_attention,
        .dq = work->dq,
        .dk = work->dk,
        .dv = xp_offset(work->dqkv, w.q + w.kv, model->args.dtype),
        .lddq = w.q,
        .lddk = w.kv,
        .lddv = w.qkv};
    XP_TRY(model->ops->attention_backward(stream, &attention));
    xp_qknorm_rope_backward_args norm = {.forward = rope,
                                         .dq = work->dq,
                                         .dk = work->dk,
                                         .dqkv = work->dqkv,
                                         .dq_norm = weights->q_norm.grad,
                                         .dk_norm = weights->k_norm.grad,
                                         .dw_dtype = model->args.grad_dtype,
                                         .acc = model->accumulate,
                                         .scratch = work->norm_scratch,
                                         .part = model->side ? XP_NORM_ROWS : XP_NORM_ALL};
    XP_TRY(xp_side_wait(model->side, XP_SIDE_NORM, stream));
    XP_TRY(model->ops->qknorm_rope_backward(stream, &norm));
    XP_TRY(xp_norm_apply(model, xp_acts_get(&model->acts, layer, XP_ACT_INPUT),
                         xp_acts_get(&model->acts, layer, XP_ACT_INPUT_RSTD), &weights->input_norm,
                         work->normed, side));
    if (model->side) {
        XP_TRY(xp_side_fork(model->side, stream, &side));
        norm.part = XP_NORM_WEIGHTS;
        XP_TRY(model->ops->qknorm_rope_backward(side, &norm));
        XP_TRY(xp_side_mark(model->side, XP_SIDE_NORM));
        XP_TRY(wqkv_gradient(model, layer, side));
    }
    return xp_linear_dgrad(model, n, w.dim, w.qkv, work->dqkv, weights->wqkv.data, work->d_normed,
                           stream);
}

static xp_status ready(const xp_model_hooks *hooks, int group) {
    if (group < 0 || !hooks || !hooks->group_ready)
        return XP_OK;
    return hooks->group_ready(hooks->context, group);
}

/* Before the layer's weight gradients, so that attention does not wait for them. What read q, k and dqkv
 * last, the attention above and the gradient of its wqkv, is behind the side stream already. */
static xp_status q_and_k_on_side(xp_model *model, int layer, xp_stream *stream) {
    const xp_qknorm_rope_args rope = rope_args(model, layer, model->work.rope);
    XP_TRY(model->ops->qknorm_rope_forward(xp_side_stream(model->side, stream), &rope));
    return xp_side_mark(model->side, XP_SIDE_QK);
}

xp_status xp_layer_backward(xp_model *model, int layer, const xp_model_hooks *hooks,
                            xp_stream *stream) {
    const xp_layer *weights = &model->layers[layer];
    xp_model_work *work = &model->work;
    const void *mid = xp_acts_get(&model->acts, layer, XP_ACT_MID);
    const float *mid_rstd = xp_acts_get(&model->acts, layer, XP_ACT_MID_RSTD);
    if (!model->acts.saved[XP_ACT_MID])
        XP_TRY(recompute(model, layer, stream));
    else
        XP_TRY(xp_norm_apply(model, mid, mid_rstd, &weights->post_norm, work->normed,
                             xp_side_stream(model->side, stream)));
    if (model->side)
        XP_TRY(q_and_k_on_side(model, layer, stream));
    XP_TRY(xp_ffn_recompute(model, layer, stream));
    XP_TRY(xp_ffn_backward(model, layer, stream));
    if (!xp_ffn_is_deferred(model))
        XP_TRY(ready(hooks, weights->expert_group));
    XP_TRY(xp_side_wait(model->side, XP_SIDE_RESIDUAL, stream));
    XP_TRY(xp_norm_backward(model, mid, mid_rstd, &weights->post_norm, work->d_normed,
                            work->d_residual, work->d_residual, stream));
    XP_TRY(attention_backward(model, layer, stream));
    XP_TRY(xp_side_wait(model->side, XP_SIDE_RESIDUAL, stream));
    return xp_norm_backward(model, xp_acts_get(&model->acts, layer, XP_ACT_INPUT),
                            xp_acts_get(&model->acts, layer, XP_ACT_INPUT_RSTD),
                            &weights->input_norm, work->d_normed, work->d_residual,
                            work->d_residual, stream);
}

xp_status xp_layer_backward_end(xp_model *model, int layer, const xp_model_hooks *hooks,
                                xp_stream *stream) {
    const xp_layer *weights = &model->layers[layer];
    const bool deferred = xp_ffn_is_deferred(model);
    XP_TRY(xp_ffn_backward_end(model, stream));
    if (deferred)
        XP_TRY(ready(hooks, weights->expert_group));
    if (!model->side)
        XP_TRY(wqkv_gradient(model, layer, stream));
    return ready(hooks, weights->dense_group);
}
