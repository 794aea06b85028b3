/* What a run says: messages, and its first lines. */
#include <stdarg.h>
#include <stdio.h>
#include "core/file.h"
#include "expar/version.h"
#include "predict/predict.h"
#include "train/run_state.h"

#define GIB ((double)(1 << 30))

void xp_trainer_say(xp_trainer *t, const char *format, ...) {
    if (!t->log)
        return;
    char line[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    xp_progress_clear(t->progress);
    xp_log_info(t->log, "%s", line);
}

void xp_trainer_warn(xp_trainer *t, const char *format, ...) {
    if (!t->log)
        return;
    char line[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    xp_progress_clear(t->progress);
    xp_log_warn(t->log, "%s", line);
}

static void describe_model(xp_trainer *t) {
    const xp_arch *arch = &t->run.arch;
    char total[32];
    char active[32];
    xp_format_thousands((double)xp_arch_n_params(arch), total);
    xp_format_thousands((double)xp_arch_n_active_params(arch), active);
    xp_trainer_say(t, "model: %s %s, %s parameters, %s active", t->config->model.name, arch->flavor,
                   total, active);
}

static const char *transport_name(const xp_trainer *t) {
    const char *backend = t->config->parallelism.expert_parallel_comm_backend;
    return backend ? backend : (t->run.arch.use_deepep ? "deepep" : "standard");
}

static void describe_ranks(xp_trainer *t) {
    const xp_mesh *mesh = &t->run.mesh;
    char ep[64] = "no experts";
    if (t->n_moe_layers > 0)
        snprintf(ep, sizeof ep, "expert parallel %d (%s)", mesh->ep_size, transport_name(t));
    xp_trainer_say(t, "ranks: %d (replicate %d x shard %d, %s) on %s, %d thread%s each; %s weights",
                   mesh->n_ranks, mesh->n_replicate, mesh->n_shard, ep, xp_device_name(t->device),
                   t->n_threads, t->n_threads == 1 ? "" : "s",
                   t->run.dtype == XP_BF16 ? "bfloat16" : "float32");
}

static void describe_data(xp_trainer *t) {
    char tokens[32];
    char rows[32];
    xp_format_thousands((double)xp_dataset_n_tokens(t->shared->data), tokens);
    xp_format_thousands((double)xp_dataset_n_rows(t->shared->data), rows);
    xp_trainer_say(t,
                   "data: %s, %s tokens = %s rows of %lld; a step takes %lld rows (%lld a rank x "
                   "%d ranks x %lld microbatches)",
                   t->config->training.dataset_path, tokens, rows, (long long)t->run.seq_len,
                   (long long)t->run.global_batch, (long long)t->run.local_batch, t->n_ranks,
                   (long long)t->run.n_microbatches);
}

xp_status xp_trainer_announce_memory(xp_trainer *t) {
    xp_mesh layout;
    xp_memory_prediction p;
    if (!t->log)
        return XP_OK;
    XP_TRY(xp_mesh_layout(t->config, t->n_ranks, t->rank, &layout));
    XP_TRY(xp_predict_memory(t->config, &layout, &p));
    char tags[512] = "";
    size_t used = 0;
    for (int i = 0; i < p.n_tags && used < sizeof tags; i++) {
        bool small = p.tags[i].n_bytes < 1 << 28;
        double size = (double)p.tags[i].n_bytes / (small ? GIB / 1024 : GIB);
        int n = snprintf(tags + used, sizeof tags - used, "%s%s %.*f %s", i > 0 ? ", " : "",
                         p.tags[i].tag, small ? 0 : 2, size, small ? "MiB" : "GiB");
        used += n > 0 ? (size_t)n : 0;
    }
    int local = t->world ? t->n_local_ranks : 1;
    int in_process = xp_mpi_launched() ? 1 : local;
    int64_t process = xp_predict_process_bytes(&p, in_process, xp_process_rss());
    xp_trainer_say(t, "memory: predicted %.2f GiB per rank (%s); %.2f GiB for this process",
                   (double)(p.device_bytes + p.host_bytes) / GIB, tags, (double)process / GIB);
    return XP_OK;
}

void xp_trainer_announce(xp_trainer *t) {
    const xp_ops *ops = NULL;
    if (xp_ops_get(t->device, &ops) != XP_OK)
        return;
    xp_trainer_say(t, "expar " XP_VERSION " (%s, compiler " __VERSION__ ")", ops->name);
    if (t->config->job.config_file)
        xp_trainer_say(t, "config: %s", t->config->job.config_file);
    else
        xp_trainer_say(t, "config: defaults (no file: CONFIG_FILE or --job.config_file names one)");
    if (t->config->job.description && t->config->job.description[0])
        xp_trainer_say(t, "job: %s", t->config->job.description);
    for (int i = 0; xp_config_warning(t->set, i); i++)
        xp_trainer_warn(t, "%s", xp_config_warning(t->set, i));
}

static void warn_about_schedule(xp_trainer *t) {
    if (t->schedule.warmup_cut)
        xp_trainer_warn(t,
                        "lr_scheduler.warmup_steps %lld is more than the run's steps: cut to "
                        "%lld",
                        (long long)t->config->lr_scheduler.warmup_steps,
                        (long long)t->schedule.warmup_steps);
    if (t->schedule.decay_cut)
        xp_trainer_warn(t,
                        "lr_scheduler: warm-up and decay are longer than the run: the decay is "
                        "cut to %lld steps",
                        (long long)t->schedule.decay_steps);
}

void xp_trainer_describe(xp_trainer *t) {
    describe_model(t);
    describe_ranks(t);
    describe_data(t);
    warn_about_schedule(t);
}
