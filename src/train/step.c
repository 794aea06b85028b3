#include <math.h>
#include <stdio.h>
#include <string.h>
#include "checkpoint/agree.h"
#include "core/file.h"
#include "model/balance.h"
#include "train/run_state.h"

/* What ranks add up once a step, in one all-reduce. */
enum {
    SUM_LOSS,
    SUM_AUX,
    SUM_Z,
    SUM_STOP,
    SUM_EP_BYTES,
    SUM_EP_OVERFLOW,
    SUM_EP_WAIT,
    SUM_RECOMPUTED,
    SUM_RECOMPUTED_OVERFLOW,
    N_SUMS
};

static xp_status sum_over_ranks(xp_trainer *t, void *data, int64_t n, xp_dtype dtype,
                                const char *phase) {
    if (!t->world)
        return XP_OK;
    xp_comm_set_phase(t->world, phase);
    double began = t->trace ? xp_time_s() : 0;
    XP_TRY(xp_comm_all_reduce(t->world, data, data, n, dtype, XP_SUM, NULL));
    if (t->trace)
        xp_trace_phase(t->trace, phase, began, xp_time_s());
    return XP_OK;
}

/* ---- forward and backward ---------------------------------------------------------------- */

static xp_status group_ready(void *context, int group) {
    xp_trainer *t = context;
    return xp_shard_group_ready(t->run.shard, group, t->run.stream);
}

static xp_status group_needed(void *context, int group) {
    xp_trainer *t = context;
    return xp_shard_group_needed(t->run.shard, group, t->run.stream);
}

static xp_status layer_begins(void *context, int layer, bool backward) {
    const xp_trainer *t = context;
    xp_trace_layer_begins(t->trace, layer, backward);
    return XP_OK;
}

static xp_status layer_ends(void *context, int layer, bool backward) {
    const xp_trainer *t = context;
    xp_trace_layer_ends(t->trace, layer, backward);
    return XP_OK;
}

static xp_status queue_microbatch(xp_trainer *t, int64_t m, float loss_scale) {
    const xp_batch *batch = &t->batches.items[m];
    bool last = m == t->batches.n - 1, has_peers = xp_shard_has_peers(t->run.shard);
    xp_model_batch args = {
        .n_rows = batch->n_rows,
        .seq_len = batch->seq_len,
        .tokens = batch->tokens,
        .targets = batch->targets,
        .positions = batch->positions,
        .doc_start = t->run.document_attention ? batch->doc_start : NULL,
        .loss_scale = loss_scale,
        .accumulate = m > 0,
    };
    xp_model_hooks hooks = {.context = t,
                            .before_layer = t->trace ? layer_begins : NULL,
                            .after_layer = t->trace ? layer_ends : NULL,
                            .group_needed = has_peers ? group_needed : NULL,
                            .group_ready = has_peers && last ? group_ready : NULL};
    XP_TRY(xp_model_forward_backward(t->run.model, &args, &hooks, t->run.stream));
    return xp_model_queue_loss(t->run.model, t->run.stream, t->losses + m * XP_MODEL_N_LOSSES);
}

static size_t n_counts(const xp_trainer *t) {
    return (size_t)t->n_moe_layers * (size_t)t->run.arch.n_experts;
}

/* Reduced gradients; the losses and the assignments of each expert on their way to the host. */
static xp_status queue_gradients(xp_trainer *t, int64_t n_valid) {
    int64_t *counts = xp_model_expert_counts(t->run.model);
    size_t bytes = n_counts(t) * sizeof *counts;
    xp_model_reset_stats(t->run.model);
    if (bytes > 0)
        XP_TRY(xp_zero(t->run.stream, counts, bytes));
    float loss_scale = (float)(1 / (double)n_valid);
    for (int64_t m = 0; m < t->batches.n; m++)
        XP_TRY(queue_microbatch(t, m, loss_scale));
    if (bytes > 0)
        XP_TRY(xp_copy(t->run.stream, t->counts, counts, bytes));
    return xp_shard_has_peers(t->run.shard) ? xp_shard_finish_reduce(t->run.shard, t->run.stream)
                                            : XP_OK;
}

static xp_status sum_losses(xp_trainer *t, double sums[N_SUMS]) {
    memset(sums, 0, N_SUMS * sizeof *sums);
    for (int64_t m = 0; m < t->batches.n; m++) {
        const double *losses = t->losses + m * XP_MODEL_N_LOSSES;
        sums[SUM_LOSS] += losses[XP_MODEL_LOSS];
        sums[SUM_AUX] += losses[XP_MODEL_AUX];
        sums[SUM_Z] += losses[XP_MODEL_Z];
    }
    xp_ep_stats stats;
    XP_TRY(xp_model_ep_stats(t->run.model, &stats));
    sums[SUM_EP_BYTES] = (double)stats.bytes_sent_remote;
    sums[SUM_EP_OVERFLOW] = (double)stats.overflow_rows;
    sums[SUM_EP_WAIT] = stats.wait_s;
    const xp_moe_recomputed recomputed = xp_model_recomputed(t->run.model);
    sums[SUM_RECOMPUTED] = (double)recomputed.n_rounds;
    sums[SUM_RECOMPUTED_OVERFLOW] = (double)recomputed.n_overflow;
    sums[SUM_STOP] = atomic_load(&t->shared->stop);
    return sum_over_ranks(t, sums, N_SUMS, XP_F64, "loss all-reduce");
}

/* ---- checks and updates ------------------------------------------------------------------ */

/* Who is to blame for a loss that is not finite. Its logits are not finite then, nor are gradients,
 * and the device has changed nothing: but near the end of fp32 a loss can overflow alone. */
static xp_status blame(xp_trainer *t, double loss, bool *updated) {
    const char *what = isnan(loss) ? "NaN" : "infinite";
    const char *name = NULL;
    double norm = 0;
    xp_status status = xp_shard_grad_norm(t->run.shard, t->run.stream, &norm);
    if (status == XP_OK) {
        *updated = true;
        return xp_error(XP_ENUMERIC, "the loss is %s, though all gradients are finite", what);
    }
    if (status != XP_ENUMERIC)
        return status;
    char gradient[256];
    snprintf(gradient, sizeof gradient, "%s", xp_last_error());
    XP_TRY(xp_shard_find_bad_param(t->run.shard, t->run.stream, &name));
    if (name)
        return xp_error(XP_ENUMERIC, "the loss is %s: parameter %s is not finite", what, name);
    return xp_error(XP_ENUMERIC, "the loss is %s: %s", what, gradient);
}

static xp_status check_and_norm(xp_trainer *t, int64_t step, double loss, double *norm) {
    bool updated = false;
    xp_status status = isfinite(loss) ? xp_shard_read_norm(t->run.shard, t->run.stream, norm)
                                      : blame(t, loss, &updated);
    if (status != XP_ENUMERIC)
        return status;
    t->all_failed = true; /* the loss and the norm are of all ranks */
    xp_error_context(status, "step %lld", (long long)step);
    return xp_error(status,
                    "%s; stopped %s. A lower optimizer.lr, a longer warm-up or a "
                    "lower training.max_norm may help",
                    xp_last_error(),
                    updated ? "before anything of this step was saved" : "before the update");
}

/* Counts of all ranks; bias update; load figures. */
static xp_status balance(xp_trainer *t) {
    if (t->n_moe_layers == 0)
        return XP_OK;
    int n_experts = t->run.arch.n_experts;
    size_t n = n_counts(t);
    XP_TRY(sum_over_ranks(t, t->counts, (int64_t)n, XP_I64, "expert load all-reduce"));
    bool trains = xp_run_has_balance(t->config, &t->run.arch);
    for (int l = 0; l < t->n_moe_layers; l++) {
        const int64_t *counts = t->counts + (size_t)l * (size_t)n_experts;
        if (trains)
            xp_balance_update(n_experts, t->config->moe.load_balance_coeff, counts,
                              t->bias + (size_t)l * (size_t)n_experts);
        t->load_max[l] = xp_balance_max_over_mean(n_experts, counts);
        t->load_share[l] = xp_balance_busiest_share(n_experts, t->run.mesh.ep_size, counts);
    }
    if (!trains)
        return XP_OK;
    return xp_copy(t->run.stream, xp_model_expert_bias(t->run.model), t->bias, n * sizeof(float));
}

/* The device itself looks at the norm, for whether and how far the weights move: the host need not
 * wait between gradients and update. Later, results are read behind the event: what comes after it,
 * the update, is not waited for. */
static xp_status queue_update(xp_trainer *t, double lr) {
    XP_TRY(xp_shard_queue_norm(t->run.shard, t->run.stream));
    XP_TRY(xp_event_record(t->results, t->run.stream));
    xp_adam_step args = {
        .lr = (float)lr,
        .beta1 = (float)t->config->optimizer.beta1,
        .beta2 = (float)t->config->optimizer.beta2,
        .eps = (float)t->config->optimizer.eps,
        .weight_decay = (float)t->config->optimizer.weight_decay,
        .decay_matrices_only = !t->config->optimizer.decay_norms,
        .step = ++t->optimizer_steps,
        .max_norm = t->config->training.max_norm,
    };
    xp_model_abort_flags(t->run.model, args.stop);
    return xp_shard_update(t->run.shard, &args, t->run.stream);
}

static xp_status wait_for_results(xp_trainer *t) {
    XP_TRY(xp_event_sync(t->results, t->run.stream));
    return t->world ? xp_comm_async_error(t->world) : XP_OK;
}

/* ---- the step ---------------------------------------------------------------------------- */

static void fill_record(xp_trainer *t, const double sums[N_SUMS], xp_step_record *record) {
    record->step = t->step;
    record->tokens_seen = t->tokens_seen;
    record->rows_seen = t->rows_seen;
    record->aux_loss = sums[SUM_AUX];
    record->z_loss = sums[SUM_Z];
    record->n_moe_layers = t->n_moe_layers;
    record->load_max_over_mean = t->load_max;
    record->load_busiest_rank_share = t->load_share;
    record->ep_bytes = (int64_t)sums[SUM_EP_BYTES];
    record->ep_overflow_rows = (int64_t)sums[SUM_EP_OVERFLOW];
    record->ep_wait_s = sums[SUM_EP_WAIT] / t->n_ranks;
    record->moe_recomputed_rounds = (int64_t)sums[SUM_RECOMPUTED];
    record->moe_recomputed_overflow = (int64_t)sums[SUM_RECOMPUTED_OVERFLOW];
    record->validation_loss = NAN;
}

/* The step's rows; the tokens that count, of all ranks. One rank's failure is everyone's, at the
 * same place: a save that is under way can still be published. */
static xp_status read_data(xp_trainer *t, int64_t step, int64_t *n_valid) {
    xp_status status = xp_step_batches_read(t->loader, &t->batches);
    int64_t sums[2] = {status == XP_OK ? t->batches.n_valid : 0, status != XP_OK};
    if (!t->world)
        XP_TRY(status);
    char text[1024];
    snprintf(text, sizeof text, "%s", xp_last_error());
    xp_status summed = sum_over_ranks(t, sums, 2, XP_I64, "token count all-reduce");
    if (summed != XP_OK) /* the own cause first */
        return status != XP_OK ? xp_error(status, "%s", text) : summed;
    *n_valid = sums[0];
    t->all_failed = sums[1] > 0 || *n_valid == 0;
    if (sums[1] > 0)
        return xp_agree(t->world, status != XP_OK ? xp_error(status, "%s", text) : XP_OK);
    return *n_valid > 0
               ? XP_OK
               : xp_error(XP_EINVAL, "step %lld: no token of the global batch has a target",
                          (long long)step);
}

xp_status xp_trainer_step(xp_trainer *t, xp_step_record *record) {
    int64_t step = t->step + 1;
    double sums[N_SUMS];
    double began = xp_time_s();
    int64_t n_syncs = xp_device_n_syncs(t->device), n_allocs = xp_device_n_allocs(t->device);
    int64_t n_valid = 0;
    XP_TRY(read_data(t, step, &n_valid));
    double have_data = xp_time_s();
    XP_TRY(queue_gradients(t, n_valid));
    double have_gradients = xp_time_s();
    record->lr =
        t->config->optimizer.lr * xp_schedule_factor(&t->schedule, t->step - t->schedule_from);
    XP_TRY(queue_update(t, record->lr));
    /* All is queued: what the host waits for from here on, the device does not. */
    record->n_host_syncs = xp_device_n_syncs(t->device) - n_syncs;
    XP_TRY(wait_for_results(t));
    if (!xp_device_host_accessible(t->device))
        have_gradients = xp_time_s();
    XP_TRY(sum_losses(t, sums));
    record->loss = sums[SUM_LOSS] / (double)n_valid;
    XP_TRY(check_and_norm(t, step, record->loss, &record->grad_norm));
    XP_TRY(balance(t));
    double done = xp_time_s();
    t->step = step;
    t->rows_seen += t->run.global_batch;
    t->tokens_seen += t->run.global_batch * t->run.seq_len;
    t->stop = sums[SUM_STOP] > 0;
    fill_record(t, sums, record);
    record->data_time_s = have_data - began;
    record->forward_backward_s = have_gradients - have_data;
    record->optimizer_s = done - have_gradients;
    record->n_allocs = xp_device_n_allocs(t->device) - n_allocs;
    return XP_OK;
}
