/* expar bench scaling: every run is a child process, so that one that fails does not end the table.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"
#include "cli.h"
#include "config_words.h"
#include "train/complete.h"
#include "core/file.h"
#include "core/text.h"
#include "lists.h"
#include "options.h"
#include "step.h"

#define GIB ((double)(1 << 30))

typedef struct scaling_options {
    const char *config, *ranks, *batch, *memory_limit, *modes;
    int64_t steps, warmup;
    int64_t limit_bytes; /* 0: none */
    bool json;
    cli_config_words words;
} scaling_options;

/** What a child sends back through its pipe. */
typedef struct run_result {
    bool ok;
    char error[600];
    double step_s, tokens, flops;
    int64_t peak_rss;
    int ep_size;
} run_result;

typedef struct run_shape {
    bool weak;
    int64_t ranks, batch, global_batch; /* rows of a rank's pass; of a step */
} run_shape;

static const char *const mode_names[] = {"strong", "weak", NULL};

/* ---- the child --------------------------------------------------------------------------- */

static xp_status measure(const scaling_options *o, const run_shape *shape, const char *folder,
                         xp_bench_step_report *report) {
    xp_bench_host host = {0};
    xp_bench_step_args args = {.host = &host,
                               .n_variants = 1,
                               .n_ranks = (int)shape->ranks,
                               .n_warmup = (int)o->warmup,
                               .n_steps = (int)o->steps,
                               .without_sgemm = true};
    char batch[32], global_batch[32];
    snprintf(batch, sizeof batch, "%lld", (long long)shape->batch);
    snprintf(global_batch, sizeof global_batch, "%lld", (long long)shape->global_batch);
    XP_TRY(xp_config_load(o->words.n, (char **)o->words.words, false, &args.configs[0]));
    xp_status status = xp_config_complete(args.configs[0]);
    if (status == XP_OK)
        status = xp_config_override(args.configs[0], "training.local_batch_size", batch);
    if (status == XP_OK)
        status = xp_config_override(args.configs[0], "training.global_batch_size", global_batch);
    if (status == XP_OK)
        status = xp_bench_step_prepare(args.configs[0], folder, args.n_ranks);
    if (status == XP_OK)
        status = xp_bench_step(&args, report);
    xp_config_destroy(args.configs[0]);
    return status;
}

static xp_status limit_memory(const scaling_options *o) {
    const struct rlimit limit = {.rlim_cur = (rlim_t)o->limit_bytes,
                                 .rlim_max = (rlim_t)o->limit_bytes};
    if (o->limit_bytes > 0 && setrlimit(RLIMIT_AS, &limit) != 0)
        return xp_error(XP_EINVAL, "--memory-limit %s: %s", o->memory_limit, strerror(errno));
    return XP_OK;
}

static void run_child(const scaling_options *o, const run_shape *shape, const char *folder,
                      int pipe_end) {
    run_result result = {0};
    xp_status status = limit_memory(o);
    xp_bench_step_report *report = status == XP_OK ? calloc(1, sizeof *report) : NULL;
    if (status == XP_OK && !report)
        status = xp_error(XP_ENOMEM, "no memory for the report");
    if (status == XP_OK)
        status = measure(o, shape, folder, report);
    result.ok = status == XP_OK;
    if (result.ok) {
        const xp_bench_step_result *v = &report->variants[0];
        result.step_s = xp_bench_samples_median(&v->step_s);
        result.tokens = (double)v->tokens;
        result.flops = v->flops;
        result.peak_rss = report->peak_rss;
        result.ep_size = v->ep_size;
    } else {
        snprintf(result.error, sizeof result.error, "%s", xp_last_error());
    }
    free(report);
    const ssize_t n = write(pipe_end, &result, sizeof result);
    _exit(n == (ssize_t)sizeof result ? 0 : 1);
}

/* ---- the parent -------------------------------------------------------------------------- */

static void fail_result(run_result *result, const char *format, int number) {
    result->ok = false;
    snprintf(result->error, sizeof result->error, format, number);
}

static void run_in_child(const scaling_options *o, const run_shape *shape, const char *folder,
                         run_result *result) {
    int ends[2];
    memset(result, 0, sizeof *result);
    if (pipe(ends) != 0) {
        fail_result(result, "cannot make a pipe (error %d)", errno);
        return;
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        run_child(o, shape, folder, ends[1]);
    }
    close(ends[1]);
    ssize_t n = -1;
    do
        n = child > 0 ? read(ends[0], result, sizeof *result) : -1;
    while (n < 0 && errno == EINTR);
    close(ends[0]);
    int how = 0;
    if (child < 0) {
        fail_result(result, "cannot start a process (error %d)", errno);
        return;
    }
    waitpid(child, &how, 0);
    if (n == (ssize_t)sizeof *result)
        return;
    if (WIFSIGNALED(how))
        fail_result(result, "the run was killed by signal %d (9: most likely out of memory)",
                    WTERMSIG(how));
    else
        fail_result(result, "the run ended with code %d and no result", WEXITSTATUS(how));
}

static double total_memory(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (double)pages * (double)page : 1;
}

static void print_row(const run_shape *s, const run_result *r, double speedup) {
    printf("%-6s %5lld %5lld %6lld  ", s->weak ? "weak" : "strong", (long long)s->ranks,
           (long long)s->batch, (long long)s->global_batch);
    if (!r->ok) {
        printf("failed: %s\n", r->error);
        return;
    }
    printf("%2d %9.1f %10.0f %8.4f %8.3f %5.1f%% ", r->ep_size, r->step_s * 1e3,
           r->tokens / r->step_s, r->flops / r->step_s * 1e-12, (double)r->peak_rss / GIB,
           100 * (double)r->peak_rss / total_memory());
    if (speedup > 0)
        printf("%7.2fx", speedup);
    printf("\n");
}

static void add_row(xp_text *t, const run_shape *s, const run_result *r, double speedup) {
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
    xp_text_printf(t, "\"memory_gib\": %.6g, \"memory_percent\": %.6g, \"speedup\": ",
                   (double)r->peak_rss / GIB, 100 * (double)r->peak_rss / total_memory());
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
        run_shape shape = {.weak = weak, .ranks = ranks->values[i], .batch = batch};
        shape.global_batch = batch * (weak ? shape.ranks : largest);
        run_result result;
        run_in_child(t->o, &shape, t->folder, &result);
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
               "TFLOPS of all ranks; memory of the process and its share of the\nmachine's; "
               "speed-up in tokens/s over the line's first run.\n");
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
    scaling_options o = {
        .ranks = "1,2,4,8", .batch = "1,2,4", .modes = "strong,weak", .steps = 3, .warmup = 2};
    bool done;
    const cli_option options[] = {
        {"--ranks", CLI_STRING, &o.ranks, "LIST", "rank threads, which share the cores (1,2,4,8)",
         0, 0},
        {"--batch", CLI_STRING, &o.batch, "LIST", "rows of a rank's pass (1,2,4)", 0, 0},
        {"--mode", CLI_STRING, &o.modes, "LIST", "strong, weak (both)", 0, 0},
        {"--config", CLI_STRING, &o.config, "FILE", "default: tiny_moe on rows of 256 tokens", 0,
         0},
        {"--steps", CLI_INT, &o.steps, "N", "measured steps (3)", 1, XP_BENCH_MAX_SAMPLES},
        {"--warmup", CLI_INT, &o.warmup, "N", "steps before (2)", 1, 1000},
        {"--memory-limit", CLI_STRING, &o.memory_limit, "SIZE",
         "address space of each run, as in 2G", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a run", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench scaling [options] [--section.key value ...]",
        .about =
            "Trains a few steps on random tokens for each number of ranks and batch, each run "
            "in a process of its own. A run that\nfails (out of memory, sizes that do not fit) "
            "gives a row with the reason, and the table goes on.",
        .examples = "  expar bench scaling --ranks 1,2,4,8 --batch 1,2,4\n"
                    "  expar bench scaling --config configs/debug_moe.toml --ranks 2,4 --batch 8 "
                    "\\\n      --parallelism.expert_parallel_degree 2\n"
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
