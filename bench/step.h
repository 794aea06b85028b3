/**
 * Whole training steps beside the GEMM of the same machine: what the trainer does
 * (forward, backward, reduction, clip, AdamW) on random tokens with real routing, and between the
 * steps OpenBLAS's sgemm on the same cores.
 */
#ifndef XP_BENCH_STEP_H
#define XP_BENCH_STEP_H

#include "config/config.h"
#include "phases.h"
#include "ranks.h"
#include "samples.h"

#define XP_BENCH_SGEMM_N      1024
#define XP_BENCH_MAX_VARIANTS 4

typedef struct xp_bench_step_args {
    /** Configurations whose steps are measured in turns; xp_bench_step_prepare() made each ready.
     */
    int n_variants;
    xp_config_set *configs[XP_BENCH_MAX_VARIANTS];
    const xp_bench_host *host;
    int n_ranks; /* as xp_bench_host_n_ranks() says */
    int n_warmup, n_steps;
    bool without_sgemm;
    void (*progress)(void *context, int done, int total); /* of rank 0; may be NULL */
    void *context;
} xp_bench_step_args;

typedef struct xp_bench_step_result {
    char model[64], ops[64];
    int ep_size, n_threads; /* threads of a rank */
    int64_t tokens;         /* of a step, all ranks */
    double flops;           /* of a step as docs/explanation/numerics.md counts them, all ranks */
    int64_t n_params, n_active_params;
    xp_bench_samples step_s,
        ratio; /* ratio: step time / time of the same FLOPs at the sgemm rate around it */
    xp_bench_phase_total phases[XP_BENCH_N_PHASES]; /* of rank 0, mean of a step */
    double loss_first, loss_last;
} xp_bench_step_result;

typedef struct xp_bench_step_report {
    int n_ranks, n_cores, n_variants;
    bool has_sgemm;
    xp_bench_samples sgemm_s;
    xp_bench_step_result variants[XP_BENCH_MAX_VARIANTS];
    int64_t predicted_rss, peak_rss; /* of the process: all variants and ranks in it */
    bool on_gpus;
    /* On GPUs: what is reserved on the GPU with most, and what that GPU has. Else: resident, of all
     * ranks, and what the machine has. */
    int64_t memory_used, memory_total;
} xp_bench_step_report;

/** Random tokens instead of the configuration's data, no checkpoints, no validation; files go below
 * `folder`. */
XP_NODISCARD xp_status xp_bench_step_prepare(xp_config_set *config, const char *folder,
                                             int n_ranks);

/** @return XP_OK; the failure of the first rank. Only rank 0's process gets times */
XP_NODISCARD xp_status xp_bench_step(const xp_bench_step_args *args, xp_bench_step_report *report);

#endif
