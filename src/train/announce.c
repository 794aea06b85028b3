/* What a run says: messages, and its first lines. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "config/tuned.h"
#include "core/file.h"
#include "core/memory_limit.h"
#include "expar/version.h"
#include "train/hf_io.h"
#include "train/run_state.h"

#define GIB ((double)(1 << 30))

typedef void (*tell_fn)(xp_log *log, const char *format, ...);

static void tell(xp_trainer *t, tell_fn fn, const char *format, va_list args) {
    char line[2048];
    if (!t->log)
        return;
    vsnprintf(line, sizeof line, format, args);
    xp_progress_clear(t->progress);
    fn(t->log, "%s", line);
}

void xp_trainer_say(xp_trainer *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    tell(t, xp_log_info, format, args);
    va_end(args);
}

void xp_trainer_warn(xp_trainer *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    tell(t, xp_log_warn, format, args);
    va_end(args);
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
    char devices[48];
    if (t->n_gpus > 1)
        snprintf(devices, sizeof devices, "%d GPUs", t->n_gpus);
    else
        snprintf(devices, sizeof devices, "%s", xp_device_name(t->device));
    xp_trainer_say(t, "ranks: %d (replicate %d x shard %d, %s) on %s, %d thread%s each; %s weights",
                   mesh->n_ranks, mesh->n_replicate, mesh->n_shard, ep, devices, t->n_threads,
                   t->n_threads == 1 ? "" : "s", t->run.dtype == XP_BF16 ? "bfloat16" : "float32");
}

static void describe_data(xp_trainer *t) {
    char tokens[32];
    char rows[32];
    xp_format_thousands((double)xp_dataset_n_tokens(t->shared->data), tokens);
    xp_format_thousands((double)xp_dataset_n_rows(t->shared->data), rows);
    char sources[32];
    snprintf(sources, sizeof sources, "%d sources", t->config->training.datasets.n);
    xp_trainer_say(t,
                   "data: %s, %s tokens = %s rows of %lld; a step takes %lld rows (%lld a rank x "
                   "%d ranks x %lld microbatches)",
                   t->config->training.datasets.n > 0 ? sources : t->config->training.dataset_path,
                   tokens, rows, (long long)t->run.seq_len, (long long)t->run.global_batch,
                   (long long)t->run.local_batch, t->n_ranks, (long long)t->run.n_microbatches);
}

/* "1.25 GiB", "69 MiB", "3.1 MiB" */
static int put_size(char *out, size_t room, int64_t n_bytes) {
    double mib = (double)n_bytes / (GIB / 1024);
    if (n_bytes >= 1 << 28)
        return snprintf(out, room, "%.2f GiB", mib / 1024);
    return snprintf(out, room, "%.*f MiB", mib < 10 ? 1 : 0, mib);
}

/* What takes the memory, the largest first. */
static void describe_tags(xp_trainer *t, xp_memory_prediction *p) {
    char tags[512] = "";
    size_t used = 0;
    xp_predict_sort_tags(p);
    for (int i = 0; i < p->n_tags && p->tags[i].n_bytes > 0 && used + 64 < sizeof tags; i++) {
        used += (size_t)snprintf(tags + used, 48, "%s%.32s ", i > 0 ? ", " : "", p->tags[i].tag);
        used += (size_t)put_size(tags + used, sizeof tags - used, p->tags[i].n_bytes);
    }
    xp_trainer_say(t, "memory: of it %s", tags);
}

/* Known before anything is reserved; what the driver and its libraries take comes on top. */
static xp_status check_memory(const xp_trainer *t, const xp_memory_prediction *p) {
    const double has = (double)xp_device_total_bytes(t->device);
    const double wants = (double)p->device_bytes * t->n_on_device;
    char sharers[48] = "";
    if (has <= 0 || wants <= has)
        return XP_OK;
    if (t->n_on_device > 1)
        snprintf(sharers, sizeof sharers, " (%d ranks share it)", t->n_on_device);
    return xp_error(XP_ENOMEM,
                    "this run needs %.2f GiB of memory on %s%s, which has %.2f GiB. A smaller "
                    "training.local_batch_size or training.seq_len, activation_checkpoint.mode = "
                    "\"full\", or more ranks need less",
                    wants / GIB, xp_device_name(t->device), sharers, has / GIB);
}

/* Of all ranks of this machine together. Without this the kernel would kill the process later, without a word. */
static xp_status check_host_memory(const xp_trainer *t, int64_t needs, int n_ranks) {
    const xp_memory_limit limit = xp_memory_limit_get();
    char sharers[48] = "";
    if (!t->config->job.check_memory || limit.n_bytes == 0 || needs <= limit.n_bytes)
        return XP_OK;
    if (n_ranks > 1)
        snprintf(sharers, sizeof sharers, " for %d ranks", n_ranks);
    return xp_error(
        XP_ENOMEM,
        "this run needs %.2f GiB of memory on the CPU%s, and %s %.2f GiB. A smaller model, "
        "training.local_batch_size or training.seq_len, activation_checkpoint.mode = "
        "\"full\", or fewer ranks (NGPU) need less; job.check_memory = false starts it all the "
        "same",
        (double)needs / GIB, sharers,
        limit.is_of_group ? "its control group allows" : "this machine has",
        (double)limit.n_bytes / GIB);
}

xp_status xp_trainer_announce_memory(xp_trainer *t) {
    xp_mesh layout;
    xp_memory_prediction p;
    /* Ranks that do not speak still look whether they fit. */
    if (!t->log && xp_device_total_bytes(t->device) == 0)
        return XP_OK;
    if (t->world)
        xp_comm_set_phase(t->world, "looking at the memory");
    XP_TRY(xp_mesh_layout(t->config, t->n_ranks, t->rank, &layout));
    layout.ep_nodes = xp_mesh_ep_nodes(&layout, t->world ? xp_comm_n_nodes(t->world) : 1);
    layout.separate_processes = t->world && !xp_comm_same_process(t->world);
    layout.shares_gpus = t->shares_gpus;
    /* A guarded CPU stands for a GPU. */
    bool on_host = xp_device_host_accessible(t->device);
    XP_TRY(xp_predict_memory_within(on_host ? XP_DEVICE_CPU : XP_DEVICE_CUDA,
                                    xp_device_total_bytes(t->device), t->config, &layout, &p));
    t->predicted = p;
    int local = t->world ? t->n_local_ranks : 1;
    int in_process = xp_mpi_launched() ? 1 : local;
    int64_t process = xp_predict_process_bytes(&p, in_process, xp_process_rss());
    xp_trainer_say(t, "memory: predicted %.2f GiB per rank; %.2f GiB for this process",
                   (double)(p.device_bytes + p.host_bytes) / GIB, (double)process / GIB);
    describe_tags(t, &p);
    if (on_host)
        return check_host_memory(t, process / in_process * local, local);
    return check_memory(t, &p);
}

/* How far what is reserved under a tag is from what was foretold; the whole of it where nothing
 * was.
 */
static void look_at_tag(const xp_trainer *t, const char *name, double *worst, const char **tag) {
    double was = 0, is = (double)xp_device_bytes(t->device, name);
    for (int i = 0; i < t->predicted.n_tags; i++)
        if (strcmp(t->predicted.tags[i].tag, name) == 0)
            was = (double)t->predicted.tags[i].n_bytes;
    if (was == 0 && is == 0)
        return;
    const double percent = was > 0 ? 100 * (is - was) / was : 100;
    if (percent * percent > *worst * *worst) {
        *worst = percent;
        *tag = name;
    }
}

void xp_trainer_compare_memory(xp_trainer *t) {
    const xp_memory_prediction *p = &t->predicted;
    double worst = 0;
    const char *tag = "", *next;
    if (!t->log || xp_device_host_accessible(t->device))
        return;
    for (int i = 0; i < p->n_tags; i++)
        look_at_tag(t, p->tags[i].tag, &worst, &tag);
    for (int i = 0; (next = xp_device_tag(t->device, i)) != NULL; i++)
        look_at_tag(t, next, &worst, &tag);
    if (xp_model_reuses_for_grads(t->run.model))
        xp_trainer_say(t, "memory: gradients take that of expert rows which backward has read");
    char taken[32] = "";
    put_size(taken, sizeof taken, xp_device_bytes(t->device, NULL));
    if (worst == 0)
        xp_trainer_say(t, "memory: reserved %s of device memory, every part as predicted", taken);
    else
        xp_trainer_say(t,
                       "memory: reserved %s of device memory, every part within %.2f %% of its "
                       "prediction (%s is the furthest: %+.3f %%)",
                       taken, worst < 0 ? -worst : worst, tag, worst);
}

static void warn_without_effect(void *context, const char *text) {
    xp_trainer_warn(context, "%s", text);
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
    if (xp_config_tuned_note(t->set))
        xp_trainer_say(t, "tuned: %s", xp_config_tuned_note(t->set));
    for (int i = 0; xp_config_warning(t->set, i); i++)
        xp_trainer_warn(t, "%s", xp_config_warning(t->set, i));
    const xp_config_facts facts = {.has_experts = t->shared->arch.n_experts > 0,
                                   .on_gpu = xp_device_get_kind(t->device) != XP_DEVICE_CPU};
    if (t->log && xp_config_effects(t->set, &facts, warn_without_effect, t) != XP_OK)
        xp_trainer_warn(t, "%s", xp_last_error());
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

static void warn_about_copies(xp_trainer *t) {
    const int64_t n = t->config->debug.moe_send_copies;
    if (n > 1 && t->run.mesh.ep_size > 1)
        xp_trainer_warn(
            t,
            "debug.moe_send_copies is %lld: every row that goes to another rank is sent "
            "so many times; this run is for measurements only",
            (long long)n);
}

static void describe_checkpoints(xp_trainer *t) {
    if (!t->config->checkpoint.enable)
        xp_trainer_say(t, "checkpoints: off, nothing will be saved (--checkpoint.enable saves)");
    else if (t->config->debug.moe_force_load_balance && t->n_moe_layers > 0)
        xp_trainer_warn(t,
                        "debug.moe_force_load_balance is on: tokens go to experts by number, and "
                        "the router learns nothing; the checkpoints are for measurements only");
}

/* Other programs route without the bias: what that costs shows only at the end, how to do without must be known
 * at the start. */
static void describe_expert_bias(xp_trainer *t) {
    const double coeff = t->config->moe.load_balance_coeff;
    if (t->n_moe_layers == 0 || coeff == 0)
        return;
    xp_trainer_say(t,
                   "expert bias: moe.load_balance_coeff = %g trains one, which transformers and "
                   "vLLM do not know; an "
                   "export keeps it in " XP_HF_EXTRA_FILE ". moe.load_balance_coeff = 0 with "
                   "moe.aux_loss_coeff = 1e-3 balances without it",
                   coeff);
}

void xp_trainer_describe(xp_trainer *t) {
    describe_model(t);
    describe_ranks(t);
    describe_data(t);
    describe_checkpoints(t);
    warn_about_copies(t);
    describe_expert_bias(t);
    warn_about_schedule(t);
}
