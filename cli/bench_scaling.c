/* expar bench scaling: arguments and the table; bench_scaling_run.c runs a row. */
#include "bench_scaling.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "lists.h"
#include "options.h"
#include "expar/comm.h"
#include "samples.h"

#define GIB ((double)(1 << 30))

static const char *const mode_names[] = {"strong", "weak", NULL};

static void print_row(const scaling_shape *s, const scaling_result *r, double speedup) {
    printf("%-6s %5lld %5lld %6lld  ", s->weak ? "weak" : "strong", (long long)s->ranks,
           (long long)s->batch, (long long)s->global_batch);
    if (!r->ok) {
        printf("failed: %s\n", r->error);
        return;
    }
    printf("%2d %9.1f %10.0f %8.4f %8.3f %5.1f%% ", r->ep_size, r->step_s * 1e3,
           r->tokens / r->step_s, r->flops / r->step_s * 1e-12, r->memory / GIB,
           100 * r->memory / r->memory_total);
    if (speedup > 0)
        printf("%7.2fx", speedup);
    printf("\n");
}

static void add_row(xp_text *t, const scaling_shape *s, const scaling_result *r, double speedup) {
    xp_text_printf(t,
                   "%s\n  {\"mode\": \"%s\", \"ranks\": %lld, \"batch\": %lld, \"global_batch\": "
                   "%lld, ",
                   t->length > 1 ? "," : "", s->weak ? "weak" : "strong", (long long)s->ranks,
                   (long long)s->batch, (long long)s->global_batch);
    if (!r->ok) {
        xp_text_puts(t, "\"error\": ");
        xp_text_add_json(t, r->error, strlen(r->error));
        xp_text_puts(t, "}");
        return;
    }
    xp_text_printf(t, "\"ep\": %d, \"step_s\": %.9g, \"tokens_per_s\": %.9g, \"tflops\": %.9g, ",
                   r->ep_size, r->step_s, r->tokens / r->step_s, r->flops / r->step_s * 1e-12);
    xp_text_printf(t,
                   "\"ranks_are\": \"%s\", \"device\": \"%s\", \"memory_gib\": %.6g, "
                   "\"memory_percent\": %.6g, "
                   "\"speedup\": ",
                   r->processes ? "processes" : "threads", r->on_gpus ? "cuda" : "cpu",
                   r->memory / GIB, 100 * r->memory / r->memory_total);
    xp_text_add_json_double(t, speedup > 0 ? speedup : 0);
    xp_text_puts(t, "}");
}

typedef struct table {
    const scaling_options *o;
    const char *folder;
    xp_text json;
    int n_ok;
} table;

/* One line of runs: the same mode and batch over the ranks, compared with the first that works. */
static void run_line(table *t, bool weak, const cli_int_list *ranks, int64_t batch) {
    double first_rate = 0;
    int64_t largest = 1;
    for (int i = 0; i < ranks->n; i++)
        largest = ranks->values[i] > largest ? ranks->values[i] : largest;
    for (int i = 0; i < ranks->n; i++) {
        scaling_shape shape = {.weak = weak, .ranks = ranks->values[i], .batch = batch};
        shape.global_batch = batch * (weak ? shape.ranks : largest);
        scaling_result result;
        scaling_run(t->o, &shape, t->folder, &result);
        const double rate = result.ok ? result.tokens / result.step_s : 0;
        first_rate = first_rate > 0 ? first_rate : rate;
        t->n_ok += result.ok;
        const double speedup = first_rate > 0 ? rate / first_rate : 0;
        if (t->o->json)
            add_row(&t->json, &shape, &result, speedup);
        else
            print_row(&shape, &result, speedup);
    }
}

static void run_table(table *t, const cli_choice_list *modes, const cli_int_list *ranks,
                      const cli_int_list *batches) {
    if (t->o->json)
        xp_text_puts(&t->json, "[");
    else
        printf("%-6s %5s %5s %6s  %2s %9s %10s %8s %8s %6s %8s\n", "mode", "ranks", "batch",
               "global", "EP", "step ms", "tokens/s", "TFLOPS", "GiB", "memory", "speed-up");
    for (int m = 0; m < modes->n; m++)
        for (int b = 0; b < batches->n; b++)
            run_line(t, modes->values[m] == 1, ranks, batches->values[b]);
    if (t->o->json)
        printf("%s\n]\n", t->json.failed ? "[" : t->json.data);
    else
        printf("\nbatch: rows of a rank's pass; global: rows of a step. strong: the same step for "
               "all ranks (they accumulate);\nweak: the same rows for each rank. tokens/s and "
               "TFLOPS of all ranks; memory: on GPUs of the one with\nmost, "
               "and its share of the GPU's; on the CPU of all ranks, and its share of the "
               "machine's; speed-up in tokens/s over "
               "the\nline's first run.\n");
}

/* "300M", "2G", "800000K", bytes. */
static bool parse_bytes(const char *text, int64_t *bytes) {
    char number[32];
    const size_t n = strlen(text);
    const char *units = "KMG", *unit = n > 0 ? strchr(units, text[n - 1]) : NULL;
    snprintf(number, sizeof number, "%.*s", (int)(unit ? n - 1 : n), text);
    int64_t value;
    if (!xp_parse_i64(number, &value) || value < 1 || value > (int64_t)1 << 40)
        return false;
    *bytes = unit ? value << (10 * (unit - units + 1)) : value;
    return true;
}

static int run(scaling_options *o) {
    cli_int_list ranks, batches;
    cli_choice_list modes;
    if (!cli_parse_ints("--ranks", o->ranks, 1, 1024, &ranks) ||
        !cli_parse_ints("--batch", o->batch, 1, 1 << 20, &batches) ||
        !cli_parse_choices("--mode", o->modes, mode_names, 2, &modes))
        return XP_EXIT_USAGE;
    if (o->memory_limit && !parse_bytes(o->memory_limit, &o->limit_bytes)) {
        fprintf(stderr, "error: --memory-limit: \"%s\" is no size as in 300M or 2G\n",
                o->memory_limit);
        return XP_EXIT_USAGE;
    }
    if (scaling_is_rank())
        return scaling_run_rank(o);
    if (xp_mpi_launched()) {
        fprintf(stderr, "error: expar bench scaling starts its runs itself: call it without "
                        "mpirun or srun\n");
        return XP_EXIT_USAGE;
    }
    char folder[] = "/tmp/expar-scaling-XXXXXX";
    if (!mkdtemp(folder))
        return cli_fail(xp_error(XP_EIO, "cannot make a folder in /tmp: %s", strerror(errno)));
    table t = {.o = o, .folder = folder};
    run_table(&t, &modes, &ranks, &batches);
    xp_text_free(&t.json);
    const xp_status status = xp_folder_remove(folder);
    if (status != XP_OK)
        return cli_fail(status);
    return t.n_ok > 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
}

static int parse_and_run(int argc, char **argv, char **rest) {
    scaling_options o = {.ranks = "1,2,4,8",
                         .batch = "1,2,4",
                         .modes = "strong,weak",
                         .steps = 3,
                         .warmup = 2,
                         .argc = argc,
                         .argv = argv};
    bool done;
    const cli_option options[] = {
        {"--ranks", CLI_STRING, &o.ranks, "LIST", "ranks (1,2,4,8)", 0, 0},
        {"--batch", CLI_STRING, &o.batch, "LIST", "rows of a rank's pass (1,2,4)", 0, 0},
        {"--mode", CLI_STRING, &o.modes, "LIST", "strong, weak (both)", 0, 0},
        {"--config", CLI_STRING, &o.config, "FILE", "default: tiny_moe on rows of 256 tokens", 0,
         0},
        {"--steps", CLI_INT, &o.steps, "N", "measured steps (3)", 1, XP_BENCH_MAX_SAMPLES},
        {"--warmup", CLI_INT, &o.warmup, "N", "steps before (2)", 1, 1000},
        {"--memory-limit", CLI_STRING, &o.memory_limit, "SIZE",
         "address space of each process of a run, as in 2G; for the CPU", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a run", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench scaling [options] [--section.key value ...]",
        .about = "Trains a few steps on random tokens for each number of ranks and batch, each run "
                 "started as `expar train` does: on\nGPUs a process and a GPU for each rank, "
                 "elsewhere rank threads in a process of "
                 "the run's own (--job.ranks). A run that\nfails (out of memory, sizes that do not "
                 "fit) gives a row with the "
                 "reason, and the table goes on.",
        .examples = "  expar bench scaling --ranks 1,2,4,8 --batch 1,2,4\n"
                    "  expar bench scaling --config configs/debug_moe.toml --ranks 2,4 --batch 8 "
                    "\\\n      --parallelism.expert_parallel_degree 2\n"
                    "  expar bench scaling --config configs/rank_slice_30b_a3b.toml --ranks 1,2 "
                    "--batch 4 --mode weak\n"
                    "  expar bench scaling --memory-limit 2G --json\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    static const char *const tiny[][2] = {
        {"model.flavor", "tiny_moe"}, {"training.seq_len", "256"}, {NULL, NULL}};
    const int n_rest = cli_config_words_take(&o.words, argc, argv, rest);
    const int code = cli_parse(&command, n_rest, rest, NULL, &done);
    if (code != 0 || done)
        return code;
    cli_config_words_build(&o.words, o.config, tiny, argc, argv, rest);
    return run(&o);
}

int bench_scaling(int argc, char **argv) {
    return cli_config_words_run(argc, argv, parse_and_run);
}
