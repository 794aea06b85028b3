/* expar bench step: arguments and printing; bench/step.c measures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "cli.h"
#include "config_words.h"
#include "train/complete.h"
#include "core/file.h"
#include "core/text.h"
#include "options.h"
#include "step.h"
#include "train/trainer.h"

#define GIB ((double)(1 << 30))

typedef struct step_options {
    const char *config;
    int64_t ranks, steps, warmup;
    bool ep, json;
    cli_config_words words;
} step_options;

/* A mid-size Qwen3-MoE: large enough for GEMMs to count, a step in well under a second.
 */
static const char *const mid_size[][2] = {
    {"model.flavor", "custom"},
    {"model.dim", "512"},
    {"model.n_layers", "4"},
    {"model.n_heads", "8"},
    {"model.n_kv_heads", "4"},
    {"model.head_dim", "64"},
    {"model.vocab_size", "8192"},
    {"moe.num_experts", "32"},
    {"moe.top_k", "4"},
    {"moe.moe_dim", "384"},
    {"training.seq_len", "512"},
    {"training.local_batch_size", "8"},
    {NULL, NULL},
};

/* ---- printing ---------------------------------------------------------------------------- */

static void print_phases(const xp_bench_step_result *v) {
    const double step_s = xp_bench_samples_mean(&v->step_s);
    double rest = step_s;
    printf("\n%-22s %10s %8s %12s\n", "phase of rank 0, mean", "ms", "share", "GFLOP/s");
    for (int i = 0; i < XP_BENCH_N_PHASES; i++) {
        const xp_bench_phase_total *p = &v->phases[i];
        if (p->n_calls == 0)
            continue;
        printf("%-22s %10.2f %7.1f%%", xp_bench_phase_name((xp_bench_phase)i), p->seconds * 1e3,
               100 * p->seconds / step_s);
        if (p->flops > 0)
            printf(" %12.1f", p->flops / p->seconds * 1e-9);
        printf("\n");
        rest -= p->seconds;
    }
    if (rest >= 0)
        printf("%-22s %10.2f %7.1f%%\n", "everything else", rest * 1e3, 100 * rest / step_s);
    else /* collectives run on a stream of their own */
        printf("%-22s %10.2f %7.1f%%\n", "at the same time", rest * 1e3, 100 * rest / step_s);
}

static void print_variant(const xp_bench_step_report *r, const xp_bench_step_result *v) {
    const double step_s = xp_bench_samples_median(&v->step_s);
    char total[32], active[32];
    snprintf(total, sizeof total, "%.1f M", (double)v->n_params * 1e-6);
    snprintf(active, sizeof active, "%.1f M", (double)v->n_active_params * 1e-6);
    printf("model: %s, %s parameters, %s active; %d rank%s x %d thread%s on %d cores, expert "
           "parallel %d, %s\n",
           v->model, total, active, r->n_ranks, r->n_ranks == 1 ? "" : "s", v->n_threads,
           v->n_threads == 1 ? "" : "s", r->n_cores, v->ep_size, v->ops);
    printf("step:  %.1f ms (median of %d; best %.1f), %lld tokens, %.0f tok/s\n", step_s * 1e3,
           v->step_s.n, xp_bench_samples_min(&v->step_s) * 1e3, (long long)v->tokens,
           (double)v->tokens / step_s);
    printf("FLOPs: %.2f G a step, %.1f GFLOP/s\n", v->flops * 1e-9, v->flops / step_s * 1e-9);
    if (r->has_sgemm) {
        const double flops = 2.0 * XP_BENCH_SGEMM_N * XP_BENCH_SGEMM_N * (double)XP_BENCH_SGEMM_N;
        printf("sgemm: %.1f GFLOP/s (OpenBLAS, %d^3, %d threads, median of %d between the steps)\n",
               flops / xp_bench_samples_median(&r->sgemm_s) * 1e-9, XP_BENCH_SGEMM_N, r->n_cores,
               r->sgemm_s.n);
        printf(
            "ratio: %.3f (step time / time of its FLOPs at the sgemm rate around it; best %.3f)\n",
            xp_bench_samples_median(&v->ratio), xp_bench_samples_min(&v->ratio));
    }
    print_phases(v);
}

static void print_report(const xp_bench_step_report *r) {
    for (int i = 0; i < r->n_variants; i++) {
        printf("%s", i > 0 ? "\n" : "");
        print_variant(r, &r->variants[i]);
    }
    printf("\nmemory: peak %.3f GiB resident, predicted %.3f GiB (%+.1f %%)\n",
           (double)r->peak_rss / GIB, (double)r->predicted_rss / GIB,
           100 * ((double)r->predicted_rss / (double)r->peak_rss - 1));
}

static void add_samples(xp_text *t, const char *name, const xp_bench_samples *s) {
    xp_text_printf(t, "\"%s\": {\"median\": ", name);
    xp_text_add_json_double(t, xp_bench_samples_median(s));
    xp_text_puts(t, ", \"min\": ");
    xp_text_add_json_double(t, xp_bench_samples_min(s));
    xp_text_printf(t, ", \"n\": %d}", s->n);
}

static void add_variant(xp_text *t, const xp_bench_step_result *v) {
    xp_text_puts(t, "{\"model\": ");
    xp_text_add_json(t, v->model, strlen(v->model));
    xp_text_printf(t,
                   ", \"ops\": \"%s\", \"ep\": %d, \"threads_per_rank\": %d, \"tokens\": %lld, "
                   "\"params\": %lld, \"active_params\": %lld, \"flops\": ",
                   v->ops, v->ep_size, v->n_threads, (long long)v->tokens, (long long)v->n_params,
                   (long long)v->n_active_params);
    xp_text_add_json_double(t, v->flops);
    xp_text_puts(t, ", ");
    add_samples(t, "step_s", &v->step_s);
    xp_text_puts(t, ", ");
    add_samples(t, "ratio", &v->ratio);
    xp_text_puts(t, ", \"loss_first\": ");
    xp_text_add_json_double(t, v->loss_first);
    xp_text_puts(t, ", \"loss_last\": ");
    xp_text_add_json_double(t, v->loss_last);
    xp_text_puts(t, ", \"phases\": {");
    for (int i = 0; i < XP_BENCH_N_PHASES; i++) {
        xp_text_printf(t, "%s\"%s\": {\"seconds\": ", i > 0 ? ", " : "",
                       xp_bench_phase_name((xp_bench_phase)i));
        xp_text_add_json_double(t, v->phases[i].seconds);
        xp_text_puts(t, ", \"flops\": ");
        xp_text_add_json_double(t, v->phases[i].flops);
        xp_text_puts(t, "}");
    }
    xp_text_puts(t, "}}");
}

static void print_json(const xp_bench_step_report *r) {
    xp_text t = {0};
    xp_text_printf(&t,
                   "{\"ranks\": %d, \"cores\": %d, \"peak_rss\": %lld, \"predicted_rss\": %lld, ",
                   r->n_ranks, r->n_cores, (long long)r->peak_rss, (long long)r->predicted_rss);
    if (r->has_sgemm) {
        add_samples(&t, "sgemm_s", &r->sgemm_s);
        xp_text_printf(&t, ", \"sgemm_n\": %d, ", XP_BENCH_SGEMM_N);
    }
    xp_text_puts(&t, "\"variants\": [");
    for (int i = 0; i < r->n_variants; i++) {
        xp_text_puts(&t, i > 0 ? ", " : "");
        add_variant(&t, &r->variants[i]);
    }
    xp_text_puts(&t, "]}");
    puts(t.failed ? "{}" : t.data);
    xp_text_free(&t);
}

static void show_progress(void *context, int done, int total) {
    const double *began = context;
    if (isatty(STDERR_FILENO) == 1)
        fprintf(stderr, "\rstep %d of %d, %.0f s left  %s", done, total,
                (xp_time_s() - *began) * (total - done) / done, done == total ? "\r\033[K" : "");
}

/* ---- running ----------------------------------------------------------------------------- */

static xp_status load(const step_options *o, const char *folder, int n_ranks, int ep_size,
                      xp_config_set **config) {
    XP_TRY(xp_config_load(o->words.n, (char **)o->words.words, false, config));
    XP_TRY(xp_config_complete(*config));
    char size[16];
    snprintf(size, sizeof size, "%d", ep_size);
    if (ep_size > 0)
        XP_TRY(xp_config_override(*config, "parallelism.expert_parallel_degree", size));
    return xp_bench_step_prepare(*config, folder, n_ranks);
}

static xp_status measure(const step_options *o, const xp_bench_host *host, const char *folder,
                         xp_bench_step_report *report) {
    const int n_ranks = xp_bench_host_n_ranks(host, (int)o->ranks);
    double began = xp_time_s();
    xp_bench_step_args args = {.host = host,
                               .n_ranks = n_ranks,
                               .n_warmup = (int)o->warmup,
                               .n_steps = (int)o->steps,
                               .progress = show_progress,
                               .context = &began};
    xp_status status = XP_OK;
    args.n_variants = o->ep ? 2 : 1;
    for (int v = 0; v < args.n_variants && status == XP_OK; v++)
        status = load(o, folder, n_ranks, !o->ep ? 0 : v == 0 ? 1 : n_ranks, &args.configs[v]);
    if (status == XP_OK)
        status = xp_bench_step(&args, report);
    for (int v = 0; v < args.n_variants; v++)
        xp_config_destroy(args.configs[v]);
    return status;
}

static void print_comparison(const xp_bench_step_report *r) {
    const double one = xp_bench_samples_median(&r->variants[0].step_s);
    const double many = xp_bench_samples_median(&r->variants[1].step_s);
    printf("expert parallel %d against 1: %+.1f %% step time (medians of steps in turns)\n",
           r->variants[1].ep_size, 100 * (many / one - 1));
}

static xp_status run_in(const step_options *o, const xp_bench_host *host, const char *folder) {
    xp_bench_step_report *report = calloc(1, sizeof *report);
    if (!report)
        return xp_error(XP_ENOMEM, "no memory for the report");
    const xp_status status = measure(o, host, folder, report);
    if (status == XP_OK && xp_bench_host_leads(host)) {
        if (o->json)
            print_json(report);
        else
            print_report(report);
        if (o->ep && !o->json)
            print_comparison(report);
    }
    free(report);
    return status;
}

static xp_status run(const step_options *o) {
    char folder[] = "/tmp/expar-bench-XXXXXX";
    xp_bench_host host;
    XP_TRY(xp_bench_host_open(&host));
    xp_status status = mkdtemp(folder) ? XP_OK : xp_error(XP_EIO, "cannot make a folder in /tmp");
    if (status == XP_OK) {
        status = run_in(o, &host, folder);
        const xp_status removed = xp_folder_remove(folder);
        status = status == XP_OK ? removed : status;
    }
    xp_bench_host_close(&host);
    return status;
}

static int parse_and_run(int argc, char **argv, char **rest) {
    step_options o = {.ranks = 1, .steps = 10, .warmup = 3};
    bool done;
    const cli_option options[] = {
        {"--config", CLI_STRING, &o.config, "FILE", "default: the mid-size model described above",
         0, 0},
        {"--ranks", CLI_INT, &o.ranks, "N", "rank threads, which share the cores (1)", 1, 1024},
        {"--steps", CLI_INT, &o.steps, "N", "measured steps (10)", 1, XP_BENCH_MAX_SAMPLES},
        {"--warmup", CLI_INT, &o.warmup, "N", "steps before, which touch all memory (3)", 1, 1000},
        {"--ep", CLI_FLAG, &o.ep, NULL,
         "compare expert parallel degree N with 1 (data parallel), steps in turns", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench step [--config FILE] [options] [--section.key value ...]",
        .about =
            "Times whole training steps (forward, backward, clip, AdamW) on random tokens with "
            "real routing, in turns\nwith OpenBLAS's sgemm 1024^3 on the same cores, and prints "
            "the ratio: step time over the time of the\nsame FLOPs at the sgemm rate. Without "
            "--config: D = 512, 4 layers, 8/4 heads of 64, 32 experts of\nwidth 384, top-4, "
            "8 x 512 tokens, vocabulary 8192, fp32. Also time by phase, and memory predicted "
            "and\nused.",
        .examples = "  expar bench step\n"
                    "  expar bench step --training.local_batch_size 4 --json\n"
                    "  expar bench step --config configs/debug_moe.toml --ranks 2\n"
                    "  expar bench step --ep --ranks 2\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int n_rest = cli_config_words_take(&o.words, argc, argv, rest);
    int code = cli_parse(&command, n_rest, rest, NULL, &done);
    if (code != 0 || done)
        return code;
    cli_config_words_build(&o.words, o.config, mid_size, argc, argv, rest);
    if (o.ep && o.ranks == 1)
        o.ranks = xp_train_n_cores();
    xp_status status = run(&o);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}

int bench_step(int argc, char **argv) {
    return cli_config_words_run(argc, argv, parse_and_run);
}
