#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "expar/version.h"
#include "train/hf_io.h"
#include "train/run_state.h"

#define MAX_VALUES (XP_ARCH_VALUES + 24)

/* The manifest's small values, with the text of numbers. */
typedef struct value_list {
    int n;
    xp_ckpt_value values[MAX_VALUES];
    char numbers[MAX_VALUES][32];
    xp_arch_values arch;
} value_list;

static void put_text(value_list *list, const char *key, const char *value) {
    list->values[list->n++] = (xp_ckpt_value){.key = key, .value = value ? value : ""};
}

static void put_int(value_list *list, const char *key, int64_t value) {
    char *number = list->numbers[list->n];
    snprintf(number, sizeof list->numbers[0], "%lld", (long long)value);
    put_text(list, key, number);
}

static void list_values(const xp_trainer *t, bool model_only, value_list *list) {
    memset(list, 0, sizeof *list);
    put_text(list, "expar_version", XP_VERSION);
    put_int(list, "tokens_seen", t->tokens_seen);
    put_int(list, "rows_seen", t->rows_seen);
    put_int(list, "schedule_from", t->schedule_from);
    put_int(list, "optimizer_steps", t->optimizer_steps);
    put_text(list, "model_only", model_only ? "true" : "false");
    put_int(list, "debug.seed", t->config->debug.seed);
    put_int(list, "training.seq_len", t->config->training.seq_len);
    put_int(list, "training.global_batch_size", t->run.global_batch);
    put_text(list, "training.dataset", t->config->training.dataset);
    put_text(list, "training.dataset_path", t->config->training.dataset_path);
    put_int(list, "data.n_tokens", xp_dataset_n_tokens(t->shared->data));
    char *hash = list->numbers[list->n];
    snprintf(hash, sizeof list->numbers[0], "%016" PRIx64, t->data_hash);
    put_text(list, "data.xxh64", hash);
    put_int(list, "training.shuffle", xp_train_shuffles(t->config));
    put_int(list, "lr_scheduler.total_steps", xp_schedule_total(&t->schedule));
    put_text(list, "training.attention", t->config->training.attention);
    put_text(list, "model.flavor", t->run.arch.flavor);
    put_text(list, "model.hf_assets_path", t->config->model.hf_assets_path);
    xp_arch_values_fill(&t->run.arch, &list->arch);
    for (int i = 0; i < list->arch.n; i++)
        put_text(list, list->arch.keys[i], list->arch.values[i]);
    if (t->gemm_for[0]) {
        put_text(list, "gemm.algorithms", t->gemms);
        put_text(list, "gemm.tuned_for", t->gemm_for);
    }
    put_text(list, "config", t->config_toml);
}

static bool is_async(const xp_trainer *t) {
    const char *mode = t->config->checkpoint.async_mode;
    return !mode || strcmp(mode, "disabled") != 0;
}

xp_status xp_trainer_save(xp_trainer *t, bool last) {
    bool model_only = last && t->config->checkpoint.last_save_model_only;
    int parts = model_only ? XP_SNAPSHOT_PARAMS | XP_SNAPSHOT_BIAS : XP_SNAPSHOT_ALL;
    value_list list;
    XP_TRY(xp_shard_finish_gather(t->run.shard, t->run.stream));
    list_values(t, model_only, &list);
    xp_ckpt_save_args args = {
        .folder = t->ckpt_folder,
        .step = t->step,
        .values = list.values,
        .n_values = list.n,
        .keep_latest_k = t->config->checkpoint.keep_latest_k,
        .comm = t->world,
        .set_aside_later = true,
    };
    /* A save that the run waits for is written straight from the state. */
    bool waits = !is_async(t);
    args.pieces_stay = waits || !xp_device_host_accessible(t->device);
    /* The save before this one is published first: one at a time. */
    XP_TRY(xp_trainer_publish(t, true));
    XP_TRY(xp_snapshot_collect(t->snapshot, parts, &args.pieces, &args.n_pieces));
    if (t->world)
        xp_comm_set_phase(t->world, "checkpoint");
    t->last_saved = t->step;
    XP_TRY(xp_ckpt_saver_start(t->saver, &args));
    t->publish_now = waits;
    return waits ? xp_ckpt_saver_wait_written(t->saver) : XP_OK;
}

/* The lines of the steps that a checkpoint holds are on the disk before it shows. */
static void sync_metrics(xp_trainer *t) {
    if (t->metrics && xp_ckpt_saver_is_busy(t->saver) && xp_metrics_sync(t->metrics) != XP_OK)
        xp_trainer_warn(t, "%s", xp_last_error());
}

xp_status xp_trainer_publish(xp_trainer *t, bool wait) {
    int64_t published = -1;
    if (!t->saver)
        return XP_OK;
    if (wait)
        sync_metrics(t);
    XP_TRY(wait ? xp_ckpt_saver_wait(t->saver, &published)
                : xp_ckpt_saver_poll(t->saver, &published));
    if (published >= 0) {
        t->last_published = published;
        xp_trainer_say(t, "checkpoint: %s/step-%lld", t->ckpt_folder, (long long)published);
        if (xp_ckpt_saver_warning(t->saver)[0])
            xp_trainer_warn(t, "%s", xp_ckpt_saver_warning(t->saver));
    }
    return XP_OK;
}

static void warn_about_export(void *context, const char *text) {
    xp_trainer_warn(context, "%s", text);
}

static xp_status export_to(xp_trainer *t, const char *folder) {
    xp_ckpt *ckpt = NULL;
    const char *dtype = t->config->checkpoint.export_dtype;
    bool has_bias = false;
    XP_TRY(xp_ckpt_open(t->ckpt_folder, t->step, &ckpt));
    xp_hf_from_ckpt_args args = {
        .ckpt = ckpt,
        .arch = &t->run.arch,
        .folder = folder,
        .dtype = dtype && strcmp(dtype, "bfloat16") == 0 ? XP_BF16 : XP_F32,
        .max_positions = t->run.seq_len,
        .assets = t->config->model.hf_assets_path,
        .warn = warn_about_export,
        .warn_context = t,
    };
    xp_status status = xp_hf_export_ckpt(&args, &has_bias);
    xp_ckpt_close(ckpt);
    XP_TRY(status);
    xp_trainer_say(t, "export: %s (Hugging Face)", folder);
    if (has_bias)
        xp_trainer_warn(t,
                        "Hugging Face's Qwen3-MoE has no expert bias: it went into %s/%s; "
                        "`expar eval --hf %s` tells how much it matters",
                        folder, XP_HF_EXTRA_FILE, folder);
    return XP_OK;
}

xp_status xp_trainer_export(xp_trainer *t) {
    if (!t->config->checkpoint.last_save_in_hf || !t->config->checkpoint.enable || !t->leads)
        return XP_OK;
    char name[48];
    snprintf(name, sizeof name, "hf-step-%lld", (long long)t->step);
    char *folder = xp_path_join(t->dump, name);
    if (!folder)
        return xp_error(XP_ENOMEM, "no memory for the export's path");
    xp_status status = export_to(t, folder);
    free(folder);
    return status;
}
