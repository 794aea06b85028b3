/* expar plan: memory and speed of one combination of settings, and what would fit where it does not. */
#include <stdio.h>
#include <string.h>
#include "ep/internal.h"
#include "plan.h"
#include "train/start_choice.h"

#define MOST_GPUS   2    /* that a run was timed on */
#define SHORT_SHARE 0.25 /* of a step that launches take */

const char *const plan_modes[] = {"none", "selective", "full", NULL};

static double gib(int64_t n_bytes) {
    return (double)n_bytes / PLAN_GIB;
}

/* On a CPU the run's host memory comes out of the same memory. */
static int64_t bytes_of(const xp_memory_prediction *memory) {
    return memory->device_bytes + (memory->kind == XP_DEVICE_CPU ? memory->host_bytes : 0);
}

bool plan_fits(const plan *p, const xp_memory_prediction *memory) {
    return gib(bytes_of(memory)) <= p->room_gib;
}

const char *plan_unit(const plan *p) {
    return p->hardware.is_cpu ? "rank" : "GPU";
}

double plan_memory_gib(const plan *p, const plan_row *r) {
    (void)p;
    return gib(bytes_of(&r->memory));
}

double plan_tokens_per_s_gpu(const plan_row *r) {
    return r->has_speed ? r->step.tokens / r->step.step_s : 0;
}

double plan_mfu_percent(const plan *p, const plan_row *r) {
    const double sharers = p->hardware.is_cpu ? p->cluster.gpus_per_node : 1;
    return 100 * r->step.flops / r->step.step_s / (p->hardware.limits.tflops * 1e12 / sharers);
}

const char *plan_transport_name(const plan_row *r) {
    static const char *const names[] = {"-", "p2p", "a2a", "hierarchical"};
    return names[r->step.transport];
}

bool plan_is_short(const plan_row *r) {
    return r->has_speed && r->step.launch_s > SHORT_SHARE * r->step.step_s;
}

bool plan_is_measured(const plan *p, const plan_row *r) {
    return p->hardware.has_own_shares && r->ranks <= MOST_GPUS;
}

double plan_days(const plan *p, const plan_row *r) {
    return p->tokens / (plan_tokens_per_s_gpu(r) * (double)r->ranks) / 86400;
}

double plan_gpu_hours(const plan *p, const plan_row *r) {
    return plan_days(p, r) * 24 * (double)r->ranks;
}

/* ---- settings ------------------------------------------------------------------------------- */

static const char *mode_named(const char *name) {
    for (int i = 0; plan_modes[i]; i++)
        if (name && strcmp(name, plan_modes[i]) == 0)
            return plan_modes[i];
    return plan_modes[0];
}

plan_setting plan_own_setting(const plan *p) {
    const xp_config *c = p->config;
    return (plan_setting){.nodes = 1,
                          .batch = c->training.local_batch_size,
                          .ep = c->parallelism.expert_parallel_degree,
                          .replicas = c->parallelism.data_parallel_replicate_degree,
                          .mode = mode_named(c->activation_checkpoint.mode),
                          .overlap = c->parallelism.expert_parallel_overlap > 0,
                          .transport = c->deepep.transport};
}

static xp_status set_int(plan *p, const char *key, int64_t now, int64_t value) {
    char text[32];
    if (now == value)
        return XP_OK;
    snprintf(text, sizeof text, "%lld", (long long)value);
    return xp_config_override(p->set, key, text);
}

static xp_status set_mode(plan *p, const char *mode) {
    if (mode_named(p->config->activation_checkpoint.mode) == mode)
        return XP_OK;
    return xp_config_override(p->set, "activation_checkpoint.mode", mode);
}

xp_status plan_apply(plan *p, const plan_setting *s) {
    const xp_config *c = p->config;
    XP_TRY(set_int(p, "training.local_batch_size", c->training.local_batch_size, s->batch));
    XP_TRY(set_int(p, "parallelism.expert_parallel_degree", c->parallelism.expert_parallel_degree,
                   s->ep));
    if (s->replicas != c->parallelism.data_parallel_replicate_degree)
        XP_TRY(set_int(p, "parallelism.data_parallel_shard_degree",
                       c->parallelism.data_parallel_shard_degree, -1));
    XP_TRY(set_int(p, "parallelism.data_parallel_replicate_degree",
                   c->parallelism.data_parallel_replicate_degree, s->replicas));
    XP_TRY(set_mode(p, s->mode));
    if (s->overlap != (c->parallelism.expert_parallel_overlap > 0))
        XP_TRY(xp_config_override(p->set, "parallelism.expert_parallel_overlap",
                                  s->overlap ? "true" : "auto"));
    const char *transport = c->deepep.transport ? c->deepep.transport : "auto";
    if (s->transport && strcmp(s->transport, transport) != 0)
        XP_TRY(xp_config_override(p->set, "deepep.transport", s->transport));
    return XP_OK;
}

/* "1, 2, 4 or 8": degrees that divide the ranks and the experts. */
static void list_degrees(const plan *p, int64_t ranks, xp_text *t) {
    int64_t last = 0;
    for (int64_t ep = 1; ep <= ranks && ep <= XP_EP_GPU_MAX_RANKS; ep++) {
        if (ranks % ep != 0 || p->arch.n_experts % ep != 0)
            continue;
        if (last > 0)
            xp_text_printf(t, "%s%lld", t->length > 0 ? ", " : "", (long long)last);
        last = ep;
    }
    xp_text_printf(t, "%s%lld", t->length > 0 ? " or " : "", (long long)last);
}

xp_status plan_check_ep(const plan *p, const plan_setting *s) {
    const int64_t all = s->nodes * p->cluster.gpus_per_node;
    const int64_t replicas = s->replicas > 0 && all % s->replicas == 0 ? s->replicas : 1;
    const int64_t ranks = all / replicas;
    xp_text degrees = {0};
    if (s->ep <= 0 || p->arch.n_experts == 0 || ranks % s->ep == 0)
        return XP_OK;
    list_degrees(p, ranks, &degrees);
    const xp_status status = xp_error(
        XP_ECONFIG,
        "parallelism.expert_parallel_degree %lld does not divide the %lld rank%s%s (--nodes %lld, "
        "--gpus-per-node %d): plan with --ep %s, or other numbers of nodes and %s",
        (long long)s->ep, (long long)ranks, ranks > 1 ? "s" : "",
        replicas > 1 ? " of a replica" : "", (long long)s->nodes, p->cluster.gpus_per_node,
        degrees.failed ? "1" : degrees.data, p->hardware.is_cpu ? "ranks" : "GPUs");
    xp_text_free(&degrees);
    return status;
}

xp_status plan_layout(const plan *p, int64_t nodes, xp_mesh *layout) {
    const int n_ranks = (int)nodes * p->cluster.gpus_per_node;
    XP_TRY(xp_mesh_layout(p->config, n_ranks, 0, layout));
    layout->ep_nodes = xp_mesh_ep_nodes(layout, (int)nodes);
    for (int rank = layout->ep_size; rank < n_ranks && nodes > 1; rank += layout->ep_size) {
        xp_mesh other;
        XP_TRY(xp_mesh_layout(p->config, n_ranks, rank, &other));
        other.ep_nodes = xp_mesh_ep_nodes(&other, (int)nodes);
        if (other.ep_nodes > layout->ep_nodes)
            *layout = other;
    }
    /* As on machines with as many GPUs: job.ranks decides. */
    xp_config config = *p->config;
    config.job.ngpu = p->cluster.gpus_per_node;
    const xp_start_facts facts = {.n_gpus = p->hardware.is_cpu ? 0 : p->cluster.gpus_per_node,
                                  .n_nodes = (int)nodes,
                                  .on_nodes = nodes > 1};
    xp_start start;
    XP_TRY(xp_start_choose_from(&config, &facts, &start));
    layout->separate_processes = start.kind == XP_START_PROCESSES;
    return XP_OK;
}

xp_status plan_memory_at(plan *p, const xp_mesh *layout, int64_t batch,
                         xp_memory_prediction *memory) {
    const xp_device_kind kind = p->hardware.is_cpu ? XP_DEVICE_CPU : XP_DEVICE_CUDA;
    XP_TRY(set_int(p, "training.local_batch_size", p->config->training.local_batch_size, batch));
    const int64_t total =
        p->hardware.is_cpu ? 0 : (int64_t)(p->hardware.limits.memory_gib * PLAN_GIB);
    return xp_predict_memory_within(kind, total, p->config, layout, memory);
}

static bool fits_at(plan *p, const xp_mesh *layout, int64_t batch, xp_memory_prediction *memory) {
    return plan_memory_at(p, layout, batch, memory) == XP_OK && plan_fits(p, memory);
}

/* With a fixed global batch only divisors of a rank's rows are runs (fewer rows a pass are more passes). */
static int64_t largest_divisor(plan *p, const xp_mesh *layout, int64_t most,
                               xp_memory_prediction *memory) {
    const int64_t rows = p->config->training.global_batch_size / layout->n_ranks;
    for (int64_t batch = most < rows ? most : rows; batch > 0; batch--)
        if (rows % batch == 0 && fits_at(p, layout, batch, memory))
            return batch;
    return 0;
}

/* Predicting memory lays the whole run out, so few batches are tried: away from the guess in steps
 * that double, then halves of what is between the last that fits and the first that does not. */
int64_t plan_largest_batch(plan *p, const xp_mesh *layout, int64_t most, int64_t guess,
                           xp_memory_prediction *memory) {
    if (p->config->training.global_batch_size > 0)
        return largest_divisor(p, layout, most, memory);
    int64_t low = 0, high = most + 1; /* low fits, high is too large */
    int64_t next = guess < 1 ? 1 : guess < most ? guess : most, step = 1;
    bool has_fit = false, has_failed = false;
    xp_memory_prediction at;
    while (high - low > 1) {
        if (fits_at(p, layout, next, &at)) {
            low = next;
            *memory = at;
            has_fit = true;
        } else {
            high = next;
            has_failed = true;
        }
        if (has_fit && has_failed) {
            next = low + (high - low) / 2;
            continue;
        }
        next = has_fit ? low + step : high - step;
        next = next < 1 ? 1 : next < most ? next : most;
        step *= 2;
    }
    return low;
}

/* ---- advice --------------------------------------------------------------------------------- */

/* Nothing fits, whatever the batch: what is too large. `memory` is of one row a pass with full
 * recomputation, if that is a run. */
static void explain(const plan *p, const xp_mesh *layout, const xp_memory_prediction *memory,
                    plan_row *r) {
    double resident = 0;
    for (int i = 0; i < memory->n_tags; i++)
        if (strcmp(memory->tags[i].tag, "params") == 0 || strcmp(memory->tags[i].tag, "grads") == 0)
            resident += gib(memory->tags[i].n_bytes);
    const bool more_ep =
        p->arch.n_experts > layout->ep_size && layout->ep_size < XP_EP_GPU_MAX_RANKS;
    if (resident <= p->room_gib)
        snprintf(r->advice, sizeof r->advice,
                 "no batch fits, with full recomputation neither: more nodes share the optimizer's "
                 "state%s",
                 more_ep ? ", a larger expert parallel degree the experts" : "");
    else
        snprintf(r->advice, sizeof r->advice, "parameters and gradients alone take %.1f GiB: %s",
                 resident,
                 more_ep ? "a larger expert parallel degree shares the experts"
                         : "they are not sharded, so this model does not fit this GPU");
}

/* What would fit, each tried in the run's own reservation: the least recomputation at this batch,
 * a smaller batch as it is, else a smaller batch with more recomputation. */
static void advise(plan *p, const xp_mesh *layout, plan_row *r) {
    int first = 0;
    while (plan_modes[first] != r->setting.mode)
        first++;
    int64_t batch[3] = {0};
    xp_memory_prediction memory[3] = {0};
    for (int mode = first; mode < 3; mode++)
        if (set_mode(p, plan_modes[mode]) == XP_OK)
            batch[mode] = plan_largest_batch(p, layout, r->setting.batch, 1, &memory[mode]);
    size_t used = 0;
    for (int mode = first + 1; mode < 3 && used == 0; mode++)
        if (batch[mode] == r->setting.batch)
            used += (size_t)snprintf(r->advice, sizeof r->advice,
                                     "activation_checkpoint.mode = \"%s\" needs %.1f GiB",
                                     plan_modes[mode], gib(memory[mode].device_bytes));
    if (batch[first] > 0)
        used += (size_t)snprintf(r->advice + used, sizeof r->advice - used, "%sbatch %lld fits",
                                 used > 0 ? "; " : "", (long long)batch[first]);
    for (int mode = first + 1; mode < 3 && used == 0; mode++)
        if (batch[mode] > 0)
            used += (size_t)snprintf(
                r->advice, sizeof r->advice,
                "activation_checkpoint.mode = \"%s\" and batch %lld need %.1f GiB",
                plan_modes[mode], (long long)batch[mode], gib(memory[mode].device_bytes));
    if (used == 0) {
        memory[2] = (xp_memory_prediction){0};
        if (plan_memory_at(p, layout, 1, &memory[2]) != XP_OK)
            memory[2] = r->memory;
        explain(p, layout, &memory[2], r);
    }
    if (set_mode(p, plan_modes[first]) != XP_OK)
        snprintf(r->advice, sizeof r->advice, "%s", xp_last_error());
}

static void keep_error(char *text) {
    snprintf(text, PLAN_MAX_TEXT, "%s", xp_last_error());
}

void plan_work_out(plan *p, plan_row *r) {
    xp_mesh layout;
    const plan_setting *s = &r->setting;
    r->ranks = s->nodes * p->cluster.gpus_per_node;
    if (plan_apply(p, s) != XP_OK || plan_check_ep(p, s) != XP_OK ||
        plan_layout(p, s->nodes, &layout) != XP_OK ||
        plan_memory_at(p, &layout, s->batch, &r->memory) != XP_OK) {
        keep_error(r->error);
        return;
    }
    r->is_run = true;
    r->ep_size = layout.ep_size;
    r->fits = plan_fits(p, &r->memory);
    r->has_speed = r->fits && xp_predict_step(p->config, &layout, &p->cluster, &r->step) == XP_OK;
    if (r->fits && !r->has_speed)
        keep_error(r->error);
    if (!r->fits)
        advise(p, &layout, r);
}
