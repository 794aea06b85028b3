#include "tune_gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "device/device_internal.h"
#include "train/run_state.h"

#define TURN_S     0.3 /* the steps of a turn take at least so long: a GPU's clocks follow its power */
#define SETTLE_S   0.1   /* and so long the steps before them */
#define MOST_STEPS 64    /* of a turn */
#define PRECISE    0.003 /* the median of the ratios is known this well */

int xp_tune_gemms_n_other(const xp_tune_gemms *gemms) {
    int n = 0;
    for (int i = 0; i < gemms->n; i++)
        n += gemms->shapes[i].index > 0;
    return n;
}

bool xp_tune_gemms_won(const xp_tune_gemms *gemms) {
    return xp_tune_gemms_n_other(gemms) > 0 && gemms->verdict == XP_TUNE_FASTER;
}

/* ---- turns ------------------------------------------------------------------------------- */

static bool is_known(const xp_bench_layer_result *result) {
    double low, high;
    return result->ratio.n >= XP_BENCH_LAYER_MIN_PAIRS &&
           xp_bench_samples_median_bounds(&result->ratio, &low, &high) && high - low < 2 * PRECISE;
}

static xp_status take_turns(const xp_tune_turns *turns, xp_bench_layer_result *result) {
    double spent = 0;
    for (int pair = 0; spent < turns->seconds && !is_known(result); pair++) {
        double step_s[2], turn_s;
        for (int i = 0; i < 2; i++) {
            const int variant = (i + pair) % 2;
            XP_TRY(turns->turn(turns->context, variant, &step_s[variant], &turn_s));
            spent += turn_s;
        }
        for (int i = 0; i < 2; i++)
            xp_bench_samples_add(&result->s[i], step_s[i]);
        xp_bench_samples_add(&result->ratio, step_s[1] / step_s[0]);
        if (turns->progress)
            turns->progress(turns->context, spent);
        if (result->ratio.n == XP_BENCH_MAX_SAMPLES)
            break;
    }
    return XP_OK;
}

xp_status xp_tune_take_turns(const xp_tune_turns *turns, xp_tune_pair *pair,
                             xp_tune_verdict *verdict) {
    xp_bench_layer_result *result = calloc(1, sizeof *result);
    if (!result)
        return xp_error(XP_ENOMEM, "no memory for the samples");
    const xp_status status = take_turns(turns, result);
    if (status == XP_OK)
        *verdict = xp_tune_judge(result, pair);
    free(result);
    return status;
}

/* ---- training steps ---------------------------------------------------------------------- */

typedef struct search {
    const xp_tune_gemms_args *args;
    xp_train_shared *shared;
    xp_tune_gemms *found;
} search;

/* A rank's steps. */
typedef struct steps {
    const xp_tune_gemms_args *args;
    const xp_bench_rank *rank;
    xp_trainer *t;
    xp_tune_gemms chosen; /* rank 0's, on every rank */
    int n_settle, n_timed;
} steps;

static xp_status run_steps(const steps *s, int n, double *seconds) {
    xp_comm *world = s->rank->world;
    xp_step_record record;
    XP_TRY(xp_stream_sync(s->t->run.stream));
    if (world)
        XP_TRY(xp_comm_barrier(world, NULL));
    const double began = xp_time_s();
    for (int i = 0; i < n; i++)
        XP_TRY(xp_trainer_step(s->t, &record));
    XP_TRY(xp_stream_sync(s->t->run.stream));
    *seconds = xp_time_s() - began;
    return world ? xp_comm_all_reduce(world, seconds, seconds, 1, XP_F64, XP_MAX, NULL) : XP_OK;
}

static xp_status take_turn(void *context, int variant, double *step_s, double *spent_s) {
    const steps *s = context;
    double settle_s = 0;
    XP_TRY(xp_ops_gemm_choose(s->t->device, s->chosen.shapes, variant == 0 ? 0 : s->chosen.n));
    if (s->n_settle > 0)
        XP_TRY(run_steps(s, s->n_settle, &settle_s));
    XP_TRY(run_steps(s, s->n_timed, step_s));
    *spent_s = settle_s + *step_s;
    *step_s /= s->n_timed;
    return XP_OK;
}

static void show(void *context, double spent_s) {
    const steps *s = context;
    const double total = s->args->seconds;
    if (s->rank->rank == 0 && s->args->progress)
        s->args->progress(s->args->context, "training steps with other GEMM algorithms",
                          spent_s < total ? spent_s : total, total);
}

static int n_steps(double seconds, double step_s) {
    const double n = ceil(seconds / (step_s + 1e-9));
    return n < MOST_STEPS ? (int)n : MOST_STEPS;
}

static xp_status compare_steps(steps *s) {
    double seconds = 0;
    XP_TRY(xp_ops_gemm_choose(s->t->device, s->chosen.shapes, 0));
    XP_TRY(run_steps(s, 1, &seconds));
    XP_TRY(run_steps(s, 1, &seconds));
    s->n_timed = n_steps(TURN_S, seconds);
    s->n_settle = seconds < TURN_S ? n_steps(SETTLE_S, seconds) : 0;
    const xp_tune_turns turns = {
        .turn = take_turn, .context = s, .seconds = s->args->seconds, .progress = show};
    return xp_tune_take_turns(&turns, &s->chosen.pair, &s->chosen.verdict);
}

/* Every rank times for itself; what rank 0 found is what would be written, so all ranks try that. */
static xp_status find_and_compare(steps *s, xp_tune_gemms *found) {
    xp_step_record record;
    if (s->t->shares_gpus) /* each would time what the others do */
        return XP_OK;
    XP_TRY(xp_ops_gemm_tune(s->t->device));
    XP_TRY(xp_trainer_start(s->t));
    XP_TRY(xp_trainer_step(s->t, &record));
    xp_device_set_host_synchronized(s->t->device, false); /* as in a run after its first step */
    s->chosen.n = xp_ops_gemm_tuned(s->t->device, s->chosen.shapes, XP_GEMM_CHOICES_MAX);
    if (s->rank->world)
        XP_TRY(xp_comm_broadcast(s->rank->world, &s->chosen, sizeof s->chosen, 0, NULL));
    if (xp_tune_gemms_n_other(&s->chosen) > 0)
        XP_TRY(compare_steps(s));
    if (s->rank->rank == 0)
        *found = s->chosen;
    return XP_OK;
}

static xp_status run_rank(xp_bench_rank *rank, void *context) {
    const search *all = context;
    steps *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the GEMM shapes");
    s->args = all->args;
    s->rank = rank;
    xp_status status =
        xp_trainer_open(all->args->config, all->shared, rank->world, rank->n_local, NULL, &s->t);
    if (status == XP_OK) {
        status = find_and_compare(s, all->found);
        if (status != XP_OK && rank->world)
            xp_comm_abort(rank->world, NULL);
        xp_trainer_close(s->t);
    }
    free(s);
    return status;
}

xp_status xp_tune_gemms_run(const xp_tune_gemms_args *args, xp_tune_gemms *found) {
    search s = {.args = args, .found = found};
    const double began = xp_time_s();
    memset(found, 0, sizeof *found);
    XP_TRY(xp_train_shared_create(xp_config_get(args->config), NULL, &s.shared));
    const xp_status status = xp_bench_run_ranks(args->host, args->n_ranks, run_rank, &s);
    xp_train_shared_destroy(s.shared);
    found->seconds = xp_time_s() - began;
    return status;
}
