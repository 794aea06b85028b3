/* expar plan: memory and speed of a configuration on hardware that need not be here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "device/plugin.h"
#include "options.h"
#include "plan.h"
#include "train/complete.h"

#define MAX_BEST 32
#define N_BEST   5

static const char *const switches[] = {"off", "on", NULL};
static const char *const scalings[] = {"weak", "strong", NULL};

/* ---- rows ----------------------------------------------------------------------------------- */

/* What a loop over the lists needs. */
typedef struct loop {
    plan *p;
    plan_output *out;
    plan_lists lists;
    plan_row last;
    int n_fit;
} loop;

static void run_row(loop *l, const plan_setting *setting, const char *scaling) {
    l->last = (plan_row){.setting = *setting, .scaling = scaling};
    plan_work_out(l->p, &l->last);
    l->n_fit += l->last.is_run && l->last.fits;
    if (l->p->base_speed == 0)
        l->p->base_speed = plan_tokens_per_s_gpu(&l->last);
    plan_output_row(l->out, &l->last);
}

static int64_t int_at(const cli_int_list *list, int i, int64_t own) {
    return list->n > 0 ? list->values[i] : own;
}

static int at_least_one(int n) {
    return n > 0 ? n : 1;
}

/* All combinations of the lists; a list that was not given is the configuration's own value. */
static void run_lists(loop *l, const char *scaling) {
    const plan_lists *v = &l->lists;
    const plan_setting own = plan_own_setting(l->p);
    plan_setting s = own;
    const int n[6] = {v->nodes.n,
                      at_least_one(v->eps.n),
                      at_least_one(v->modes.n),
                      at_least_one(v->overlaps.n),
                      at_least_one(v->replicas.n),
                      at_least_one(v->batches.n)};
    int i[6] = {0};
    for (int at = 0; at >= 0;) {
        s.nodes = v->nodes.values[i[0]];
        s.ep = int_at(&v->eps, i[1], own.ep);
        s.mode = v->modes.n > 0 ? plan_modes[v->modes.values[i[2]]] : own.mode;
        s.overlap = v->overlaps.n > 0 ? v->overlaps.values[i[3]] == 1 : own.overlap;
        s.replicas = int_at(&v->replicas, i[4], own.replicas);
        s.batch = int_at(&v->batches, i[5], own.batch);
        run_row(l, &s, scaling);
        for (at = 5; at >= 0 && ++i[at] == n[at]; at--)
            i[at] = 0;
    }
}

static xp_status set_global_batch(plan *p, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    return xp_config_override(p->set, "training.global_batch_size", text);
}

/* weak: every rank has its batch, whatever the nodes. strong: a step has the rows of the most nodes. */
static xp_status run_scaling(loop *l, bool strong) {
    plan *p = l->p;
    const int64_t own = p->config->training.global_batch_size;
    const cli_int_list *batches = &l->lists.batches;
    int64_t most = 0;
    for (int i = 0; i < l->lists.nodes.n; i++)
        most = l->lists.nodes.values[i] > most ? l->lists.nodes.values[i] : most;
    const int64_t batch =
                      batches->n > 0 ? batches->values[0] : p->config->training.local_batch_size,
                  all = batch * most * p->cluster.gpus_per_node;
    p->base_speed = 0;
    XP_TRY(set_global_batch(p, strong ? (own > 0 ? own : all) : -1));
    run_lists(l, strong ? "strong" : "weak");
    return set_global_batch(p, own > 0 ? own : -1);
}

static int run_rows(plan *p, const plan_lists *lists) {
    plan_output out;
    loop l = {.p = p, .out = &out, .lists = *lists};
    cli_choice_list kinds = {0};
    if (p->o->scaling && !cli_parse_choices("--scaling", p->o->scaling, scalings, 2, &kinds))
        return XP_EXIT_USAGE;
    plan_output_begin(&out, p);
    xp_status status = XP_OK;
    for (int i = 0; i < kinds.n && status == XP_OK; i++)
        status = run_scaling(&l, kinds.values[i] == 1);
    if (kinds.n == 0)
        run_lists(&l, NULL);
    if (status != XP_OK)
        return cli_fail(status);
    if (!plan_output_end(&out, &l.last))
        return XP_EXIT_FAILED;
    return l.n_fit > 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
}

static void print_words(const plan_row *r) {
    const plan_setting *s = &r->setting;
    const bool has_transport = s->transport && r->step.transport != XP_EP_AUTO;
    printf("\nwhy: %s\nto run it: --parallelism.expert_parallel_degree %lld "
           "--activation_checkpoint.mode %s "
           "--training.local_batch_size %lld --parallelism.expert_parallel_overlap %s "
           "--parallelism.data_parallel_replicate_degree %lld%s%s\n",
           r->reason, (long long)s->ep, s->mode, (long long)s->batch, s->overlap ? "true" : "auto",
           (long long)s->replicas, has_transport ? " --deepep.transport " : "",
           has_transport ? s->transport : "");
}

/* Why no row is suggested. @param none  its error: of combinations of which none is a run */
static void print_nothing(const plan_row *none, const plan_lists *l) {
    const bool limited = l->batches.n + l->eps.n + l->replicas.n + l->modes.n + l->overlaps.n > 0;
    if (none->error[0])
        printf("no run: %s\n", none->error);
    else
        printf("nothing fits: %smore --nodes, or a GPU with more memory. Without --suggest each "
               "row says what takes its memory\n",
               limited ? "more values in the lists, " : "");
}

static int suggest(plan *p, const plan_lists *lists) {
    plan_output out;
    int n = 0;
    plan_row *rows = calloc(MAX_BEST + 1, sizeof *rows);
    if (!rows)
        return cli_fail(xp_error(XP_ENOMEM, "no memory for the search"));
    xp_status status =
        plan_search(p, lists, p->o->n_best > 0 ? (int)p->o->n_best : N_BEST, rows, &n);
    int code = n > 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
    if (status != XP_OK) {
        code = cli_fail(status);
    } else {
        plan_output_begin(&out, p);
        for (int i = 0; i < n; i++)
            plan_output_row(&out, &rows[i]);
        if (n == 0 && !p->o->json)
            print_nothing(&rows[0], lists);
        if (n > 0 && !p->o->json && !p->o->markdown)
            print_words(&rows[0]);
        if (!plan_output_end(&out, &rows[0]))
            code = XP_EXIT_FAILED;
    }
    free(rows);
    return code;
}

/* ---- hardware ------------------------------------------------------------------------------- */

/* The first GPU of this machine, with the memory that its driver reports; false: there is none, or
 * nothing is known about it. */
static bool own_gpu(xp_hardware *gpu) {
    const xp_cuda_backend *cuda;
    char text[160];
    int n = 0;
    if (xp_cuda_backend_get(&cuda) != XP_OK || cuda->device_count(&n) != XP_OK || n == 0 ||
        cuda->describe(0, text, sizeof text) != XP_OK)
        return false;
    if (xp_hardware_of_model(text, gpu) != XP_OK) {
        fprintf(stderr, "note: nothing is known about this machine's GPU (%s); planning for h100\n",
                text);
        return false;
    }
    const char *after_name = strchr(text, ',');
    double reported = 0;
    if (after_name && sscanf(after_name, ", %lf GiB", &reported) == 1 && reported > 0)
        gpu->limits.memory_gib = reported;
    return true;
}

/* --gpu, or this machine's, or an H100; and the network. */
static bool choose_hardware(plan *p) {
    const plan_options *o = p->o;
    xp_hardware *h = &p->hardware;
    if ((o->gpu || !own_gpu(h)) && xp_hardware_read(o->gpu ? o->gpu : "h100", h) != XP_OK) {
        xp_text names = {0};
        fprintf(stderr, "error: --gpu: %s\n", xp_last_error());
        if (xp_hardware_names(&names) == XP_OK && !names.failed)
            fprintf(stderr, "there are: %s; or a file\n", names.data);
        xp_text_free(&names);
        return false;
    }
    p->cluster =
        (xp_cluster){.hardware = h,
                     .gpus_per_node = o->gpus_per_node > 0 ? (int)o->gpus_per_node
                                                           : (int)h->network.gpus_per_node,
                     .network_gbps = o->network_gbps >= 0 ? o->network_gbps : h->network.gbps,
                     .latency_us = o->latency_us >= 0 ? o->latency_us : h->network.latency_us};
    const double sharers = h->is_cpu ? p->cluster.gpus_per_node : 1;
    p->room_gib = (h->limits.memory_gib - h->limits.reserved_gib) / sharers;
    return true;
}

/* ---- arguments ------------------------------------------------------------------------------ */

/* "10T", "300B", "5e9": 0 after an error was printed. */
static double parse_tokens(const char *text) {
    static const char suffixes[] = "KMBT";
    char number[64];
    double value, factor = 1;
    const size_t n = strlen(text);
    const char *suffix = n > 0 ? strchr(suffixes, text[n - 1] & ~32) : NULL;
    for (const char *s = suffixes; suffix && s <= suffix; s++)
        factor *= 1000;
    snprintf(number, sizeof number, "%.*s", (int)(suffix ? n - 1 : n), text);
    if (xp_parse_f64(number, &value) && value > 0)
        return value * factor;
    fprintf(stderr, "error: --tokens: \"%s\": wanted is a number, as in 10T, 300B or 5e9\n", text);
    return 0;
}

static bool parse_lists(plan *p, plan_lists *l) {
    const plan_options *o = p->o;
    const char *nodes = o->nodes ? o->nodes : o->scaling ? "1,2,4,8,16" : "1";
    if (o->tokens && (p->tokens = parse_tokens(o->tokens)) <= 0)
        return false;
    return cli_parse_ints("--nodes", nodes, 1, 4096, &l->nodes) &&
           (!o->batch || cli_parse_ints("--batch", o->batch, 1, 1 << 20, &l->batches)) &&
           (!o->ep || cli_parse_ints("--ep", o->ep, 1, 4096, &l->eps)) &&
           (!o->replicas || cli_parse_ints("--replicas", o->replicas, 1, 4096, &l->replicas)) &&
           (!o->recompute ||
            cli_parse_choices("--recompute", o->recompute, plan_modes, 3, &l->modes)) &&
           (!o->overlap || cli_parse_choices("--overlap", o->overlap, switches, 2, &l->overlaps));
}

static int run(plan *p, const plan_options *o) {
    plan_lists lists = {0};
    if (!parse_lists(p, &lists) || !choose_hardware(p))
        return XP_EXIT_USAGE;
    xp_status status = xp_arch_from_config(p->config, &p->arch);
    if (status != XP_OK) {
        cli_fail(status);
        return XP_EXIT_USAGE; /* the configuration's model cannot be read */
    }
    return o->suggest ? suggest(p, &lists) : run_rows(p, &lists);
}

static int load_and_run(const plan_options *o) {
    plan p = {.o = o, .price = o->price};
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

static bool names_model(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--model.", 8) == 0)
            return true;
    return false;
}

static int check_words(const plan_options *o, const char *file, int argc, char **argv) {
    if (!file && !o->words.file && !names_model(argc, argv)) {
        fputs("error: plan what? Give a configuration, as in `expar plan "
              "configs/qwen3_30b_a3b_deepep.toml`, or a model, as in `expar plan --model.flavor "
              "30B-A3B --training.dtype bfloat16`\n",
              stderr);
        return XP_EXIT_USAGE;
    }
    if (o->suggest && o->scaling) {
        fputs("error: --suggest and --scaling: one of them\n", stderr);
        return XP_EXIT_USAGE;
    }
    const char *wrong = o->json && o->markdown        ? "--json and --markdown: one of them"
                        : o->price >= 0 && !o->tokens ? "--price needs --tokens: it is the cost of "
                                                        "training on them"
                        : o->n_best > 0 && !o->suggest ? "--best needs --suggest"
                                                       : NULL;
    if (wrong)
        fprintf(stderr, "error: %s\n", wrong);
    return wrong ? XP_EXIT_USAGE : 0;
}

static int parse_and_run(int argc, char **argv, char **rest) {
    plan_options o = {.network_gbps = -1, .latency_us = -1, .price = -1};
    const char *files[2] = {NULL};
    bool done;
    const cli_option options[] = {
        {"--gpu", CLI_STRING, &o.gpu, "NAME|FILE",
         "a hardware description: h100, h200, b200, gb200, cpu, ... of configs/hardware, or a file "
         "that `expar bench --write-profile` wrote (this machine's GPU, else h100)",
         0, 0},
        {"--nodes", CLI_STRING, &o.nodes, "LIST", "how many (1; with --scaling 1,2,4,8,16)", 0, 0},
        {"--gpus-per-node", CLI_INT, &o.gpus_per_node, "N", "ranks of a node (as described: 8)", 1,
         1024},
        {"--batch", CLI_STRING, &o.batch, "LIST",
         "rows of a rank's pass (training.local_batch_size)", 0, 0},
        {"--ep", CLI_STRING, &o.ep, "LIST", "parallelism.expert_parallel_degree", 0, 0},
        {"--recompute", CLI_STRING, &o.recompute, "LIST",
         "activation_checkpoint.mode: none, selective, full", 0, 0},
        {"--overlap", CLI_STRING, &o.overlap, "LIST",
         "parallelism.expert_parallel_overlap: off, on", 0, 0},
        {"--replicas", CLI_STRING, &o.replicas, "LIST",
         "parallelism.data_parallel_replicate_degree", 0, 0},
        {"--suggest", CLI_FLAG, &o.suggest, NULL,
         "search all of these (a list limits it to its values) and print the best that fit", 0, 0},
        {"--best", CLI_INT, &o.n_best, "N", "how many suggestions (5)", 1, MAX_BEST},
        {"--scaling", CLI_STRING, &o.scaling, "LIST",
         "tables over --nodes. weak: the same batch on every rank; strong: the same rows a step", 0,
         0},
        {"--tokens", CLI_STRING, &o.tokens, "N", "to train on, as in 10T: days and GPU-hours", 0,
         0},
        {"--price", CLI_FLOAT, &o.price, "P", "of a GPU-hour: cost of --tokens", 0, 1e9},
        {"--network", CLI_FLOAT, &o.network_gbps, "GB/S",
         "between nodes, of each GPU, one way (as described: 50, 400 Gbit/s)", 0.001, 1e5},
        {"--latency", CLI_FLOAT, &o.latency_us, "US", "between nodes (as described: 5)", 0, 1e6},
        {"--explain", CLI_FLAG, &o.explain, NULL, "list every assumption", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a row", 0, 0},
        {"--markdown", CLI_FLAG, &o.markdown, NULL, "the table in markdown", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar plan CONFIG [options] [--section.key value ...]",
        .about = "Says before a GPU is touched what a run needs and how fast it will be: memory by "
                 "the run's own reservation, tokens a\nsecond from measured shares of the "
                 "hardware's limits, bytes between GPUs. A row that does not fit says by how much, "
                 "what takes\nthe memory, and what would fit. Exit code 1: nothing fits.",
        .examples =
            "  expar plan configs/qwen3_30b_a3b_deepep.toml --gpu h200 --suggest\n"
            "  expar plan configs/qwen3_30b_a3b_deepep.toml --gpu h200 --ep 4,8 --batch 4,8,12\n"
            "  expar plan configs/qwen3_235b_a22b_deepep.toml --gpu b200 --nodes 8,16 --suggest "
            "--tokens 10T --price 3.5\n"
            "  expar plan configs/qwen3_30b_a3b_deepep.toml --gpu b200 --scaling weak,strong "
            "--markdown\n"
            "  expar plan configs/rank_slice_30b_a3b.toml --gpu h200 --gpus-per-node 1\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = 1};
    const int n_rest = cli_config_words_take(&o.words, argc, argv, rest);
    int code = cli_parse(&command, n_rest, rest, files, &done);
    if (code != 0 || done)
        return code;
    code = check_words(&o, files[0], argc, argv);
    if (code != 0)
        return code;
    static const char *const none[][2] = {{NULL, NULL}};
    cli_config_words_build(&o.words, files[0], none, argc, argv, rest);
    return load_and_run(&o);
}

int cmd_plan(int argc, char **argv) {
    return cli_config_words_run(argc, argv, parse_and_run);
}
