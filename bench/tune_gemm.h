/** The other search of `expar tune`: which of the library's algorithms serves each dense GEMM of a step best. */
#ifndef XP_BENCH_TUNE_GEMM_H
#define XP_BENCH_TUNE_GEMM_H

#include "config/config.h"
#include "ops/gemm_choice.h"
#include "ranks.h"

/** Of rank 0's GPU. */
typedef struct xp_tune_gemms {
    int n; /* 0: ranks share a GPU, nothing was timed */
    xp_gemm_choice
        shapes[XP_GEMM_CHOICES_MAX]; /* of one step; index 0: the library's own choice stays */
    double seconds;
} xp_tune_gemms;

/**
 * One training step in which every GEMM shape is timed when it comes first. Collective over the host's ranks.
 * @param config  of xp_bench_step_prepare(); its device must be a GPU
 * @return XP_OK; XP_ENOMEM; XP_ECOMM
 */
XP_NODISCARD xp_status xp_tune_gemms_run(const xp_config_set *config, const xp_bench_host *host,
                                         int n_ranks, xp_tune_gemms *found);

#endif
