#include "step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "core/rng.h"
#include "ops/cpu/blas.h"
#include "ops/ops.h"
#include "predict/predict.h"
#include "train/run_state.h"

#define N_ROWS_MAX    256 /* rows of random tokens; the loader begins again after them */
#define SGEMM_REPEATS 8   /* about a tenth of a second on two cores */
#define SGEMM_FLOPS   (2.0 * XP_BENCH_SGEMM_N * XP_BENCH_SGEMM_N * XP_BENCH_SGEMM_N)

typedef struct bench {
    const xp_bench_step_args *args;
    xp_bench_step_report *report;
    xp_train_shared *shared[XP_BENCH_MAX_VARIANTS];
    xp_cpu_blas_timer *sgemm; /* NULL: not wanted */
} bench;

/* ---- random data ------------------------------------------------------------------------- */

static xp_status write_tokens(const char *path, int64_t vocab, int64_t seq_len, int64_t n_rows) {
    const int64_t n = n_rows * (seq_len + 1);
    uint32_t *ids = malloc((size_t)n * sizeof *ids);
    if (!ids)
        return xp_error(XP_ENOMEM, "no memory for %lld random tokens", (long long)n);
    for (int64_t i = 0; i < n; i++)
        ids[i] = (uint32_t)xp_rng_below(1, 0, (uint64_t)i, (uint64_t)vocab);
    const xp_status status = xp_file_write_atomic(path, ids, (size_t)n * sizeof *ids);
    free(ids);
    return status;
}

xp_status xp_bench_step_prepare(xp_config_set *config, const char *folder, int n_ranks) {
    const xp_config *c = xp_config_get(config);
    xp_arch arch;
    XP_TRY(xp_arch_from_config(c, &arch));
    int64_t n_microbatches, n_rows;
    XP_TRY(xp_run_batch_sizes(c, n_ranks, &n_microbatches, &n_rows));
    n_rows = n_rows > N_ROWS_MAX ? n_rows : (N_ROWS_MAX / n_rows) * n_rows;
    char *path = xp_path_join(folder, "tokens.bin");
    if (!path)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = write_tokens(path, arch.vocab_size, c->training.seq_len, n_rows);
    const char *const values[][2] = {
        {"job.dump_folder", folder},
        {"training.dataset", "tokens"},
        {"training.dataset_path", path},
        {"training.shuffle", "false"},
        {"checkpoint.enable", "false"},
        {"validation.enable", "false"},
        {"metrics.enable_tensorboard", "false"},
    };
    for (size_t i = 0; status == XP_OK && i < sizeof values / sizeof values[0]; i++)
        status = xp_config_override(config, values[i][0], values[i][1]);
    free(path);
    return status;
}

/* ---- one rank ---------------------------------------------------------------------------- */

typedef struct bench_rank {
    bench *b;
    xp_bench_rank *rank;
    xp_trainer *trainers[XP_BENCH_MAX_VARIANTS];
    xp_bench_phases phases; /* rank 0 */
    double sgemm_s;         /* the last one */
} bench_rank;

static bool leads(const bench_rank *r) {
    return r->rank->rank == 0;
}

static xp_status measure_sgemm(bench_rank *r) {
    XP_TRY(xp_bench_barrier(r->rank));
    if (leads(r) && r->b->sgemm) {
        r->sgemm_s = xp_cpu_blas_timer_run(r->b->sgemm, r->b->report->n_cores, SGEMM_REPEATS);
        xp_bench_samples_add(&r->b->report->sgemm_s, r->sgemm_s);
    }
    return xp_bench_barrier(r->rank);
}

static void add_phases(bench_rank *r, xp_bench_step_result *result) {
    xp_bench_phase_total totals[XP_BENCH_N_PHASES];
    const double n = r->b->args->n_steps;
    xp_bench_phases_take(&r->phases, totals);
    for (int i = 0; i < XP_BENCH_N_PHASES; i++) {
        result->phases[i].seconds += totals[i].seconds / n;
        result->phases[i].flops += totals[i].flops / n;
        result->phases[i].n_calls += totals[i].n_calls;
    }
}

/* On a GPU an op's call only queues it, and its arguments are the GPU's memory. */
static bool sees_phases(const xp_trainer *t) {
    return xp_device_get_kind(t->device) == XP_DEVICE_CPU;
}

static xp_status measure_step(bench_rank *r, int variant) {
    xp_trainer *t = r->trainers[variant];
    const bool phases = leads(r) && sees_phases(t);
    xp_bench_step_result *result = &r->b->report->variants[variant];
    xp_step_record record;
    if (phases)
        xp_bench_phases_start(&r->phases, t->device, &t->run.arch);
    xp_status status = xp_bench_barrier(r->rank);
    const double began = xp_time_s();
    if (status == XP_OK)
        status = xp_trainer_step(t, &record);
    if (status == XP_OK)
        status = xp_bench_barrier(r->rank);
    const double seconds = xp_time_s() - began;
    if (!leads(r))
        return status;
    if (status == XP_OK) {
        xp_bench_samples_add(&result->step_s, seconds);
        if (phases)
            add_phases(r, result);
        result->loss_last = record.loss;
    }
    if (phases)
        xp_bench_phases_stop(&r->phases, t->device);
    return status;
}

static void add_ratio(bench_rank *r, int variant, double sgemm_before) {
    xp_bench_step_result *result = &r->b->report->variants[variant];
    const double sgemm_s = (sgemm_before + r->sgemm_s) / 2;
    if (!leads(r) || !r->b->sgemm)
        return;
    const double limit_s = result->flops / SGEMM_FLOPS * sgemm_s;
    xp_bench_samples_add(&result->ratio, result->step_s.values[result->step_s.n - 1] / limit_s);
}

static xp_status open_trainer(bench_rank *r, int variant) {
    const bench *b = r->b;
    xp_trainer **t = &r->trainers[variant];
    XP_TRY(xp_trainer_open(b->args->configs[variant], b->shared[variant], r->rank->world,
                           r->rank->n_local, NULL, t));
    XP_TRY(xp_trainer_start(*t));
    xp_step_record record;
    xp_bench_step_result *result = &b->report->variants[variant];
    for (int i = 0; i < b->args->n_warmup; i++) {
        XP_TRY(xp_trainer_step(*t, &record));
        if (leads(r) && i == 0)
            result->loss_first = record.loss;
    }
    if (!leads(r))
        return XP_OK;
    const xp_run *run = &(*t)->run;
    const xp_ops *ops = NULL;
    XP_TRY(xp_ops_get((*t)->device, &ops));
    snprintf(result->model, sizeof result->model, "%s", run->arch.flavor);
    snprintf(result->ops, sizeof result->ops, "%s", ops->name);
    result->ep_size = run->mesh.ep_size;
    result->n_threads = (*t)->n_threads;
    result->tokens = run->global_batch * run->seq_len;
    result->flops = xp_arch_flops_per_token(&run->arch, run->seq_len) * (double)result->tokens;
    result->n_params = xp_arch_n_params(&run->arch);
    result->n_active_params = xp_arch_n_active_params(&run->arch);
    return XP_OK;
}

static double physical_memory(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (double)pages * (double)page : 1;
}

/* Of the ranks' GPUs the largest sum; of processes on the CPU the sum. */
static xp_status measure_memory(bench_rank *r) {
    const xp_trainer *t = r->trainers[0];
    xp_bench_step_report *report = r->b->report;
    const bool on_gpus = xp_device_get_kind(t->device) == XP_DEVICE_CUDA;
    double used = 0;
    for (int v = 0; on_gpus && v < r->b->args->n_variants; v++)
        used += (double)xp_device_peak_bytes(r->trainers[v]->device) * t->n_on_device;
    if (!on_gpus)
        used = (double)xp_process_peak_rss();
    const bool is_alone = !on_gpus && r->rank->team; /* threads are one process */
    if (r->rank->world && !is_alone)
        XP_TRY(xp_comm_all_reduce(r->rank->world, &used, &used, 1, XP_F64,
                                  on_gpus ? XP_MAX : XP_SUM, NULL));
    if (!leads(r))
        return XP_OK;
    report->on_gpus = on_gpus;
    report->memory_used = (int64_t)used;
    report->memory_total = on_gpus ? xp_device_total_bytes(t->device) : (int64_t)physical_memory();
    return XP_OK;
}

static xp_status measure(bench_rank *r) {
    const xp_bench_step_args *args = r->b->args;
    for (int v = 0; v < args->n_variants; v++)
        XP_TRY(open_trainer(r, v));
    XP_TRY(measure_sgemm(r));
    for (int i = 0; i < args->n_steps; i++) {
        for (int v = 0; v < args->n_variants; v++) {
            const double before = r->sgemm_s;
            XP_TRY(measure_step(r, v));
            if (r->b->sgemm)
                XP_TRY(measure_sgemm(r));
            add_ratio(r, v, before);
        }
        if (leads(r) && args->progress)
            args->progress(args->context, i + 1, args->n_steps);
    }
    return measure_memory(r);
}

static xp_status run_rank(xp_bench_rank *rank, void *context) {
    bench_rank r = {.b = context, .rank = rank};
    if (leads(&r))
        r.b->report->n_ranks = rank->n_ranks;
    const xp_status status = measure(&r);
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    for (int v = 0; v < r.b->args->n_variants; v++)
        xp_trainer_close(r.trainers[v]);
    return status;
}

/* ---- all of it --------------------------------------------------------------------------- */

static xp_status predict(const bench *b, int n_local) {
    int64_t bytes = xp_process_rss();
    for (int v = 0; v < b->args->n_variants; v++) {
        const xp_config *c = xp_config_get(b->args->configs[v]);
        xp_mesh layout;
        xp_memory_prediction p;
        XP_TRY(xp_mesh_layout(c, b->args->n_ranks, 0, &layout));
        XP_TRY(xp_predict_memory(c, &layout, &p));
        bytes = xp_predict_process_bytes(&p, n_local, bytes);
    }
    b->report->predicted_rss = bytes;
    return XP_OK;
}

static xp_status prepare_and_run(bench *b) {
    const xp_bench_step_args *args = b->args;
    for (int v = 0; v < args->n_variants; v++)
        XP_TRY(xp_train_shared_create(xp_config_get(args->configs[v]), NULL, &b->shared[v]));
    if (!args->without_sgemm) {
        XP_TRY(xp_cpu_blas_timer_create(XP_BENCH_SGEMM_N, &b->sgemm));
        /* Its memory is touched before the prediction, which starts from what is resident. */
        xp_cpu_blas_timer_run(b->sgemm, b->report->n_cores, 1);
    }
    XP_TRY(predict(b, args->host->world ? 1 : args->n_ranks));
    XP_TRY(xp_bench_run_ranks(args->host, args->n_ranks, run_rank, b));
    b->report->peak_rss = xp_process_peak_rss();
    return XP_OK;
}

xp_status xp_bench_step(const xp_bench_step_args *args, xp_bench_step_report *report) {
    memset(report, 0, sizeof *report);
    report->n_cores = xp_train_n_cores();
    report->n_variants = args->n_variants;
    report->has_sgemm = !args->without_sgemm;
    bench b = {.args = args, .report = report};
    const xp_status status = prepare_and_run(&b);
    xp_cpu_blas_timer_destroy(b.sgemm);
    for (int v = 0; v < args->n_variants; v++)
        xp_train_shared_destroy(b.shared[v]);
    return status;
}
