#include "tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "model/arch.h"
#include "parallel/run.h"

#define SCREENING                                                                                  \
    0.5 /* share of the time for all candidates; the rest is for the last comparison */
#define PRECISE    0.003
#define CPU_FLOPS  20e9 /* of a core, about: how many tokens a pass may take on a CPU */
#define CPU_PASS_S 2.0

/* ---- verdicts ---------------------------------------------------------------------------- */

xp_tune_verdict xp_tune_judge(const xp_bench_layer_result *result, xp_tune_pair *pair) {
    *pair = (xp_tune_pair){.n_pairs = result->ratio.n,
                           .default_s = xp_bench_samples_median(&result->s[0]),
                           .other_s = xp_bench_samples_median(&result->s[1]),
                           .ratio = xp_bench_samples_median(&result->ratio)};
    if (!xp_bench_samples_median_bounds(&result->ratio, &pair->low, &pair->high))
        return XP_TUNE_UNCLEAR;
    if (pair->high < 1 && pair->ratio <= 1 - XP_TUNE_LEAST_GAIN)
        return XP_TUNE_FASTER;
    return pair->low > 1 ? XP_TUNE_SLOWER : XP_TUNE_SAME;
}

/* ---- candidates -------------------------------------------------------------------------- */

static xp_bench_setting default_setting(const xp_tune_args *args) {
    const xp_config *c = args->config;
    const xp_recompute recompute = xp_run_recompute(c->activation_checkpoint.mode);
    return (xp_bench_setting){
        .transport = args->facts->deepep ? XP_EP_AUTO : XP_EP_A2A,
        .overlap = c->parallelism.expert_parallel_overlap,
        .overlap_split = c->deepep.overlap_split,
        .save_recv = xp_saves_recv(recompute, xp_run_save_dispatched(c->moe.save_dispatched))};
}

static xp_tune_candidate *add(xp_tune_report *report, const xp_bench_setting *setting,
                              const char *name) {
    if (report->n == XP_TUNE_MAX)
        return NULL;
    xp_tune_candidate *made = &report->candidates[report->n++];
    *made = (xp_tune_candidate){.setting = *setting};
    snprintf(made->name, sizeof made->name, "%s", name);
    return made;
}

/* Blocks of dispatch and combine, an SM each; by default half of the GPU's. */
static void add_num_sms(const xp_tune_args *args, xp_tune_report *report) {
    static const int shares[] = {16, 8, 6, 4, 3}; /* of the GPU: a sixteenth to a third */
    const int n_sms = args->facts->n_sms;
    char name[64];
    xp_bench_setting setting = default_setting(args);
    for (size_t i = 0; n_sms >= 32 && i < sizeof shares / sizeof shares[0] + 2; i++) {
        setting.num_sms = i < 5 ? n_sms / shares[i] : i == 5 ? n_sms * 3 / 4 : n_sms;
        snprintf(name, sizeof name, "deepep.num_sms %d", setting.num_sms);
        (void)add(report, &setting, name);
    }
}

/* What changes the order of sums or the memory is measured and told; the user decides. */
static void add_told(const xp_tune_args *args, xp_tune_report *report) {
    const xp_bench_setting base = default_setting(args);
    xp_bench_setting setting = base;
    xp_tune_candidate *made = NULL;
    setting.overlap = base.overlap > 0 ? -1 : 1;
    made = add(report, &setting,
               base.overlap > 0 ? "parallelism.expert_parallel_overlap auto"
                                : "parallelism.expert_parallel_overlap true");
    if (made)
        made->why_not = "it changes the order of sums";
    setting = base;
    setting.save_recv = true;
    if (!base.save_recv && (made = add(report, &setting, "moe.save_dispatched yes")) != NULL)
        made->why_not = "it takes more memory";
    setting = base;
    setting.transport = XP_EP_AUTO;
    if (!args->facts->deepep &&
        (made = add(report, &setting, "parallelism.expert_parallel_comm_backend deepep")) != NULL)
        made->why_not = "the configuration says standard";
}

static int64_t tokens_of(const xp_tune_args *args) {
    const xp_tune_facts *f = args->facts;
    const double pass = 18.0 * f->top_k * (double)f->dim * (double)f->moe_dim * args->n_ranks;
    const double most = CPU_FLOPS * args->n_cores * CPU_PASS_S / pass;
    if (f->on_gpu || (double)f->tokens <= most)
        return f->tokens;
    return most < 64 ? (f->tokens < 64 ? f->tokens : 64) : (int64_t)most;
}

xp_status xp_tune_plan(const xp_tune_args *args, xp_tune_report *report) {
    xp_bench_setting setting = default_setting(args);
    *report = (xp_tune_report){
        .best = XP_TUNE_DEFAULT, .winner = XP_TUNE_DEFAULT, .n_tokens = tokens_of(args)};
    if (args->facts->ep_size <= 1)
        return XP_OK; /* nothing is dispatched */
    if (args->facts->deepep) {
        setting.transport = XP_EP_A2A;
        (void)add(report, &setting, "deepep.transport a2a");
    }
    add_num_sms(args, report);
    add_told(args, report);
    return XP_OK;
}

/* ---- measuring --------------------------------------------------------------------------- */

typedef struct search {
    const xp_tune_args *args;
    xp_tune_report *report;
    xp_bench_layer_case c;
    xp_bench_layer_result *result;
    const char *what;
    double began, until; /* of what is being measured, in seconds of the search */
} search;

static void show(void *context, double share) {
    const search *s = context;
    if (s->args->progress)
        s->args->progress(s->args->context, s->what, s->began + share * (s->until - s->began),
                          s->args->seconds);
}

static xp_status describe_layer(search *s) {
    const xp_config *c = s->args->config;
    xp_arch arch;
    XP_TRY(xp_arch_from_config(c, &arch));
    int64_t n_microbatches = 1, global_batch;
    XP_TRY(xp_run_batch_sizes(c, s->args->n_ranks, &n_microbatches, &global_batch));
    const xp_dtype dtype = s->args->facts->dtype;
    s->c = (xp_bench_layer_case){
        .n_ranks = s->args->n_ranks,
        .ep_size = s->args->facts->ep_size,
        .cuda = s->args->facts->on_gpu,
        .n_tokens = s->report->n_tokens,
        .precise = PRECISE,
        .progress = show,
        .context = s,
        .model = {.dim = arch.dim,
                  .moe_dim = arch.moe_dim,
                  .n_experts = arch.n_experts,
                  .top_k = arch.top_k,
                  .score_func = arch.score_func,
                  .route_norm = arch.route_norm,
                  .route_scale = arch.route_scale,
                  .dtype = dtype,
                  .grad_dtype = dtype == XP_BF16 && n_microbatches == 1 ? XP_BF16 : XP_F32,
                  .save_gate_up =
                      xp_run_recompute(c->activation_checkpoint.mode) == XP_RECOMPUTE_NONE,
                  .forced = xp_run_forced(c),
                  .aux_coeff = c->moe.aux_loss_coeff,
                  .z_coeff = c->moe.z_loss_coeff,
                  .ep = {.capacity_factor = c->moe.capacity_factor}}};
    return XP_OK;
}

static xp_status measure(search *s, const xp_bench_setting *a, const xp_bench_setting *b,
                         double seconds, const char *what) {
    s->c.settings[0] = *a;
    s->c.settings[1] = *b;
    s->c.seconds = seconds;
    s->what = what;
    s->until = s->began + seconds;
    show(s, 0);
    XP_TRY((s->args->layer ? s->args->layer : xp_bench_layer)(s->args->host, &s->c, s->result));
    s->began = s->until;
    return XP_OK;
}

/* Rank 0's process alone knows the results: it tells the others. */
static xp_status agree(const search *s, void *data, size_t n_bytes) {
    xp_comm *world = s->args->host->world;
    return world ? xp_comm_broadcast(world, data, (int64_t)n_bytes, 0, NULL) : XP_OK;
}

static xp_status screen(search *s, int i, double seconds) {
    xp_tune_candidate *c = &s->report->candidates[i];
    const xp_bench_setting base = default_setting(s->args);
    XP_TRY(measure(s, &base, &c->setting, seconds, c->name));
    c->verdict = xp_tune_judge(s->result, &c->pair);
    c->same_bits = s->result->same_bits;
    if (!c->same_bits && !c->why_not)
        c->why_not = "it changed the bits";
    const int best = s->report->best;
    if (!c->why_not && c->verdict == XP_TUNE_FASTER &&
        (best == XP_TUNE_DEFAULT || c->pair.ratio < s->report->candidates[best].pair.ratio))
        s->report->best = i;
    if (s->args->measured)
        s->args->measured(s->args->context, c);
    return XP_OK;
}

static void add_samples(const xp_bench_layer_result *from, bool swapped,
                        xp_bench_layer_result *to) {
    for (int i = 0; i < from->ratio.n; i++) {
        for (int k = 0; k < 2; k++)
            xp_bench_samples_add(&to->s[swapped ? 1 - k : k], from->s[k].values[i]);
        const double ratio = from->ratio.values[i];
        xp_bench_samples_add(&to->ratio, swapped ? 1 / ratio : ratio);
    }
}

/* Once each way round: what comes of where their memory lies must not decide. */
static xp_status compare_best(search *s, double seconds) {
    const xp_tune_candidate *best = &s->report->candidates[s->report->best];
    const xp_bench_setting base = default_setting(s->args);
    xp_bench_layer_result *both = calloc(1, sizeof *both);
    if (!both)
        return xp_error(XP_ENOMEM, "no memory for the samples");
    xp_status status = measure(s, &base, &best->setting, seconds / 2, "the best and the default");
    if (status == XP_OK) {
        add_samples(s->result, false, both);
        status = measure(s, &best->setting, &base, seconds / 2, "the default and the best");
    }
    if (status == XP_OK) {
        add_samples(s->result, true, both);
        s->report->has_pair = true;
        if (xp_tune_judge(both, &s->report->pair) == XP_TUNE_FASTER)
            s->report->winner = s->report->best;
    }
    free(both);
    return status;
}

static xp_status run(search *s) {
    const double seconds = s->args->seconds, began = xp_time_s();
    xp_tune_report *report = s->report;
    XP_TRY(describe_layer(s));
    for (int i = 0; i < report->n; i++) {
        double spent = xp_time_s() - began;
        XP_TRY(agree(s, &spent, sizeof spent));
        if (spent > seconds) /* opening the devices has taken the rest */
            break;
        XP_TRY(screen(s, i, seconds * SCREENING / report->n));
    }
    XP_TRY(agree(s, &report->best, sizeof report->best));
    if (report->best != XP_TUNE_DEFAULT)
        XP_TRY(compare_best(s, seconds * (1 - SCREENING)));
    XP_TRY(agree(s, &report->winner, sizeof report->winner));
    report->seconds = xp_time_s() - began;
    return XP_OK;
}

xp_status xp_tune_run(const xp_tune_args *args, xp_tune_report *report) {
    XP_TRY(xp_tune_plan(args, report));
    if (report->n == 0)
        return XP_OK;
    search s = {.args = args, .report = report, .result = calloc(1, sizeof *s.result)};
    if (!s.result)
        return xp_error(XP_ENOMEM, "no memory for the samples");
    const xp_status status = run(&s);
    free(s.result);
    return status;
}
