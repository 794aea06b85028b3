#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"
#include "train/gemms.h"
#include "train/hf_io.h"
#include "train/run_state.h"

/* ---- initial values ---------------------------------------------------------------------- */

/* Every rank draws its own chunks; the rest comes with the gather. */
static xp_status initialise(xp_trainer *t) {
    const int64_t seed = t->config->debug.seed;
    return xp_shard_draw_params(t->run.shard, seed > 0 ? (uint64_t)seed : 0, t->run.stream);
}

static xp_status upload_bias(xp_trainer *t) {
    if (!t->bias)
        return XP_OK;
    size_t n = (size_t)t->n_moe_layers * (size_t)t->run.arch.n_experts;
    XP_TRY(xp_copy(t->run.stream, xp_model_expert_bias(t->run.model), t->bias, n * sizeof(float)));
    return xp_stream_sync(t->run.stream);
}

/* ---- from a checkpoint ------------------------------------------------------------------- */

typedef struct excluded {
    bool optimizer, data, bias, schedule, train_state;
    xp_string_list tensors; /* everything else: names of parameters; items may be NULL */
} excluded;

/* Parts by name; what is none of them must be a parameter, which restore() checks. */
static xp_status read_excluded(const xp_config *config, excluded *out) {
    static const char *const parts[] = {"optimizer",   "dataloader",   "data_loader",
                                        "expert_bias", "lr_scheduler", "train_state"};
    bool found[6] = {false};
    memset(out, 0, sizeof *out);
    const xp_string_list *list = &config->checkpoint.exclude_from_loading;
    out->tensors.items = calloc((size_t)list->n + 1, sizeof *out->tensors.items);
    if (!out->tensors.items)
        return xp_error(XP_ENOMEM, "no memory for checkpoint.exclude_from_loading");
    for (int i = 0; i < list->n; i++) {
        int part = 0;
        while (part < 6 && strcmp(list->items[i], parts[part]) != 0)
            part++;
        if (part < 6)
            found[part] = true;
        else
            out->tensors.items[out->tensors.n++] = list->items[i];
    }
    out->optimizer = found[0];
    out->data = found[1] || found[2];
    out->bias = found[3];
    out->schedule = found[4];
    out->train_state = found[5];
    return XP_OK;
}

static xp_status value_int(const xp_ckpt *ckpt, const char *key, int64_t *value) {
    const char *text = xp_ckpt_value_get(ckpt, key);
    if (!text || !xp_parse_i64(text, value))
        return xp_error(XP_EFORMAT, "%s: the manifest's %s is missing or no number",
                        xp_ckpt_path(ckpt), key);
    /* Row and token numbers are computed from these: 2^53 leaves room for every product. */
    if (*value < 0 || *value > (int64_t)1 << 53)
        return xp_error(XP_EFORMAT, "%s: the manifest's %s is %lld, must be 0 to 2^53",
                        xp_ckpt_path(ckpt), key, (long long)*value);
    return XP_OK;
}

static bool holds_model_only(const xp_ckpt *ckpt) {
    const char *model_only = xp_ckpt_value_get(ckpt, "model_only");
    return model_only && strcmp(model_only, "true") == 0;
}

static xp_status check_has_moments(const xp_ckpt *ckpt, int parts) {
    if (!(parts & XP_SNAPSHOT_MOMENTS) || !holds_model_only(ckpt))
        return XP_OK;
    return xp_error(XP_ECONFIG,
                    "%s holds the model only (checkpoint.last_save_model_only), training cannot go "
                    "on from it: choose an earlier one with checkpoint.load_step, or start a new "
                    "run with it as checkpoint.initial_load_path",
                    xp_ckpt_path(ckpt));
}

/* The run has ended: no step is left that would need the moments. */
static bool is_complete(const xp_trainer *t, const xp_ckpt *ckpt, const excluded *out) {
    return !out->train_state && xp_ckpt_step(ckpt) >= t->config->training.steps;
}

static int parts_to_load(const xp_trainer *t, const xp_ckpt *ckpt, const excluded *out,
                         bool model_only) {
    int parts = XP_SNAPSHOT_PARAMS;
    int n_dims = 0;
    int64_t shape[3];
    if (!model_only && !out->optimizer && !(holds_model_only(ckpt) && is_complete(t, ckpt, out)))
        parts |= XP_SNAPSHOT_MOMENTS;
    if (t->bias && !out->bias && xp_ckpt_has(ckpt, "expert_bias/0", &n_dims, shape))
        parts |= XP_SNAPSHOT_BIAS;
    return parts;
}

static xp_status restore_tensors(xp_trainer *t, const xp_ckpt *ckpt, int parts,
                                 const xp_string_list *without) {
    XP_TRY(xp_arch_values_check(&t->run.arch, ckpt, xp_ckpt_path(ckpt)));
    XP_TRY(check_has_moments(ckpt, parts));
    if (without->n > 0)
        XP_TRY(initialise(t));
    XP_TRY(xp_snapshot_restore(t->snapshot, ckpt, parts, without));
    XP_TRY(upload_bias(t));
    return xp_shard_publish_params(t->run.shard, t->run.stream);
}

static xp_status restore_position(xp_trainer *t, const xp_ckpt *ckpt, const excluded *out) {
    if (!out->train_state) {
        t->step = xp_ckpt_step(ckpt);
        XP_TRY(value_int(ckpt, "tokens_seen", &t->tokens_seen));
        XP_TRY(value_int(ckpt, "schedule_from", &t->schedule_from));
    }
    if (out->schedule)
        t->schedule_from = t->step;
    if (!out->data)
        XP_TRY(value_int(ckpt, "rows_seen", &t->rows_seen));
    return XP_OK;
}

/* The moments' bias correction counts the updates that they hold, whatever the run's step is. */
static xp_status restore_optimizer_steps(xp_trainer *t, const xp_ckpt *ckpt, int parts) {
    t->optimizer_steps = 0;
    if (!(parts & XP_SNAPSHOT_MOMENTS))
        return XP_OK;
    if (xp_ckpt_value_get(ckpt, "optimizer_steps"))
        return value_int(ckpt, "optimizer_steps", &t->optimizer_steps);
    t->optimizer_steps = xp_ckpt_step(ckpt); /* written before the key existed */
    return XP_OK;
}

static xp_status restore(xp_trainer *t, const xp_ckpt *ckpt, bool model_only) {
    excluded out;
    XP_TRY(read_excluded(t->config, &out));
    int parts = parts_to_load(t, ckpt, &out, model_only);
    xp_status status = restore_tensors(t, ckpt, parts, &out.tensors);
    if (status == XP_OK)
        status = restore_optimizer_steps(t, ckpt, parts);
    if (status == XP_OK && !model_only)
        status = restore_position(t, ckpt, &out);
    free(out.tensors.items);
    XP_TRY(status);
    if (model_only)
        return XP_OK;
    XP_TRY(xp_trainer_keep_gemms(t, ckpt));
    return xp_trainer_compare(t, ckpt, !out.data, !out.schedule);
}

/* The leader looks for the checkpoint; the others open the very same. -1: there is none. */
static xp_status find_own(xp_trainer *t, xp_ckpt **ckpt) {
    int64_t wanted = t->config->checkpoint.load_step;
    int64_t step = -1;
    *ckpt = NULL;
    if (t->leads) {
        xp_status status = xp_ckpt_open(t->ckpt_folder, wanted, ckpt);
        if (status != XP_OK && (status != XP_ENOENT || wanted >= 0))
            return status;
        if (status == XP_OK)
            step = xp_ckpt_step(*ckpt);
    }
    if (t->world) {
        xp_comm_set_phase(t->world, "looking for a checkpoint");
        XP_TRY(xp_comm_broadcast(t->world, &step, sizeof step, 0, NULL));
    }
    return step >= 0 && !*ckpt ? xp_ckpt_open(t->ckpt_folder, step, ckpt) : XP_OK;
}

/* A run that goes back leaves no later steps behind: the next start would resume from them, and
 * they would count for keep_latest_k. The checkpoint that was loaded stays until a new one is
 * there. */
static xp_status set_aside_later(xp_trainer *t, int64_t loaded) {
    char *into = NULL;
    if (t->step >= t->config->training.steps || !t->leads)
        return XP_OK;
    XP_TRY(xp_ckpt_set_aside(t->ckpt_folder, t->step, loaded, &into));
    t->went_back = into != NULL;
    if (into)
        xp_trainer_warn(t,
                        "checkpoints of later steps than %lld are set aside in %s: the next start "
                        "goes on from this run's newest checkpoint; without checkpoint.load_step, "
                        "or it goes back again",
                        (long long)t->step, into);
    free(into);
    return XP_OK;
}

static xp_status resume(xp_trainer *t, bool *resumed) {
    xp_ckpt *ckpt = NULL;
    *resumed = false;
    if (!t->config->checkpoint.enable)
        return XP_OK;
    xp_status status = find_own(t, &ckpt);
    if (status == XP_OK && ckpt) {
        status = xp_ckpt_suggest_older(t->ckpt_folder, xp_ckpt_step(ckpt), restore(t, ckpt, false));
        *resumed = status == XP_OK;
        if (*resumed)
            status = set_aside_later(t, xp_ckpt_step(ckpt));
        if (status == XP_OK) {
            if (t->step == xp_ckpt_step(ckpt))
                t->last_saved = t->last_published = t->step;
            xp_trainer_say(t, "resume: %s, %lld tokens seen", xp_ckpt_path(ckpt),
                           (long long)t->tokens_seen);
        }
    }
    xp_ckpt_close(ckpt);
    return status;
}

/* ---- checkpoint.initial_load_path --------------------------------------------------------- */

static void warn_about_weights(void *context, const char *text) {
    xp_trainer_warn(context, "%s", text);
}

static xp_status load_hf(xp_trainer *t, const char *path) {
    xp_hf_load_args args = {
        .folder = path,
        .arch = &t->run.arch,
        .table = xp_model_params(t->run.model),
        .params = xp_model_param_data(t->run.model),
        .dtype = t->run.dtype,
        .stream = t->run.stream,
        .bias = t->bias,
        .warn = t->log ? warn_about_weights : NULL,
        .warn_context = t,
    };
    XP_TRY(xp_hf_load_params(&args));
    XP_TRY(upload_bias(t));
    return xp_shard_adopt_params(t->run.shard, t->run.stream);
}

/* What a folder has inside under a name. */
static xp_status look_inside(const char *path, const char *name, bool as_folder, bool *found) {
    char *inside = xp_path_join(path, name);
    if (!inside)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = as_folder ? xp_path_is_folder(inside, found) : xp_path_exists(inside, found);
    free(inside);
    return status;
}

/* A step folder, or a folder of them (a run's checkpoint folder or its dump folder): the newest. */
static xp_status open_initial(const char *path, const char *folder, xp_ckpt **ckpt) {
    bool found = false;
    XP_TRY(xp_path_is_folder(path, &found));
    if (!found)
        return xp_error(XP_ENOENT, "checkpoint.initial_load_path: there is no folder %s", path);
    XP_TRY(look_inside(path, "manifest.json", false, &found));
    if (found)
        return xp_ckpt_open_path(path, ckpt);
    XP_TRY(look_inside(path, folder, true, &found));
    char *inside = xp_path_join(path, folder);
    if (!inside)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = xp_ckpt_open(found ? inside : path, -1, ckpt);
    free(inside);
    if (status == XP_ENOENT)
        return xp_error(XP_ENOENT,
                        "checkpoint.initial_load_path %s holds no checkpoint; for Hugging Face "
                        "weights set checkpoint.initial_load_in_hf",
                        path);
    return status;
}

static xp_status load_initial(xp_trainer *t, const char *path) {
    if (t->config->checkpoint.initial_load_in_hf) {
        XP_TRY(load_hf(t, path));
        xp_trainer_say(t, "weights: %s (Hugging Face)", path);
        return XP_OK;
    }
    xp_ckpt *ckpt = NULL;
    XP_TRY(open_initial(path, t->config->checkpoint.folder, &ckpt));
    bool model_only = t->config->checkpoint.initial_load_model_only;
    xp_status status = restore(t, ckpt, model_only);
    if (status == XP_OK)
        xp_trainer_say(t, "weights: %s%s", xp_ckpt_path(ckpt),
                       model_only ? " (model only)" : " (with optimizer and position)");
    xp_ckpt_close(ckpt);
    return status;
}

/* What a new run starts from: initial_load_path, and for Hugging Face weights without one the folder that the
 * model's configuration and tokenizer come from. NULL: random weights. */
static const char *initial_weights(const xp_config *config) {
    const char *path = config->checkpoint.initial_load_path;
    if (path && path[0])
        return path;
    return config->checkpoint.initial_load_in_hf ? config->model.hf_assets_path : NULL;
}

/* Nothing was asked to be loaded: said, and with a flavor that comes from a folder of weights aloud. */
static void tell_about_random_weights(xp_trainer *t) {
    const xp_config *config = t->config;
    xp_trainer_say(t, "weights: random, drawn with debug.seed = %lld",
                   (long long)(config->debug.seed > 0 ? config->debug.seed : 0));
    if (config->model.flavor && strcmp(config->model.flavor, "hf") == 0)
        xp_trainer_warn(
            t,
            "model.flavor = \"hf\" takes only the sizes from %s, not its weights: to start "
            "from them set checkpoint.initial_load_in_hf = true",
            config->model.hf_assets_path);
}

/* ---- */

xp_status xp_trainer_start(xp_trainer *t) {
    bool resumed = false;
    const char *initial = initial_weights(t->config);
    XP_TRY(xp_shard_adopt_params(t->run.shard, t->run.stream));
    XP_TRY(xp_trainer_hash_data(t));
    XP_TRY(resume(t, &resumed));
    if (!resumed && initial && initial[0]) {
        XP_TRY(load_initial(t, initial));
    } else if (!resumed) {
        tell_about_random_weights(t);
        XP_TRY(initialise(t));
    }
    XP_TRY(xp_stream_sync(t->run.stream));
    t->first_step = t->step;
    /* Rows already read, rounded up to whole steps of this run's batch. */
    int64_t steps_read = (t->rows_seen + t->run.global_batch - 1) / t->run.global_batch;
    t->rows_seen = steps_read * t->run.global_batch;
    return xp_loader_seek(t->loader, steps_read);
}
