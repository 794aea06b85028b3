#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/file.h"
#include "device/device_internal.h"
#include "train/gemms.h"
#include "train/run_state.h"

/* ---- create and destroy ------------------------------------------------------------------ */

static void *zeroed(size_t n, size_t each) {
    return calloc(n + 1, each);
}

/* What steps copy to and from the device. */
static xp_status create_staging(xp_trainer *t, size_t n_counts, int64_t validation) {
    void *data[4] = {NULL};
    size_t n_losses = (size_t)t->run.n_microbatches * XP_MODEL_N_LOSSES;
    XP_TRY(xp_host_alloc(t->device, n_losses * sizeof *t->losses, "metrics", &data[0]));
    t->losses = data[0];
    XP_TRY(xp_host_alloc(t->device, n_counts * sizeof *t->counts, "metrics", &data[1]));
    t->counts = data[1];
    if (n_counts > 0)
        XP_TRY(xp_host_alloc(t->device, n_counts * sizeof *t->bias, "metrics", &data[2]));
    t->bias = data[2];
    XP_TRY(xp_host_alloc(t->device, (size_t)validation * sizeof *t->validation_memory, "batches",
                         &data[3]));
    t->validation_memory = data[3];
    return xp_staging_create(t->device, t->run.stream, t->n_threads, &t->staging);
}

static xp_status create_tables(xp_trainer *t) {
    size_t layers = (size_t)t->n_moe_layers;
    size_t n = layers * (size_t)t->run.arch.n_experts;
    int64_t validation = 4 * t->run.validation_batch * t->run.validation_seq_len;
    XP_TRY(create_staging(t, n, validation));
    t->load_max = zeroed(layers, sizeof *t->load_max);
    t->load_share = zeroed(layers, sizeof *t->load_share);
    if (!t->load_max || !t->load_share)
        return xp_error(XP_ENOMEM, "no memory for the trainer's tables");
    t->ckpt_folder = xp_path_join(t->dump, t->config->checkpoint.folder);
    return t->ckpt_folder ? XP_OK : xp_error(XP_ENOMEM, "no memory for a path");
}

/* What decides the run, for the manifest: where it is written does not belong to it, so that two
 * equal runs in two folders give equal checkpoints. */
static void drop_job_section(char *toml) {
    char *begin = strstr(toml, "[job]");
    if (!begin)
        return;
    char *end = strstr(begin, "\n[");
    if (end)
        memmove(begin, end + 1, strlen(end + 1) + 1);
    else
        *begin = '\0';
}

static xp_status write_config(xp_trainer *t) {
    XP_TRY(xp_config_dump_toml(t->set, &t->config_toml));
    if (t->leads) {
        const char *name = t->config->job.save_config_file;
        if (t->config->job.print_config)
            xp_trainer_say(t, "%s", t->config_toml);
        XP_TRY(xp_folder_create(t->dump));
        char *path = xp_path_join(t->dump, name ? name : "config.toml");
        if (!path)
            return xp_error(XP_ENOMEM, "no memory for a path");
        xp_status status = xp_file_write_atomic(path, t->config_toml, strlen(t->config_toml));
        free(path);
        XP_TRY(status);
    }
    drop_job_section(t->config_toml);
    return XP_OK;
}

static xp_status create_loader(xp_trainer *t) {
    xp_loader_args args = {
        .local_batch_size = t->run.local_batch,
        .n_microbatches = t->run.n_microbatches,
        .data_rank = t->rank,
        .n_data_ranks = t->n_ranks,
        .n_prefetch = 2,
        .log = t->log,
    };
    XP_TRY(xp_loader_create(t->shared->data, &args, &t->loader));
    return xp_step_batches_create(&t->run, &t->batches);
}

static xp_status create_trace(xp_trainer *t) {
    if (!t->config->profiling.enable_profiling)
        return XP_OK;
    char *folder = xp_path_join(t->dump, t->config->profiling.save_traces_folder);
    if (!folder)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status =
        xp_trace_create(t->device, folder, t->rank, t->config->profiling.profile_freq, &t->trace);
    free(folder);
    return status;
}

/* What a reader of the traces needs to know of the run. */
static xp_status describe_trace(xp_trainer *t) {
    const bool on_gpu = xp_device_get_kind(t->device) == XP_DEVICE_CUDA;
    const xp_trace_run_info info = {.config = t->config_toml,
                                    .device = on_gpu ? xp_device_model_name(t->device)
                                                     : xp_device_name(t->device),
                                    .n_ranks = t->n_ranks,
                                    .n_nodes = t->world ? xp_comm_n_nodes(t->world) : 1};
    return xp_trace_describe(t->trace, &info);
}

static xp_status create_parts(xp_trainer *t) {
    XP_TRY(xp_schedule_from_config(t->config, &t->schedule));
    XP_TRY(xp_trainer_create_device(t));
    XP_TRY(create_trace(t));
    xp_trainer_announce(t);
    XP_TRY(xp_trainer_announce_devices(t));
    XP_TRY(write_config(t));
    XP_TRY(describe_trace(t));
    XP_TRY(xp_trainer_announce_memory(t));
    XP_TRY(xp_run_reserve(t->config, t->device, t->world, NULL, &t->run));
    t->n_moe_layers = t->run.arch.n_experts > 0 ? (int)t->run.arch.n_layers : 0;
    XP_TRY(xp_trainer_choose_graphs(t));
    XP_TRY(xp_trainer_open_gemms(t));
    XP_TRY(xp_event_create(t->device, &t->results));
    XP_TRY(create_tables(t));
    XP_TRY(create_loader(t));
    XP_TRY(xp_snapshot_create(&t->run, t->staging, t->bias, &t->snapshot));
    if (t->config->checkpoint.enable)
        XP_TRY(xp_ckpt_saver_create(t->world, &t->saver));
    xp_trainer_compare_memory(t);
    xp_trainer_describe(t);
    return XP_OK;
}

static void destroy_parts(xp_trainer *t) {
    xp_progress_destroy(t->progress);
    xp_metrics_close(t->metrics);
    xp_ckpt_saver_destroy(t->saver);
    xp_snapshot_destroy(t->snapshot);
    xp_step_batches_destroy(&t->batches);
    xp_loader_destroy(t->loader);
    xp_staging_destroy(t->staging);
    if (t->device) {
        xp_host_free(t->device, t->validation_memory);
        xp_host_free(t->device, t->bias);
        xp_host_free(t->device, t->counts);
        xp_host_free(t->device, t->losses);
    }
    free(t->load_share);
    free(t->load_max);
    free(t->ckpt_folder);
    free(t->config_toml);
    free(t->gemms);
    free(t->gemm_for);
    xp_event_destroy(t->results);
    xp_run_release(&t->run);
    xp_trace_destroy(t->trace);
    xp_device_destroy(t->device);
}

/* ---- the loop ---------------------------------------------------------------------------- */

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static xp_status maybe_validate(xp_trainer *t, xp_step_record *record) {
    const xp_config *config = t->config;
    if (!config->validation.enable)
        return XP_OK;
    bool last = t->step == config->training.steps;
    if (t->step != 1 && !last && !due(t->step, config->validation.freq))
        return XP_OK;
    double began = xp_time_s();
    /* Its shapes are others than training's. */
    xp_device_set_host_synchronized(t->device, t->first_use_waits && !t->has_validated);
    XP_TRY(xp_trainer_validate(t, &record->validation_loss));
    xp_device_set_host_synchronized(t->device, false);
    t->has_validated = true;
    record->validation_s = xp_time_s() - began;
    xp_trace_phase(t->trace, "validation", began, began + record->validation_s);
    xp_trainer_say(t, "validate step: %2lld  loss: %8.5f  time: %.2fs", (long long)t->step,
                   record->validation_loss, record->validation_s);
    return XP_OK;
}

static xp_status maybe_save(xp_trainer *t, xp_step_record *record) {
    const xp_config *config = t->config;
    if (!config->checkpoint.enable)
        return XP_OK;
    double began = xp_time_s();
    bool last = t->step >= config->training.steps;
    bool first = t->step == 1 && config->checkpoint.enable_first_step_checkpoint;
    XP_TRY(xp_trainer_publish(t, false));
    if (last || first || t->stop || due(t->step, config->checkpoint.interval))
        XP_TRY(xp_trainer_save(t, last));
    double now = xp_time_s();
    record->checkpoint_s = now - began + t->publish_s;
    t->publish_s = 0;
    xp_trace_phase(t->trace, "checkpoint", began, now);
    return XP_OK;
}

/* A save that the run waits for shows only when the metrics of its step are on the disk. The time
 * counts in the next step. */
static xp_status publish_written(xp_trainer *t) {
    if (!t->publish_now)
        return XP_OK;
    double began = xp_time_s();
    t->publish_now = false;
    XP_TRY(xp_trainer_publish(t, true));
    t->publish_s = xp_time_s() - began;
    return XP_OK;
}

/* The parts of a step follow each other without a gap. */
static void trace_phases(xp_trainer *t, const xp_step_record *record, double began) {
    double have_data = began + record->data_time_s;
    double have_gradients = have_data + record->forward_backward_s;
    xp_trace_phase(t->trace, "data wait", began, have_data);
    xp_trace_phase(t->trace, "forward and backward", have_data, have_gradients);
    xp_trace_phase(t->trace, "optimizer", have_gradients, have_gradients + record->optimizer_s);
}

static void warn_without_trace(xp_trainer *t, int64_t step, xp_status status) {
    if (status != XP_OK)
        xp_trainer_warn(t, "no trace of step %lld: %s", (long long)step, xp_last_error());
}

static xp_status one_step(xp_trainer *t) {
    xp_step_record record;
    memset(&record, 0, sizeof record);
    warn_without_trace(t, t->step + 1, xp_trace_begin(t->trace, t->step + 1));
    double began = xp_time_s();
    double published_s = t->publish_s;
    XP_TRY(xp_trainer_step(t, &record));
    xp_trainer_check_graphs(t);
    trace_phases(t, &record, began);
    XP_TRY(maybe_validate(t, &record));
    XP_TRY(maybe_save(t, &record));
    record.time_s = xp_time_s() - began + published_s;
    xp_trace_took(t->trace, record.time_s - published_s);
    warn_without_trace(t, t->step, xp_trace_end(t->trace));
    if (t->step == t->first_step + 1) {
        t->n_allocs = xp_device_n_allocs(t->device);
        xp_device_set_host_synchronized(t->device, false);
    }
    xp_trainer_report(t, &record);
    return publish_written(t);
}

/* A save that was under way when the run failed is published, where all ranks have come to the same
 * failure together: it holds good steps. The failure stays what the run ends with. */
static void publish_before_end(xp_trainer *t) {
    char text[1024];
    int rank = xp_last_error_rank();
    if (!t->saver || !xp_ckpt_saver_is_busy(t->saver) || (t->world && !t->all_failed))
        return;
    snprintf(text, sizeof text, "%s", xp_last_error());
    if (xp_trainer_publish(t, true) != XP_OK)
        xp_trainer_warn(t, "the checkpoint under way could not be published: %s", xp_last_error());
    xp_error(XP_EINTERNAL, "%s", text);
    xp_error_set_rank(rank);
}

static xp_status run_steps(xp_trainer *t) {
    while (t->step < t->config->training.steps && !t->stop) {
        xp_status status = one_step(t);
        if (status != XP_OK) {
            publish_before_end(t);
            return status;
        }
    }
    return xp_trainer_publish(t, true);
}

static xp_status train(xp_trainer *t, xp_train_result *result) {
    XP_TRY(xp_trainer_start(t));
    result->first_step = t->first_step;
    if (t->step >= t->config->training.steps) {
        result->already_done = true;
        xp_trainer_say(t,
                       "this run is complete: step %lld of %lld is in %s. To go on raise the "
                       "number of steps, for instance --training.steps %lld; for a new run choose "
                       "another --job.dump_folder",
                       (long long)t->step, (long long)t->config->training.steps, t->ckpt_folder,
                       (long long)(2 * t->step));
        return XP_OK;
    }
    XP_TRY(xp_trainer_open_metrics(t));
    double began = xp_time_s();
    XP_TRY(run_steps(t));
    XP_TRY(xp_shard_finish_gather(t->run.shard, t->run.stream));
    XP_TRY(xp_stream_sync(t->run.stream)); /* the last update */
    if (t->world)
        XP_TRY(xp_comm_async_error(t->world));
    result->seconds = xp_time_s() - began;
    result->n_step_allocs = xp_device_n_allocs(t->device) - t->n_allocs;
    result->stopped_by_signal = t->stop;
    if (!t->stop)
        XP_TRY(xp_trainer_export(t));
    xp_trainer_summarise(t, result->seconds);
    return XP_OK;
}

static void fill_result(const xp_trainer *t, xp_train_result *result) {
    result->last_step = t->step;
    result->steps_total = t->config->training.steps;
    result->tokens_seen = t->tokens_seen;
    result->mean_loss_last_50 = xp_trainer_recent_loss(t);
    snprintf(result->dump_folder, sizeof result->dump_folder, "%s", t->dump);
    if (t->last_published >= 0)
        snprintf(result->last_checkpoint, sizeof result->last_checkpoint, "%s/step-%lld",
                 t->ckpt_folder, (long long)t->last_published);
}

xp_status xp_trainer_open(const xp_config_set *config, xp_train_shared *shared, xp_comm *world,
                          int n_local_ranks, xp_log *log, xp_trainer **trainer) {
    xp_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return xp_error(XP_ENOMEM, "no memory for the trainer");
    *t = (xp_trainer){
        .set = config,
        .config = xp_config_get(config),
        .shared = shared,
        .world = world,
        .rank = world ? xp_comm_rank(world) : 0,
        .n_ranks = world ? xp_comm_size(world) : 1,
        .n_local_ranks = n_local_ranks,
        .last_saved = -1,
        .last_published = -1,
    };
    int64_t speaker = t->config->job.log_rank;
    t->leads = t->rank == 0;
    t->log = t->rank == (speaker > 0 ? speaker : 0) ? log : NULL;
    t->dump = t->config->job.dump_folder;
    xp_status status = create_parts(t);
    if (status != XP_OK) {
        if (world)
            xp_comm_abort(world, NULL);
        xp_trainer_close(t);
        return status;
    }
    *trainer = t;
    return XP_OK;
}

void xp_trainer_close(xp_trainer *trainer) {
    if (!trainer)
        return;
    destroy_parts(trainer);
    free(trainer);
}

xp_status xp_train_run(const xp_config_set *config, xp_train_shared *shared, xp_comm *world,
                       int n_local_ranks, xp_log *log, xp_train_result *result) {
    xp_trainer *t = NULL;
    memset(result, 0, sizeof *result);
    XP_TRY(xp_trainer_open(config, shared, world, n_local_ranks, log, &t));
    xp_status status = train(t, result);
    if (status == XP_OK)
        fill_result(t, result);
    else if (world)
        xp_comm_abort(world, NULL);
    xp_trainer_close(t);
    return status;
}
