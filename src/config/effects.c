/** Settings that were made and change nothing, because another one switches off what they govern. */
#include "config/set.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_KEYS = 12 };

/* What the conditions look at. */
typedef struct situation {
    const xp_config *config;
    xp_config_facts facts;
} situation;

/* Keys that count only while `active` holds. `governs` is the key that decides about it (NULL: none does). */
typedef struct dependence {
    const char *governs;
    bool (*active)(const situation *s);
    const char *because; /* of "have no effect: ..." */
    /* Said even where what the key belongs to was switched off by hand: the run ends without something that
     * was asked for. */
    bool always;
    const char *keys[MAX_KEYS];
} dependence;

static bool saves(const situation *s) {
    return s->config->checkpoint.enable;
}

static bool exports(const situation *s) {
    return !saves(s) || s->config->checkpoint.last_save_in_hf;
}

static bool loads_initial(const situation *s) {
    const char *path = s->config->checkpoint.initial_load_path;
    return (path && path[0]) || s->config->checkpoint.initial_load_in_hf;
}

static bool loads(const situation *s) {
    return saves(s) || loads_initial(s);
}

static bool writes_tensorboard(const situation *s) {
    return s->config->metrics.enable_tensorboard;
}

static bool profiles(const situation *s) {
    return s->config->profiling.enable_profiling;
}

static bool validates(const situation *s) {
    return s->config->validation.enable;
}

static bool forces_balance(const situation *s) {
    return s->config->debug.moe_force_load_balance;
}

static bool decays(const situation *s) {
    return s->config->lr_scheduler.decay_ratio != 0;
}

static bool has_experts(const situation *s) {
    return s->facts.has_experts;
}

/* The conditions below count where those above them hold: a key is named for one cause. */
static bool spreads_experts(const situation *s) {
    return !has_experts(s) || s->config->parallelism.expert_parallel_degree > 1;
}

static bool is_local(const situation *s) {
    return !has_experts(s) || !spreads_experts(s);
}

static bool exchanges_on_gpu(const situation *s) {
    return is_local(s) || s->facts.on_gpu;
}

static bool overlaps_halves(const situation *s) {
    return is_local(s) || s->config->parallelism.expert_parallel_overlap > 0;
}

static bool overlaps_gemms(const situation *s) {
    return is_local(s) || !exchanges_on_gpu(s) ||
           s->config->parallelism.expert_parallel_overlap < 0;
}

static bool decays_weights(const situation *s) {
    return s->config->optimizer.weight_decay != 0;
}

static bool names_tokens(const char *dataset) {
    return dataset && strcmp(dataset, "tokens") == 0;
}

static bool reads_text(const situation *s) {
    const char *other = s->config->validation.enable ? s->config->validation.dataset : NULL;
    return !names_tokens(s->config->training.dataset) || (other && !names_tokens(other));
}

static bool reads_tokens(const situation *s) {
    const char *other = s->config->validation.enable ? s->config->validation.dataset : NULL;
    return names_tokens(s->config->training.dataset) || names_tokens(other);
}

static bool never(const situation *s) {
    (void)s;
    return false;
}

static const dependence dependences[] = {
    {NULL,
     never,
     "every transport here sends a round's rows as one piece",
     true,
     {"deepep.chunk_tokens"}},
    {"training.dataset",
     reads_text,
     "the data are token ids",
     true,
     {"training.text_field", "training.bad_lines"}},
    {"training.dataset", reads_tokens, "the data are text", true, {"training.token_type"}},
    {"checkpoint.enable",
     saves,
     "checkpoint.enable is off, nothing is saved",
     true,
     {"checkpoint.last_save_in_hf", "checkpoint.enable_first_step_checkpoint",
      "checkpoint.last_save_model_only"}},
    {"checkpoint.enable",
     saves,
     "checkpoint.enable is off",
     false,
     {"checkpoint.interval", "checkpoint.folder", "checkpoint.async_mode",
      "checkpoint.keep_latest_k", "checkpoint.export_dtype"}},
    {"checkpoint.last_save_in_hf",
     exports,
     "checkpoint.last_save_in_hf is off, nothing is exported",
     false,
     {"checkpoint.export_dtype"}},
    {"checkpoint.initial_load_path",
     loads_initial,
     "checkpoint.initial_load_path is not set",
     true,
     {"checkpoint.initial_load_model_only"}},
    {"checkpoint.enable",
     loads,
     "nothing is loaded (checkpoint.enable is off, checkpoint.initial_load_path is not set)",
     true,
     {"checkpoint.exclude_from_loading"}},
    {"metrics.enable_tensorboard",
     writes_tensorboard,
     "metrics.enable_tensorboard is off",
     false,
     {"metrics.save_tb_folder"}},
    {"profiling.enable_profiling",
     profiles,
     "profiling.enable_profiling is off",
     false,
     {"profiling.save_traces_folder", "profiling.profile_freq"}},
    {"validation.enable",
     validates,
     "validation.enable is off",
     false,
     {"validation.dataset", "validation.dataset_path", "validation.local_batch_size",
      "validation.seq_len", "validation.freq", "validation.steps"}},
    {"debug.moe_force_load_balance",
     forces_balance,
     "debug.moe_force_load_balance is off",
     false,
     {"debug.moe_force_load_balance_mode"}},
    {"lr_scheduler.decay_ratio",
     decays,
     "lr_scheduler.decay_ratio is 0, the rate does not decay",
     true,
     {"lr_scheduler.decay_type", "lr_scheduler.min_lr_factor"}},
    {"optimizer.weight_decay",
     decays_weights,
     "optimizer.weight_decay is 0",
     false,
     {"optimizer.decay_norms"}},
    {"model.flavor",
     has_experts,
     "this model has no experts",
     true,
     {"moe.score_func", "moe.route_norm", "moe.route_scale", "moe.use_deepep",
      "moe.save_dispatched", "moe.load_balance_coeff", "moe.aux_loss_coeff", "moe.z_loss_coeff",
      "moe.capacity_factor", "moe.saved_rows_factor", "activation_checkpoint.reuse_for_gradients",
      "debug.moe_force_load_balance"}},
    {"model.flavor",
     has_experts,
     "this model has no experts",
     true,
     {"parallelism.expert_parallel_comm_backend", "parallelism.expert_parallel_overlap",
      "deepep.num_sms", "deepep.transport", "deepep.overlap_split", "deepep.overlap_num_sms",
      "deepep.tuned_for"}},
    {"parallelism.expert_parallel_degree",
     spreads_experts,
     "parallelism.expert_parallel_degree is 1, all experts are on every rank",
     false,
     {"parallelism.expert_parallel_comm_backend", "parallelism.expert_parallel_overlap",
      "deepep.num_sms", "deepep.transport", "deepep.overlap_split", "deepep.overlap_num_sms",
      "debug.moe_send_copies"}},
    {"training.backend",
     exchanges_on_gpu,
     "the run computes on the CPU",
     false,
     {"deepep.num_sms", "deepep.overlap_num_sms"}},
    {"parallelism.expert_parallel_overlap",
     overlaps_halves,
     "parallelism.expert_parallel_overlap is not true",
     false,
     {"deepep.overlap_split"}},
    {"parallelism.expert_parallel_overlap",
     overlaps_gemms,
     "parallelism.expert_parallel_overlap is not auto",
     false,
     {"deepep.overlap_num_sms"}},
};

static const xp_field *find(const char *name) {
    char section[64];
    size_t n = strcspn(name, ".");
    memcpy(section, name, n);
    section[n] = '\0';
    return xp_field_find(section, name + n + 1);
}

static bool same_value(const xp_config *a, const xp_config *b, const xp_field *field) {
    xp_text left = {0}, right = {0};
    if (!xp_field_is_unset(a, field))
        xp_field_add_value(a, field, false, &left);
    if (!xp_field_is_unset(b, field))
        xp_field_add_value(b, field, false, &right);
    bool same = left.length == right.length &&
                (left.length == 0 || memcmp(left.data, right.data, left.length) == 0);
    xp_text_free(&left);
    xp_text_free(&right);
    return same;
}

/* Somebody wants something by this setting: it is on the command line, or a file gives another value than
 * the default. Where what the key belongs to was switched off by hand, a file's value is kept for another day. */
static bool is_meant(const xp_config_set *set, const xp_config *defaults, const dependence *d,
                     const xp_field *field) {
    const xp_origin *origin = xp_set_origin(set, field);
    if (origin->kind == XP_ORIGIN_DEFAULT)
        return false;
    if (origin->kind == XP_ORIGIN_COMMAND_LINE || origin->kind == XP_ORIGIN_ENVIRONMENT)
        return true;
    if (same_value(&set->config, defaults, field))
        return false;
    const xp_origin *off = d->governs ? xp_set_origin(set, find(d->governs)) : NULL;
    return d->always || !off || off->kind == XP_ORIGIN_DEFAULT;
}

static void add_key(const xp_config_set *set, const xp_field *field, int n_before, xp_text *line) {
    const xp_origin *origin = xp_set_origin(set, field);
    xp_text_printf(line, "%s%s.%s", n_before > 0 ? ", " : "", field->section, field->key);
    if (origin->kind == XP_ORIGIN_FILE)
        xp_text_printf(line, " (%s:%d)", origin->name, origin->line);
    else if (origin->kind == XP_ORIGIN_COMMAND_LINE)
        xp_text_puts(line, " (command line)");
}

static xp_status check_one(const xp_config_set *set, const xp_config *defaults, const dependence *d,
                           xp_config_say say, void *context) {
    xp_text line = {0};
    int n = 0;
    for (int i = 0; i < MAX_KEYS && d->keys[i]; i++) {
        const xp_field *field = find(d->keys[i]);
        if (is_meant(set, defaults, d, field))
            add_key(set, field, n++, &line);
    }
    xp_text_printf(&line, " %s no effect: %s", n == 1 ? "has" : "have", d->because);
    xp_status status =
        line.failed ? xp_error(XP_ENOMEM, "out of memory for the configuration") : XP_OK;
    if (status == XP_OK && n > 0)
        say(context, line.data);
    xp_text_free(&line);
    return status;
}

xp_status xp_config_effects(const xp_config_set *set, const xp_config_facts *facts,
                            xp_config_say say, void *context) {
    const situation s = {&set->config, *facts};
    xp_config_set *defaults = NULL;
    XP_TRY(xp_config_load(0, NULL, false, &defaults));
    xp_status status = XP_OK;
    for (size_t i = 0; i < sizeof dependences / sizeof dependences[0] && status == XP_OK; i++)
        if (!dependences[i].active(&s))
            status = check_one(set, xp_config_get(defaults), &dependences[i], say, context);
    xp_config_destroy(defaults);
    return status;
}
