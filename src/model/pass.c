/* One microbatch forward, and back; what callers read afterwards. */
#include "device/device_internal.h"
#include "ep/internal.h"
#include "model/model_internal.h"
#include "model/pass_graph.h"

static xp_status check_range(const char *what, const int32_t *values, int64_t n, int32_t low,
                             int64_t high) {
    bool bad = false;
    for (int64_t i = 0; i < n; i++) /* no early end: the compiler checks several values at once */
        bad |= values[i] < low || values[i] >= high;
    for (int64_t i = 0; bad && i < n; i++) {
        if (values[i] < low || values[i] >= high)
            return xp_error(XP_EINVAL, "batch: %s[%lld] = %d is not in [%d, %lld)", what,
                            (long long)i, values[i], low, (long long)high);
    }
    return XP_OK;
}

static xp_status check_batch(const xp_model *model, const xp_model_batch *batch) {
    const xp_model_args *args = &model->args;
    if (batch->n_rows < 1 || batch->seq_len < 1 || batch->n_rows > args->n_rows ||
        batch->seq_len > args->seq_len)
        return xp_error(XP_EINVAL,
                        "batch: %lld rows of %lld tokens, but the model was made for %lld of %lld",
                        (long long)batch->n_rows, (long long)batch->seq_len,
                        (long long)args->n_rows, (long long)args->seq_len);
    if (batch->want_logits && !model->work.all_logits)
        return xp_error(XP_EINVAL, "batch: logits need a model made with keep_logits");
    const int64_t n = batch->n_rows * batch->seq_len;
    XP_TRY(check_range("tokens", batch->tokens, n, 0, model->arch.vocab_size));
    XP_TRY(check_range("targets", batch->targets, n, INT32_MIN, model->arch.vocab_size));
    XP_TRY(check_range("positions", batch->positions, n, 0, args->seq_len));
    if (args->document_attention && batch->doc_start)
        XP_TRY(check_range("doc_start", batch->doc_start, n, 0, batch->seq_len));
    return XP_OK;
}

/* Passes are queued without waiting for each other, so each has staging memory of its own until the
 * stream has read it. Only a host that is more passes ahead than there are slots waits here. */
static xp_status queue_loss_scale(xp_model *model, float loss_scale, xp_stream *stream) {
    const int slot = (int)(model->n_passes % XP_MODEL_SCALE_SLOTS);
    bool copied = true;
    if (model->n_passes++ >= XP_MODEL_SCALE_SLOTS)
        XP_TRY(xp_event_query(model->scale_copied[slot], &copied));
    if (!copied)
        XP_TRY(xp_event_sync(model->scale_copied[slot], stream));
    float *staged = &model->staged->loss_scales[slot];
    *staged = loss_scale;
    XP_TRY(xp_copy(stream, model->work.loss_scale, staged, sizeof *staged));
    return xp_event_record(model->scale_copied[slot], stream);
}

/* Batches that lie as the device's arrays do go in one copy. */
static xp_status copy_batch(xp_model *model, const xp_model_batch *batch, xp_stream *stream) {
    const xp_model_work *work = &model->work;
    const int64_t n = model->n_tokens;
    const size_t n_bytes = (size_t)n * sizeof(int32_t);
    if (batch->targets == batch->tokens + n && batch->positions == batch->targets + n &&
        work->targets == work->tokens + n && work->positions == work->targets + n) {
        XP_TRY(xp_copy(stream, work->tokens, batch->tokens, 3 * n_bytes));
    } else {
        XP_TRY(xp_copy(stream, work->tokens, batch->tokens, n_bytes));
        XP_TRY(xp_copy(stream, work->targets, batch->targets, n_bytes));
        XP_TRY(xp_copy(stream, work->positions, batch->positions, n_bytes));
    }
    return model->has_doc_start ? xp_copy(stream, work->doc_start, batch->doc_start, n_bytes)
                                : XP_OK;
}

/* The batch to the device, the losses to zero. */
static xp_status begin(xp_model *model, const xp_model_batch *batch, bool training,
                       xp_stream *stream) {
    XP_TRY(check_batch(model, batch));
    xp_model_work *work = &model->work;
    model->n_rows = batch->n_rows;
    model->seq_len = batch->seq_len;
    model->n_tokens = batch->n_rows * batch->seq_len;
    model->training = training;
    model->accumulate = batch->accumulate;
    model->loss_scale = batch->loss_scale;
    model->has_doc_start = model->args.document_attention && batch->doc_start;
    model->has_logits = batch->want_logits;
    model->n_valid = 0;
    model->side = NULL;
    for (int64_t i = 0; i < model->n_tokens; i++)
        model->n_valid += batch->targets[i] >= 0;
    XP_TRY(copy_batch(model, batch, stream));
    XP_TRY(queue_loss_scale(model, batch->loss_scale, stream));
    if (model->core)
        xp_moe_core_begin(model->core);
    return xp_zero(stream, work->losses, XP_MODEL_N_LOSSES * sizeof(double));
}

xp_status xp_model_forward_backward(xp_model *model, const xp_model_batch *batch,
                                    const xp_model_hooks *hooks, xp_stream *stream) {
    static const xp_model_hooks none = {0};
    if (model->args.inference)
        return xp_error(XP_EINVAL, "model: made for inference, it has no backward");
    if (!hooks)
        hooks = &none;
    XP_TRY(begin(model, batch, true, stream));
    return model->graphs ? xp_pass_graphs_run(model, hooks, stream)
                         : xp_pass_run(model, hooks, stream);
}

/* Where a layer's weight gradients read what no other layer's backward writes before they are through. */
static bool suits_side_stream(const xp_model *model) {
    return !model->device->without_side_stream && model->args.recompute == XP_RECOMPUTE_NONE &&
           !xp_model_reuses_for_grads(model) &&
           (!model->core || xp_moe_core_has_one_job(model->core));
}

xp_status xp_model_use_graphs(xp_model *model) {
    if (model->args.inference)
        return xp_error(XP_ENOTSUP, "a model made for inference has no training pass");
    if (!xp_graph_is_supported(model->device))
        return xp_error(XP_ENOTSUP, "%s has no CUDA graphs", xp_device_name(model->device));
    if (model->core && model->args.ep_comm && xp_comm_size(model->args.ep_comm) > 1)
        return xp_error(XP_ENOTSUP, "the exchange between ranks of experts cannot be recorded");
    if (model->graphs)
        return XP_OK;
    XP_TRY(xp_pass_graphs_create(&model->graphs));
    return suits_side_stream(model) ? xp_side_create(model->device, &model->side_stream) : XP_OK;
}

int64_t xp_model_n_graph_passes(const xp_model *model) {
    return model->graphs ? xp_pass_graphs_n_launched(model->graphs) : 0;
}

const char *xp_model_graph_failure(const xp_model *model) {
    return model->graphs ? xp_pass_graphs_failure(model->graphs) : NULL;
}

xp_status xp_model_forward(xp_model *model, const xp_model_batch *batch, xp_stream *stream) {
    static const xp_model_hooks none = {0};
    XP_TRY(begin(model, batch, false, stream));
    XP_TRY(xp_pass_forward(model, &none, stream));
    XP_TRY(xp_head_pass(model, stream));
    if (!model->has_logits)
        return XP_OK;
    return xp_head_logits(model, 0, model->n_tokens, model->work.all_logits, stream);
}

xp_status xp_model_queue_loss(xp_model *model, xp_stream *stream, double sums[XP_MODEL_N_LOSSES]) {
    return xp_copy(stream, sums, model->work.losses, XP_MODEL_N_LOSSES * sizeof(double));
}

xp_status xp_model_read_loss(xp_model *model, xp_stream *stream, xp_model_loss *loss) {
    const double *sums = model->staged->losses;
    XP_TRY(xp_model_queue_loss(model, stream, model->staged->losses));
    XP_TRY(xp_stream_sync(stream));
    *loss = (xp_model_loss){.loss_sum = sums[XP_MODEL_LOSS],
                            .n_valid = model->n_valid,
                            .aux_loss = sums[XP_MODEL_AUX],
                            .z_loss = sums[XP_MODEL_Z]};
    return XP_OK;
}

const float *xp_model_logits(const xp_model *model) {
    return model->has_logits ? model->work.all_logits : NULL;
}

const xp_param_table *xp_model_params(const xp_model *model) {
    return model->table;
}

void *xp_model_param_data(const xp_model *model) {
    return model->params;
}

void *xp_model_grad_data(const xp_model *model) {
    return model->grads;
}

bool xp_model_reuses_for_grads(const xp_model *model) {
    return model->grads && !model->own_grads;
}

float *xp_model_expert_bias(const xp_model *model) {
    return model->bias;
}

int64_t *xp_model_expert_counts(const xp_model *model) {
    return model->counts;
}

void xp_model_abort_flags(const xp_model *model, const int32_t *flags[2]) {
    flags[0] = flags[1] = NULL;
    if (model->core && xp_moe_core_group(model->core))
        xp_ep_group_abort_flags(xp_moe_core_group(model->core), flags);
}

xp_status xp_model_ep_stats(const xp_model *model, xp_ep_stats *stats) {
    *stats = (xp_ep_stats){0};
    if (!model->core || !xp_moe_core_group(model->core))
        return XP_OK;
    xp_ep_get_stats(xp_moe_core_group(model->core), stats);
    return xp_ep_async_error(xp_moe_core_group(model->core));
}

xp_moe_recomputed xp_model_recomputed(const xp_model *model) {
    return model->core ? xp_moe_core_recomputed(model->core) : (xp_moe_recomputed){0};
}

void xp_model_reset_stats(xp_model *model) {
    if (model->core)
        xp_moe_core_set_recomputed(model->core, (xp_moe_recomputed){0});
    if (model->core && xp_moe_core_group(model->core))
        xp_ep_reset_stats(xp_moe_core_group(model->core));
}
