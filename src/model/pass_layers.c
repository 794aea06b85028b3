/* All layers of a pass in order, between the copies of its batch and of its losses. */
#include "model/model_internal.h"

static xp_embed_args embed_args(xp_model *model) {
    return (xp_embed_args){.n_tokens = model->n_tokens,
                           .dim = model->arch.dim,
                           .vocab = model->arch.vocab_size,
                           .ids = model->work.tokens,
                           .table = model->embed.data,
                           .x = xp_acts_get(&model->acts, 0, XP_ACT_INPUT),
                           .dtype = model->args.dtype,
                           .dtable_dtype = model->args.grad_dtype};
}

static xp_status layer_hook(xp_status (*hook)(void *, int, bool), const xp_model_hooks *hooks,
                            int layer, bool backward) {
    return hook ? hook(hooks->context, layer, backward) : XP_OK;
}

static xp_status group_needed(const xp_model_hooks *hooks, int group) {
    return hooks->group_needed && group >= 0 ? hooks->group_needed(hooks->context, group) : XP_OK;
}

/* Of the embedding's gradient, what needs the tokens alone. */
static xp_status sort_on_side(xp_model *model, xp_stream *stream) {
    xp_embed_args embed = embed_args(model);
    xp_stream *side;
    embed.scratch = model->work.embed_scratch;
    embed.sort_only = true;
    XP_TRY(xp_side_fork(model->side, stream, &side));
    return model->ops->embed_backward(side, &embed);
}

xp_status xp_pass_forward(xp_model *model, const xp_model_hooks *hooks, xp_stream *stream) {
    const xp_embed_args embed = embed_args(model);
    XP_TRY(group_needed(hooks, model->embed_group));
    if (model->side)
        XP_TRY(sort_on_side(model, stream));
    XP_TRY(model->ops->embed_forward(stream, &embed));
    for (int i = 0; i < model->arch.n_layers; i++) {
        XP_TRY(layer_hook(hooks->before_layer, hooks, i, false));
        XP_TRY(group_needed(hooks, model->layers[i].dense_group));
        XP_TRY(group_needed(hooks, model->layers[i].expert_group));
        XP_TRY(xp_layer_forward(model, i, NULL, stream));
        XP_TRY(layer_hook(hooks->after_layer, hooks, i, false));
    }
    return group_needed(hooks, model->head_group);
}

static xp_status embed_backward(xp_model *model, xp_stream *stream) {
    xp_embed_args embed = embed_args(model);
    embed.sorted = model->side != NULL;
    embed.dx = model->work.d_residual;
    embed.dtable = model->embed.grad;
    /* A tied head has already written its part. */
    embed.acc = model->accumulate || model->arch.tie_embeddings;
    embed.scratch = model->work.embed_scratch;
    return model->ops->embed_backward(stream, &embed);
}

static xp_status group_ready(const xp_model_hooks *hooks, int group) {
    return hooks->group_ready ? hooks->group_ready(hooks->context, group) : XP_OK;
}

/* Before a layer's last weight gradients, what they hide: the exchange of the layer below; behind the
 * lowest layer, the embedding's gradient, whose reduction is the longest of the dense ones. */
static xp_status begin_below(xp_model *model, int layer, const xp_model_hooks *hooks,
                             xp_stream *stream) {
    if (layer > 0)
        return xp_ffn_backward_begin(model, layer - 1, stream);
    XP_TRY(embed_backward(model, stream));
    return group_ready(hooks, model->embed_group);
}

xp_status xp_pass_run(xp_model *model, const xp_model_hooks *hooks, xp_stream *stream) {
    XP_TRY(xp_pass_forward(model, hooks, stream));
    XP_TRY(xp_head_pass(model, stream));
    XP_TRY(group_ready(hooks, model->head_group));
    for (int i = (int)model->arch.n_layers - 1; i >= 0; i--) {
        XP_TRY(layer_hook(hooks->before_layer, hooks, i, true));
        XP_TRY(xp_layer_backward(model, i, hooks, stream));
        XP_TRY(begin_below(model, i, hooks, stream));
        XP_TRY(xp_layer_backward_end(model, i, hooks, stream));
        XP_TRY(layer_hook(hooks->after_layer, hooks, i, true));
    }
    return xp_side_join(model->side, stream);
}
