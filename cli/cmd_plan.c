/* expar plan: memory and speed of a configuration on GPUs that need not be here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "config_words.h"
#include "train/complete.h"
#include "core/text.h"
#include "device/plugin.h"
#include "ep/internal.h"
#include "lists.h"
#include "model/arch.h"
#include "options.h"
#include "predict/predict.h"
#include "predict/step_time.h"
#include "train/start_choice.h"

#define GIB         ((double)(1 << 30))
#define CONTEXT_GIB 1.1 /* that driver and libraries take beside a run: 1.03 on an H200 */
#define MOST_GPUS   2   /* that a run was timed on */
#define MAX_ERROR   400
#define SHORT_S     20e-3 /* shorter passes came out too fast (docs/explanation/planning.md) */

typedef struct plan_options {
    const char *gpu, *nodes, *batch;
    int64_t gpus_per_node;
    double network_gbps;
    bool json;
    cli_config_words words;
} plan_options;

typedef struct plan {
    const plan_options *o;
    xp_config_set *set;
    const xp_config *config;
    xp_arch arch;
    xp_gpu gpu;
    xp_cluster cluster;
    double room_gib; /* of a GPU, for a run */
} plan;

/* One row of the table. */
typedef struct row {
    int64_t nodes, ranks, batch;
    int ep_size;
    bool is_run, fits, has_speed; /* speed: of what fits */
    char error[MAX_ERROR];        /* why it is no run, or why its speed is not known */
    char advice[MAX_ERROR];
    xp_memory_prediction memory;
    xp_step_prediction step;
} row;

static double gib(int64_t n_bytes) {
    return (double)n_bytes / GIB;
}

static bool fits(const plan *p, const xp_memory_prediction *memory) {
    return gib(memory->device_bytes) <= p->room_gib;
}

static void keep_error(char *text) {
    snprintf(text, MAX_ERROR, "%s", xp_last_error());
}

/* ---- one combination ------------------------------------------------------------------------ */

/* The layout of a rank whose EP group lies on the most nodes. */
static xp_status layout_of(const plan *p, int64_t nodes, xp_mesh *layout) {
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
    const xp_start_facts facts = {
        .n_gpus = p->cluster.gpus_per_node, .n_nodes = (int)nodes, .on_nodes = nodes > 1};
    xp_start start;
    XP_TRY(xp_start_choose_from(&config, &facts, &start));
    layout->separate_processes = start.kind == XP_START_PROCESSES;
    return XP_OK;
}

static xp_status memory_at(plan *p, const xp_mesh *layout, int64_t batch,
                           xp_memory_prediction *memory) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)batch);
    XP_TRY(xp_config_override(p->set, "training.local_batch_size", text));
    const int64_t total = (int64_t)(p->cluster.gpu->memory_gib * GIB);
    return xp_predict_memory_within(XP_DEVICE_CUDA, total, p->config, layout, memory);
}

static bool fits_at(plan *p, const xp_mesh *layout, int64_t batch, xp_memory_prediction *memory) {
    return memory_at(p, layout, batch, memory) == XP_OK && fits(p, memory);
}

/* The largest batch up to `most` that fits, and what it needs; 0: none. With a fixed global batch
 * only divisors of a rank's rows are runs (fewer rows a pass are more passes). */
static int64_t largest_batch(plan *p, const xp_mesh *layout, int64_t most,
                             xp_memory_prediction *memory) {
    const int64_t global = p->config->training.global_batch_size;
    if (global > 0) {
        const int64_t rows = global / layout->n_ranks;
        for (int64_t batch = most < rows ? most : rows; batch > 0; batch--)
            if (rows % batch == 0 && fits_at(p, layout, batch, memory))
                return batch;
        return 0;
    }
    int64_t low = 0, high = most + 1; /* low fits, high is too large */
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        *(fits_at(p, layout, middle, memory) ? &low : &high) = middle;
    }
    return low > 0 && fits_at(p, layout, low, memory) ? low : 0;
}

/* Nothing fits, whatever the batch: what is too large. `memory` is of one row a pass with full
 * recomputation, if that is a run. */
static void explain(const plan *p, const xp_mesh *layout, const xp_memory_prediction *memory,
                    row *r) {
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

static xp_status set_mode(plan *p, const char *mode) {
    return xp_config_override(p->set, "activation_checkpoint.mode", mode);
}

/* What would fit, each tried in the run's own reservation: the least recomputation at this batch,
 * a smaller batch as it is, else a smaller batch with more recomputation. */
static void advise(plan *p, const xp_mesh *layout, row *r) {
    static const char *const modes[] = {"none", "selective", "full"};
    const char *own = p->config->activation_checkpoint.mode;
    int mode = own && strcmp(own, "full") == 0 ? 2 : own && strcmp(own, "selective") == 0 ? 1 : 0;
    const int first = mode;
    int64_t batch[3] = {0};
    xp_memory_prediction memory[3] = {0};
    for (; mode < 3; mode++)
        if (set_mode(p, modes[mode]) == XP_OK)
            batch[mode] = largest_batch(p, layout, r->batch, &memory[mode]);
    size_t used = 0;
    for (mode = first + 1; mode < 3 && used == 0; mode++)
        if (batch[mode] == r->batch)
            used += (size_t)snprintf(r->advice, sizeof r->advice,
                                     "activation_checkpoint.mode = \"%s\" needs %.1f GiB",
                                     modes[mode], gib(memory[mode].device_bytes));
    if (batch[first] > 0)
        used += (size_t)snprintf(r->advice + used, sizeof r->advice - used, "%sbatch %lld fits",
                                 used > 0 ? "; " : "", (long long)batch[first]);
    for (mode = first + 1; mode < 3 && used == 0; mode++)
        if (batch[mode] > 0)
            used += (size_t)snprintf(
                r->advice, sizeof r->advice,
                "activation_checkpoint.mode = \"%s\" and batch %lld need %.1f GiB", modes[mode],
                (long long)batch[mode], gib(memory[mode].device_bytes));
    if (used == 0) {
        memory[2] = (xp_memory_prediction){0};
        if (memory_at(p, layout, 1, &memory[2]) != XP_OK)
            memory[2] = r->memory;
        explain(p, layout, &memory[2], r);
    }
    if (set_mode(p, modes[first]) != XP_OK)
        snprintf(r->advice, sizeof r->advice, "%s", xp_last_error());
}

static void work_out(plan *p, row *r) {
    xp_mesh layout;
    r->ranks = r->nodes * p->cluster.gpus_per_node;
    if (layout_of(p, r->nodes, &layout) != XP_OK ||
        memory_at(p, &layout, r->batch, &r->memory) != XP_OK) {
        keep_error(r->error);
        return;
    }
    r->is_run = true;
    r->ep_size = layout.ep_size;
    r->fits = fits(p, &r->memory);
    r->has_speed = r->fits && xp_predict_step(p->config, &layout, &p->cluster, &r->step) == XP_OK;
    if (r->fits && !r->has_speed)
        keep_error(r->error);
    if (!r->fits)
        advise(p, &layout, r);
}

static bool is_short(const row *r) {
    return r->has_speed && r->step.step_s < SHORT_S * (double)r->step.n_passes;
}

static double mfu_percent(const plan *p, const row *r) {
    return 100 * r->step.flops / r->step.step_s / (p->cluster.gpu->bf16_tflops * 1e12);
}

static const char *transport_name(const row *r) {
    static const char *const names[] = {"-", "p2p", "a2a", "hierarchical"};
    return names[r->step.transport];
}

/* ---- text ----------------------------------------------------------------------------------- */

/* The largest parts of the memory. */
static void print_parts(const row *r, int n_most) {
    xp_memory_prediction sorted = r->memory;
    xp_predict_sort_tags(&sorted);
    for (int i = 0; i < sorted.n_tags && i < n_most && sorted.tags[i].n_bytes > 0; i++)
        printf("%s%s %.1f", i > 0 ? ", " : "", sorted.tags[i].tag, gib(sorted.tags[i].n_bytes));
}

static void print_head(const plan *p) {
    const xp_config *c = p->config;
    const char *mode = c->activation_checkpoint.mode;
    printf("model: %s, %lld million parameters, %lld million active; rows of %lld tokens; "
           "recomputation: %s\n",
           p->arch.flavor, (long long)(xp_arch_n_params(&p->arch) / 1000000),
           (long long)(xp_arch_n_active_params(&p->arch) / 1000000), (long long)c->training.seq_len,
           mode ? mode : "none");
    printf("GPUs: %s, %.1f GiB for a run of %.1f, %d a node; %.0f GB/s between nodes\n\n",
           p->cluster.gpu->name, p->room_gib, p->cluster.gpu->memory_gib, p->cluster.gpus_per_node,
           p->cluster.network_gbps);
    printf("%5s %5s %4s %5s  %8s %6s  %9s %11s %6s  %8s %8s %8s  %s\n", "nodes", "GPUs", "EP",
           "batch", "GiB", "share", "tok/s/GPU", "tok/s", "MFU", "in node", "network", "sharding",
           "transport");
}

static void print_row(const plan *p, const row *r) {
    printf("%5lld %5lld ", (long long)r->nodes, (long long)r->ranks);
    if (!r->is_run) {
        printf("%4s %5lld  no run: %s\n", "", (long long)r->batch, r->error);
        return;
    }
    const double need = gib(r->memory.device_bytes);
    printf("%4d %5lld  %8.1f %5.0f%%  ", r->ep_size, (long long)r->batch, need,
           100 * need / p->room_gib);
    if (!r->fits) {
        printf("out of memory: %.1f GiB too much (", need - p->room_gib);
        print_parts(r, 3);
        printf("); %s\n", r->advice);
        return;
    }
    if (!r->has_speed) {
        printf("fits; no speed: %s\n", r->error);
        return;
    }
    const xp_step_prediction *s = &r->step;
    printf("%9.0f %11.0f %5.1f%%  %6.1fGB %6.1fGB %6.1fGB  %s\n", s->tokens / s->step_s,
           s->tokens / s->step_s * (double)r->ranks, mfu_percent(p, r), s->link_bytes * 1e-9,
           s->network_bytes * 1e-9, s->gradient_bytes * 1e-9, transport_name(r));
}

/* Where one run's memory and time go. */
static void print_details(const row *r) {
    const xp_step_prediction *s = &r->step;
    if (!r->is_run)
        return;
    printf("\nmemory of a GPU, GiB: ");
    print_parts(r, XP_PREDICT_MAX_TAGS);
    printf("\n");
    if (!r->has_speed)
        return;
    printf("a step, ms: %.1f = experts %.1f, attention %.1f, dense GEMMs %.1f, head %.1f, "
           "memory-bound ops %.1f,\n  optimizer %.1f, exchange %.1f, gradients %.1f\n",
           s->step_s * 1e3, s->experts_s * 1e3, s->attention_s * 1e3, s->dense_s * 1e3,
           s->head_s * 1e3, s->memory_s * 1e3, s->optimizer_s * 1e3, s->exchange_s * 1e3,
           s->gradients_s * 1e3);
}

static void print_notes(const plan *p, bool many_gpus, bool several_nodes, bool short_steps) {
    printf("\nGiB: what a run takes of a GPU, counted by the trainer's own allocation without one. "
           "tok/s: work over the GPU's limits\nand the shares of them measured on an H100, even "
           "routing. GB: sent by a GPU in a step; sharding: gradients reduced and\nparameters "
           "gathered. docs/explanation/planning.md says how far this has been checked.\n");
    if (!p->cluster.gpu->measured)
        printf("Not measured on %s: the same shares of its limits are assumed.\n",
               p->cluster.gpu->name);
    if (short_steps)
        printf("Passes of less than %.0f ms come out too fast: their kernels do not fill a GPU.\n",
               SHORT_S * 1e3);
    if (many_gpus)
        printf("Not measured on more than %d GPUs.\n", MOST_GPUS);
    if (several_nodes)
        printf("Not measured between nodes: 80 %% of the network's rate is assumed.\n");
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void add_number(xp_text *t, const char *name, double value) {
    xp_text_printf(t, ", \"%s\": ", name);
    xp_text_add_json_double(t, value);
}

static void add_string(xp_text *t, const char *name, const char *value) {
    xp_text_printf(t, ", \"%s\": ", name);
    xp_text_add_json(t, value, strlen(value));
}

static void add_speed(const plan *p, const row *r, xp_text *t) {
    const xp_step_prediction *s = &r->step;
    const struct {
        const char *name;
        double value;
    } all[] = {{"mfu_percent", mfu_percent(p, r)},
               {"passes", (double)s->n_passes},
               {"tokens_per_s_gpu", s->tokens / s->step_s},
               {"tokens_per_s", s->tokens / s->step_s * (double)r->ranks},
               {"tflops_gpu", s->flops / s->step_s * 1e-12},
               {"step_s", s->step_s},
               {"experts_s", s->experts_s},
               {"attention_s", s->attention_s},
               {"dense_s", s->dense_s},
               {"head_s", s->head_s},
               {"memory_bound_s", s->memory_s},
               {"optimizer_s", s->optimizer_s},
               {"exchange_s", s->exchange_s},
               {"gradients_s", s->gradients_s},
               {"link_bytes", s->link_bytes},
               {"network_bytes", s->network_bytes},
               {"gradient_bytes", s->gradient_bytes}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        add_number(t, all[i].name, all[i].value);
    add_string(t, "transport", transport_name(r));
    xp_text_printf(t, ", \"measured\": %s, \"too_short\": %s",
                   p->cluster.gpu->measured && r->ranks <= MOST_GPUS ? "true" : "false",
                   is_short(r) ? "true" : "false");
}

static void add_row(const plan *p, const row *r, xp_text *t) {
    xp_text_printf(
        t,
        "%s\n  {\"gpu\": \"%s\", \"nodes\": %lld, \"gpus_per_node\": %d, \"gpus\": %lld, "
        "\"batch\": %lld",
        t->length > 1 ? "," : "", p->cluster.gpu->name, (long long)r->nodes,
        p->cluster.gpus_per_node, (long long)r->ranks, (long long)r->batch);
    if (r->is_run) {
        xp_text_printf(t, ", \"ep\": %d, \"fits\": %s", r->ep_size, r->fits ? "true" : "false");
        add_number(t, "memory_gib", gib(r->memory.device_bytes));
        add_number(t, "room_gib", p->room_gib);
        for (int i = 0; i < r->memory.n_tags; i++) {
            char name[64];
            snprintf(name, sizeof name, "%s_gib", r->memory.tags[i].tag);
            add_number(t, name, gib(r->memory.tags[i].n_bytes));
        }
    }
    if (r->has_speed)
        add_speed(p, r, t);
    if (r->error[0] != '\0')
        add_string(t, "error", r->error);
    if (r->advice[0] != '\0')
        add_string(t, "advice", r->advice);
    xp_text_puts(t, "}");
}

/* ---- the command ---------------------------------------------------------------------------- */

static int run_rows(plan *p, const cli_int_list *nodes, const cli_int_list *batches) {
    xp_text json = {0};
    int n_fit = 0;
    bool many = false, several = false, short_steps = false;
    row last = {0};
    if (p->o->json)
        xp_text_puts(&json, "[");
    else
        print_head(p);
    for (int i = 0; i < nodes->n; i++) {
        for (int j = 0; j < batches->n; j++) {
            last = (row){.nodes = nodes->values[i], .batch = batches->values[j]};
            work_out(p, &last);
            n_fit += last.is_run && last.fits;
            many |= last.ranks > MOST_GPUS;
            several |= last.nodes > 1;
            short_steps |= is_short(&last);
            if (p->o->json)
                add_row(p, &last, &json);
            else
                print_row(p, &last);
        }
    }
    if (p->o->json) {
        xp_text_puts(&json, "\n]\n");
        fputs(json.failed ? "" : json.data, stdout);
    } else {
        if (nodes->n * batches->n == 1)
            print_details(&last);
        print_notes(p, many, several, short_steps);
    }
    const bool failed = json.failed;
    xp_text_free(&json);
    if (failed)
        return cli_fail(xp_error(XP_ENOMEM, "no memory for the JSON"));
    return n_fit > 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
}

static const char *gpu_name_at(int i) {
    return xp_gpu_at(i) ? xp_gpu_at(i)->name : NULL;
}

/* The first GPU of this machine, with the memory that its driver reports; false: there is none, or
 * the table does not know it. */
static bool own_gpu(xp_gpu *gpu) {
    const xp_cuda_backend *cuda;
    char text[160];
    int n = 0;
    if (xp_cuda_backend_get(&cuda) != XP_OK || cuda->device_count(&n) != XP_OK || n == 0 ||
        cuda->describe(0, text, sizeof text) != XP_OK)
        return false;
    const xp_gpu *known = xp_gpu_of_model(text);
    if (!known) {
        fprintf(stderr, "note: nothing is known about this machine's GPU (%s); planning for h100\n",
                text);
        return false;
    }
    *gpu = *known;
    const char *after_name = strchr(text, ',');
    double reported = 0;
    if (after_name && sscanf(after_name, ", %lf GiB", &reported) == 1 && reported > 0)
        gpu->memory_gib = reported;
    return true;
}

/* --gpu, or this machine's, or an H100. */
static bool choose_gpu(const plan_options *o, xp_gpu *gpu) {
    if (!o->gpu && own_gpu(gpu))
        return true;
    const xp_gpu *named = xp_gpu_named(o->gpu ? o->gpu : "h100");
    if (named)
        *gpu = *named;
    return named;
}

static int run(plan *p, const plan_options *o) {
    cli_int_list nodes, batches;
    char own[32];
    snprintf(own, sizeof own, "%lld", (long long)p->config->training.local_batch_size);
    if (!cli_parse_ints("--nodes", o->nodes, 1, 4096, &nodes) ||
        !cli_parse_ints("--batch", o->batch ? o->batch : own, 1, 1 << 20, &batches))
        return XP_EXIT_USAGE;
    p->cluster = (xp_cluster){
        .gpu = &p->gpu, .gpus_per_node = (int)o->gpus_per_node, .network_gbps = o->network_gbps};
    if (!choose_gpu(o, &p->gpu))
        return cli_no_such("GPU", o->gpu, gpu_name_at, "expar plan --help");
    p->room_gib = p->cluster.gpu->memory_gib - CONTEXT_GIB;
    xp_status status = xp_arch_from_config(p->config, &p->arch);
    if (status == XP_OK)
        return run_rows(p, &nodes, &batches);
    cli_fail(status);
    return XP_EXIT_USAGE; /* the configuration's model cannot be read */
}

static int load_and_run(const plan_options *o) {
    plan p = {.o = o};
    xp_status status = xp_config_load(o->words.n, (char **)o->words.words, false, &p.set);
    if (status == XP_OK)
        status = xp_config_complete(p.set);
    if (status != XP_OK) {
        cli_fail(status);
        return XP_EXIT_USAGE;
    }
    p.config = xp_config_get(p.set);
    for (int i = 0; xp_config_warning(p.set, i); i++)
        fprintf(stderr, "warning: %s\n", xp_config_warning(p.set, i));
    const int code = run(&p, o);
    xp_config_destroy(p.set);
    return code;
}

static int parse_and_run(int argc, char **argv, char **rest) {
    plan_options o = {.nodes = "1", .gpus_per_node = 8, .network_gbps = 50};
    const char *files[2] = {NULL};
    bool done;
    const cli_option options[] = {
        {"--gpu", CLI_STRING, &o.gpu, "NAME",
         "a100, a100-40gb, a100-pcie-40gb, a800, h100, h100-pcie, h100-nvl, h800, h200, gh200, "
         "b100, b200, gb200 (this machine's, else h100)",
         0, 0},
        {"--nodes", CLI_STRING, &o.nodes, "LIST", "how many (1)", 0, 0},
        {"--gpus-per-node", CLI_INT, &o.gpus_per_node, "N", "ranks of a node (8)", 1, 1024},
        {"--batch", CLI_STRING, &o.batch, "LIST",
         "rows of a rank's pass (training.local_batch_size)", 0, 0},
        {"--network", CLI_FLOAT, &o.network_gbps, "GB/S",
         "between nodes, of each GPU, one way (50: 400 Gbit/s)", 0.001, 1e5},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a row", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar plan [CONFIG] [options] [--section.key value ...]",
        .about = "Says before a GPU is touched what a run needs and how fast it will be: memory by "
                 "the run's own reservation, tokens a\nsecond from measured shares of the GPU's "
                 "limits, bytes between GPUs. A row that does not fit says by how much, what "
                 "takes\nthe memory, and what would fit. Exit code 1: nothing fits.",
        .examples =
            "  expar plan configs/qwen3_30b_a3b_deepep.toml --gpu h200 --batch 1,2,4,8\n"
            "  expar plan configs/qwen3_235b_a22b_deepep.toml --gpu b200 --nodes 1,2,4,8,16\n"
            "  expar plan configs/rank_slice_30b_a3b.toml --gpu h200 --gpus-per-node 1\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = 1};
    const int n_rest = cli_config_words_take(&o.words, argc, argv, rest);
    const int code = cli_parse(&command, n_rest, rest, files, &done);
    if (code != 0 || done)
        return code;
    static const char *const none[][2] = {{NULL, NULL}};
    cli_config_words_build(&o.words, files[0], none, argc, argv, rest);
    return load_and_run(&o);
}

int cmd_plan(int argc, char **argv) {
    return cli_config_words_run(argc, argv, parse_and_run);
}
