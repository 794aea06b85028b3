/* expar tune: the fastest settings of dispatch and combine for a model on this machine; bench/tune.c measures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench_ranks.h"
#include "cli.h"
#include "config/tuned.h"
#include "config_words.h"
#include "core/file.h"
#include "launch/shim.h"
#include "options.h"
#include "step.h"
#include "train/complete.h"
#include "train/trainer.h"
#include "tune_print.h"

#define SECONDS_MAX 75.0 /* with opening the GPUs for each setting within two minutes */
#define GEMM_S_MAX                                                                                 \
    30.0 /* of steps in turns, unless --seconds is less: known well before in most cases */

typedef struct tune_options {
    const char *out;
    double seconds;
    bool gemms, json;
    int argc;
    char **argv;
    cli_config_words words;
} tune_options;

/* ---- the file ---------------------------------------------------------------------------- */

static xp_status choose_path(const tune_options *o, const xp_config_set *set, char *path,
                             size_t n_path) {
    bool named = true;
    if (o->out)
        snprintf(path, n_path, "%s", o->out);
    else
        XP_TRY(xp_config_tuned_path(set, path, n_path, &named));
    if (path[0])
        return named ? cli_check_replaces(path, TUNE_FILE_START) : XP_OK;
    return xp_error(XP_ECONFIG, "where to? Give a configuration file, beside which `expar train` "
                                "looks for the tuned one, or --out FILE");
}

/* Known before a minute of measuring. */
static xp_status check_writable(const char *path) {
    char folder[1024];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    else
        snprintf(folder, sizeof folder, ".");
    if (access(folder, W_OK) == 0)
        return XP_OK;
    return xp_error(XP_EIO,
                    "%s cannot be written: no folder to write to at %s; choose another "
                    "place with --out FILE",
                    path, folder);
}

/* How the run finds the file. */
static void print_use(const tune_options *o, const xp_config *config, const char *path,
                      bool found) {
    const char *file = config->job.config_file;
    printf("wrote %s: ", path);
    if (found)
        printf("`expar train %s`, with these ranks and settings, takes it by itself\n", file);
    else
        printf("use it with --deepep.tuned_file %s\n", o->out ? o->out : path);
}

static xp_status finish(const tune_options *o, const xp_config_set *set, const tune_result *r) {
    xp_text text = {0};
    char usual[1024];
    bool named;
    XP_TRY(xp_config_tuned_path(set, usual, sizeof usual, &named));
    tune_add_toml(&text, r);
    xp_status status = text.failed ? xp_error(XP_ENOMEM, "no memory for the tuned file")
                       : r->path   ? xp_file_write_atomic(r->path, text.data, text.length)
                                   : XP_OK;
    xp_text_clear(&text);
    if (status == XP_OK && o->json) {
        tune_add_json(&text, r);
        fputs(text.failed ? "{}\n" : text.data, stdout);
    } else if (status == XP_OK) {
        tune_print_verdict(r);
        if (r->path)
            print_use(o, xp_config_get(set), r->path, strcmp(usual, r->path) == 0);
    }
    xp_text_free(&text);
    return status;
}

/* ---- measuring --------------------------------------------------------------------------- */

static void show_progress(void *context, const char *what, double done, double total) {
    (void)context;
    if (isatty(STDERR_FILENO) == 1)
        fprintf(stderr, "\r\033[K%s: at most about %.0f s left", what, total - done);
}

static void show_row(void *context, const xp_tune_candidate *candidate) {
    const tune_options *o = context;
    if (isatty(STDERR_FILENO) == 1)
        fputs("\r\033[K", stderr);
    if (!o->json)
        tune_print_row(candidate);
}

/* Steps of the run itself on random tokens, in a folder of its own. The weights stay, so each is the same work. */
static xp_status measure_gemms_in(tune_options *o, const xp_bench_host *host, int n_ranks,
                                  const char *folder, xp_tune_gemms *gemms) {
    xp_config_set *set = NULL;
    xp_status status = xp_config_load(o->words.n, (char **)o->words.words, true, &set);
    if (status == XP_OK)
        status = xp_config_complete(set);
    if (status == XP_OK)
        status = xp_bench_step_prepare(set, folder, n_ranks);
    if (status == XP_OK)
        status = xp_config_override(set, "optimizer.lr", "0");
    if (status ==
        XP_OK) /* a recorded pass would go on with the algorithms that it was recorded with */
        status = xp_config_override(set, "training.cuda_graph", "false");
    const xp_tune_gemms_args args = {.config = set,
                                     .host = host,
                                     .n_ranks = n_ranks,
                                     .seconds = o->seconds < GEMM_S_MAX ? o->seconds : GEMM_S_MAX,
                                     .progress = xp_bench_host_leads(host) ? show_progress : NULL,
                                     .context = o};
    if (status == XP_OK)
        status = xp_tune_gemms_run(&args, gemms);
    xp_config_destroy(set);
    return status;
}

static xp_status measure_gemms(tune_options *o, const xp_bench_host *host, int n_ranks,
                               xp_tune_gemms *gemms) {
    char folder[] = "/tmp/expar-tune-XXXXXX";
    if (!mkdtemp(folder))
        return xp_error(XP_EIO, "cannot make a folder in /tmp");
    const xp_status status = measure_gemms_in(o, host, n_ranks, folder, gemms);
    const xp_status removed = xp_folder_remove(folder);
    return status == XP_OK ? removed : status;
}

/* The search on a layer, then the GEMMs of a step. */
static xp_status measure_all(tune_options *o, const xp_tune_args *args, xp_tune_report *report,
                             xp_tune_gemms *gemms) {
    const bool clears = xp_bench_host_leads(args->host) && isatty(STDERR_FILENO) == 1;
    XP_TRY(xp_tune_run(args, report));
    const xp_status status = gemms ? measure_gemms(o, args->host, args->n_ranks, gemms) : XP_OK;
    if (clears)
        fputs("\r\033[K", stderr);
    return status;
}

static xp_status measure(tune_options *o, const xp_config_set *set, const xp_bench_host *host,
                         int n_ranks, const char *path) {
    const xp_config *config = xp_config_get(set);
    const bool leads = xp_bench_host_leads(host);
    char tuned_for[XP_TUNED_FOR_MAX], gemm_for[XP_TUNED_FOR_MAX] = "";
    xp_tune_facts facts = {.on_gpu = false};
    xp_tune_report *report = calloc(1, sizeof *report);
    xp_tune_gemms *gemms = calloc(1, sizeof *gemms);
    if (!report || !gemms) {
        free(report);
        free(gemms);
        return xp_error(XP_ENOMEM, "no memory for the report");
    }
    xp_tune_args args = {.config = config,
                         .facts = &facts,
                         .host = host,
                         .n_ranks = n_ranks,
                         .n_cores = xp_train_n_cores(),
                         .seconds = o->seconds,
                         .context = o};
    xp_status status = xp_tune_facts_of(config, n_ranks, host->world != NULL, args.n_cores, &facts);
    if (o->gemms)
        xp_gemm_tuned_for_print(&facts, gemm_for, sizeof gemm_for);
    if (status == XP_OK && o->gemms && !gemm_for[0])
        status = xp_error(XP_ECONFIG,
                          "--gemms times cuBLASLt's algorithms: it needs a GPU for each rank");
    if (status == XP_OK && !facts.has_experts && !gemm_for[0])
        status = xp_error(XP_ECONFIG, "this model has no experts: there is no dispatch to tune");
    if (status == XP_OK)
        status = xp_tune_plan(&args, report);
    if (status == XP_OK) {
        xp_tuned_for_print(&facts, tuned_for, sizeof tuned_for);
        if (leads && !o->json)
            tune_print_head(&args, report);
        args.progress = leads ? show_progress : NULL;
        args.measured = leads ? show_row : NULL;
        status = measure_all(o, &args, report, gemm_for[0] ? gemms : NULL);
    }
    const tune_result result = {.args = &args,
                                .report = report,
                                .tuned_for = tuned_for,
                                .path = report->n > 0 || gemm_for[0] ? path : NULL,
                                .gemms = gemm_for[0] ? gemms : NULL,
                                .gemm_for = gemm_for};
    if (status == XP_OK && leads)
        status = finish(o, set, &result);
    free(gemms);
    free(report);
    return status;
}

static xp_status measure_here(tune_options *o, const xp_config_set *set, const xp_start *start,
                              const char *path) {
    xp_bench_host host;
    XP_TRY(xp_bench_host_open(&host));
    const int n_ranks = xp_bench_host_n_ranks(&host, start->n_ranks);
    const xp_start ranks = {.kind = start->kind, .n_ranks = n_ranks, .n_nodes = 1};
    xp_status status = xp_start_check(xp_config_get(set), &ranks);
    if (status == XP_OK && host.world && xp_comm_n_nodes(host.world) > 1)
        status = xp_error(XP_ECONFIG, "expar tune measures one machine: start it on one node");
    if (status == XP_OK)
        status = measure(o, set, &host, n_ranks, path);
    else if (host.world)
        xp_comm_abort(host.world, NULL);
    xp_bench_host_close(&host);
    return status;
}

static xp_status run(tune_options *o, const xp_config_set *set) {
    const xp_config *config = xp_config_get(set);
    char path[1024];
    xp_start start;
    XP_TRY(choose_path(o, set, path, sizeof path));
    XP_TRY(check_writable(path));
    XP_TRY(xp_start_choose(config, 1, false, &start));
    if (start.kind != XP_START_PROCESSES)
        return measure_here(o, set, &start, path);
    XP_TRY(xp_start_check(config, &start));
    return cli_ranks_launch(start.n_ranks, o->argc, o->argv);
}

static int run_and_report(tune_options *o) {
    xp_config_set *set = NULL;
    xp_status status = xp_config_load(o->words.n, o->words.words, true, &set);
    if (status == XP_OK)
        status = xp_config_complete(set);
    const bool is_read = status == XP_OK;
    if (is_read)
        status = run(o, set);
    xp_config_destroy(set);
    if (status == XP_OK)
        return XP_EXIT_OK;
    const int code = is_read ? cli_exit_code(status) : XP_EXIT_USAGE;
    if (xp_rank_has_shim())
        bench_rank_report(code, NULL);
    else
        cli_fail(status);
    return code;
}

static int parse_and_run(int argc, char **argv, char **rest) {
    static const char *const no_defaults[][2] = {{NULL, NULL}};
    tune_options o = {.seconds = 60, .argc = argc, .argv = argv};
    const char *file[2] = {NULL, NULL};
    bool done;
    const cli_option options[] = {
        {"--out", CLI_STRING, &o.out, "FILE",
         "the tuned file (NAME.tuned.toml beside CONFIG = NAME.toml)", 0, 0},
        {"--seconds", CLI_FLOAT, &o.seconds, "S",
         "how long to measure, opening the devices apart (60)", 0.1, SECONDS_MAX},
        {"--gemms", CLI_FLAG, &o.gemms, NULL,
         "GPUs: time the algorithms of a step's dense GEMMs, too", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar tune CONFIG [options] [--section.key value ...]",
        .about =
            "Measures how this machine best dispatches and combines the token rows of CONFIG's "
            "model, and writes it as a\n[deepep] section that `expar train CONFIG` takes by "
            "itself where machine and model are the same. Ranks are those of\n`expar train`: a "
            "process a GPU, or NGPU rank threads on the CPU. Each setting is measured on one MoE "
            "layer in turns\nwith the defaults, the best once more at the end: what is not faster "
            "beyond the noise leaves the defaults. None of\nthese changes the bits of a run; what "
            "would is measured and told, not written. With --gemms training steps follow: in "
            "the\nfirst every dense GEMM times cuBLASLt's deterministic algorithms, the others "
            "stand in turns with and without the\nfastest, which are written as a [gemm] section "
            "where whole steps are 1 % or more faster with them. Another\nalgorithm rounds "
            "differently: tune before a run starts.",
        .examples =
            "  expar tune my.toml\n"
            "  NGPU=2 expar tune configs/debug_moe.toml --parallelism.expert_parallel_degree "
            "2\n"
            "  expar tune my.toml --out h200.toml && expar train my.toml "
            "--deepep.tuned_file h200.toml\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = 1};
    const int n_rest = cli_config_words_take(&o.words, argc, argv, rest);
    const int code = cli_parse(&command, n_rest, rest, file, &done);
    if (code != 0 || done)
        return code;
    cli_config_words_build(&o.words, file[0], no_defaults, argc, argv, rest);
    return run_and_report(&o);
}

int cmd_tune(int argc, char **argv) {
    if (xp_shim_wanted()) {
        char **command = cli_own_command(argc, argv);
        return command ? xp_shim_run(command) : XP_EXIT_FAILED;
    }
    const int code = cli_config_words_run(argc, argv, parse_and_run);
    if (code != XP_EXIT_OK && xp_mpi_launched()) {
        fflush(NULL);
        _exit(code); /* MPI waits for all ranks when a process ends in good order */
    }
    return code;
}
