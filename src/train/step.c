#include <math.h>
#include <string.h>
#include "core/file.h"
#include "train/balance.h"
#include "train/run_state.h"

/* What ranks add up once a step, in one all-reduce. */
enum { SUM_LOSS, SUM_AUX, SUM_Z, SUM_STOP, SUM_EP_BYTES, SUM_EP_OVERFLOW, SUM_EP_WAIT, N_SUMS };

static xp_status sum_over_ranks(xp_trainer *t, void *data, int64_t n, xp_dtype dtype,
                                const char *phase) {
    if (!t->world)
        return XP_OK;
    xp_comm_set_phase(t->world, phase);
    return xp_comm_all_reduce(t->world, data, data, n, dtype, XP_SUM, NULL);
}

/* ---- forward and backward ---------------------------------------------------------------- */

static xp_status group_ready(void *context, int group) {
    xp_trainer *t = context;
    return xp_shard_group_ready(t->run.shard, group, t->run.stream);
}

static xp_status run_microbatch(xp_trainer *t, int64_t m, float loss_scale, double *sums) {
    const xp_batch *batch = &t->batches.items[m];
    bool last = m == t->batches.n - 1;
    const char *attention = t->config->training.attention;
    xp_model_batch args = {
        .n_rows = batch->n_rows,
        .seq_len = batch->seq_len,
        .tokens = batch->tokens,
        .targets = batch->targets,
        .positions = batch->positions,
        .doc_start = attention && strcmp(attention, "document") == 0 ? batch->doc_start : NULL,
        .loss_scale = loss_scale,
        .accumulate = m > 0,
    };
    xp_model_hooks hooks = {.context = t, .group_ready = last ? group_ready : NULL};
    xp_model_loss loss;
    XP_TRY(xp_model_forward_backward(t->run.model, &args, &hooks, t->run.stream));
    XP_TRY(xp_model_read_loss(t->run.model, t->run.stream, &loss));
    sums[SUM_LOSS] += loss.loss_sum;
    sums[SUM_AUX] += loss.aux_loss;
    sums[SUM_Z] += loss.z_loss;
    return XP_OK;
}

static xp_status zero_counts(xp_trainer *t) {
    if (t->n_moe_layers == 0)
        return XP_OK;
    size_t n = (size_t)t->n_moe_layers * (size_t)t->run.arch.n_experts;
    return xp_zero(t->run.stream, xp_model_expert_counts(t->run.model), n * sizeof(int64_t));
}

static xp_status forward_backward(xp_trainer *t, int64_t n_valid, double sums[N_SUMS]) {
    memset(sums, 0, N_SUMS * sizeof *sums);
    xp_model_reset_stats(t->run.model);
    XP_TRY(zero_counts(t));
    float loss_scale = (float)(1 / (double)n_valid);
    for (int64_t m = 0; m < t->batches.n; m++)
        XP_TRY(run_microbatch(t, m, loss_scale, sums));
    XP_TRY(xp_shard_finish_reduce(t->run.shard, t->run.stream));
    xp_ep_stats stats;
    XP_TRY(xp_model_ep_stats(t->run.model, &stats));
    sums[SUM_EP_BYTES] = (double)stats.bytes_sent_remote;
    sums[SUM_EP_OVERFLOW] = (double)stats.overflow_rows;
    sums[SUM_EP_WAIT] = stats.wait_s;
    sums[SUM_STOP] = atomic_load(&t->shared->stop);
    return sum_over_ranks(t, sums, N_SUMS, XP_F64, "loss all-reduce");
}

/* ---- checks and updates ------------------------------------------------------------------ */

/* The loss is not finite: say which tensor is to blame. Nothing has been updated. */
static xp_status blame(xp_trainer *t, double loss) {
    const char *what = isnan(loss) ? "NaN" : "infinite";
    const char *name = NULL;
    XP_TRY(xp_shard_find_bad_param(t->run.shard, t->run.stream, &name));
    if (name)
        return xp_error(XP_ENUMERIC, "the loss is %s: parameter %s is not finite", what, name);
    double norm = 0;
    xp_status status = xp_shard_grad_norm(t->run.shard, t->run.stream, &norm);
    if (status == XP_ENUMERIC)
        return xp_error_context(status, "the loss is %s", what);
    XP_TRY(status);
    return xp_error(XP_ENUMERIC, "the loss is %s, though parameters and gradients are finite",
                    what);
}

static xp_status check_and_norm(xp_trainer *t, int64_t step, double loss, double *norm) {
    xp_status status =
        isfinite(loss) ? xp_shard_grad_norm(t->run.shard, t->run.stream, norm) : blame(t, loss);
    if (status != XP_ENUMERIC)
        return status;
    xp_error_context(status, "step %lld", (long long)step);
    return xp_error(status,
                    "%s; stopped before the update. A lower optimizer.lr, a longer warm-up or a "
                    "lower training.max_norm may help",
                    xp_last_error());
}

/* Counts of all ranks; bias update; load figures. */
static xp_status balance(xp_trainer *t) {
    if (t->n_moe_layers == 0)
        return XP_OK;
    int n_experts = t->run.arch.n_experts;
    size_t n = (size_t)t->n_moe_layers * (size_t)n_experts;
    XP_TRY(xp_copy(t->run.stream, t->counts, xp_model_expert_counts(t->run.model),
                   n * sizeof(int64_t)));
    XP_TRY(xp_stream_sync(t->run.stream));
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

static xp_status update(xp_trainer *t, int64_t step, double norm, double lr) {
    double max_norm = t->config->training.max_norm;
    double clip = max_norm > 0 ? max_norm / (norm + 1e-6) : 1;
    xp_adam_step args = {
        .lr = (float)lr,
        .beta1 = (float)t->config->optimizer.beta1,
        .beta2 = (float)t->config->optimizer.beta2,
        .eps = (float)t->config->optimizer.eps,
        .weight_decay = (float)t->config->optimizer.weight_decay,
        .step = step,
        .grad_scale = clip < 1 ? clip : 1,
    };
    XP_TRY(xp_shard_update(t->run.shard, &args, t->run.stream));
    return xp_stream_sync(t->run.stream);
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
    record->validation_loss = NAN;
}

xp_status xp_trainer_step(xp_trainer *t, xp_step_record *record) {
    int64_t step = t->step + 1;
    double sums[N_SUMS];
    double began = xp_time_s();
    XP_TRY(xp_step_batches_read(t->loader, &t->batches));
    int64_t n_valid = t->batches.n_valid;
    XP_TRY(sum_over_ranks(t, &n_valid, 1, XP_I64, "token count all-reduce"));
    if (n_valid == 0)
        return xp_error(XP_EINVAL, "step %lld: no token of the global batch has a target",
                        (long long)step);
    double have_data = xp_time_s();
    XP_TRY(forward_backward(t, n_valid, sums));
    double have_gradients = xp_time_s();
    record->loss = sums[SUM_LOSS] / (double)n_valid;
    XP_TRY(check_and_norm(t, step, record->loss, &record->grad_norm));
    XP_TRY(balance(t));
    record->lr =
        t->config->optimizer.lr * xp_schedule_factor(&t->schedule, t->step - t->schedule_from);
    XP_TRY(update(t, step, record->grad_norm, record->lr));
    double done = xp_time_s();
    t->step = step;
    t->rows_seen += t->run.global_batch;
    t->tokens_seen += t->run.global_batch * t->run.seq_len;
    t->stop = sums[SUM_STOP] > 0;
    fill_record(t, sums, record);
    record->data_time_s = have_data - began;
    record->forward_backward_s = have_gradients - have_data;
    record->optimizer_s = done - have_gradients;
    return XP_OK;
}
