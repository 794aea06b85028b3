/**
 * The other search of `expar tune`: which of the library's algorithms serves each dense GEMM of a step best, and whether
 * a whole step is faster with them. A GEMM that is timed alone does not meet the GPU's power limit; a step does.
 */
#ifndef XP_BENCH_TUNE_GEMM_H
#define XP_BENCH_TUNE_GEMM_H

#include "ops/gemm_choice.h"
#include "tune.h"

/** Of rank 0's GPU. */
typedef struct xp_tune_gemms {
    int n; /* 0: ranks share a GPU, nothing was timed */
    xp_gemm_choice
        shapes[XP_GEMM_CHOICES_MAX]; /* of one step; index 0: the library's own choice stays */
    xp_tune_verdict verdict;         /* of training steps with all of them */
    xp_tune_pair pair;               /* a step with the defaults, and with all of them */
    double seconds;
} xp_tune_gemms;

/** Shapes for which another algorithm than the library's first was faster alone. */
int xp_tune_gemms_n_other(const xp_tune_gemms *gemms);
/** Whether the algorithms are worth a [gemm] section: steps are faster with them, beyond the noise. */
bool xp_tune_gemms_won(const xp_tune_gemms *gemms);

typedef struct xp_tune_gemms_args {
    const xp_config_set *config; /* of xp_bench_step_prepare(); its device must be a GPU */
    const xp_bench_host *host;
    int n_ranks;
    double seconds; /* at most, for the steps in turns */
    void (*progress)(void *context, const char *what, double done,
                     double total); /* rank 0; or NULL */
    void *context;
} xp_tune_gemms_args;

/**
 * One training step in which every GEMM shape is timed when it comes first; then steps in turns with the library's own
 * choices. Collective over the host's ranks.
 * @return XP_OK; XP_ENOMEM; XP_ECOMM
 */
XP_NODISCARD xp_status xp_tune_gemms_run(const xp_tune_gemms_args *args, xp_tune_gemms *found);

/** Turns of two variants of one thing. */
typedef struct xp_tune_turns {
    /* Variant 0 (the defaults) or 1 for a while. @param[out] step_s  of one step; spent_s: of the whole call. The same
     * on every rank. */
    xp_status (*turn)(void *context, int variant, double *step_s, double *spent_s);
    void *context;
    double seconds; /* no pair is begun after so long; fewer when the ratio is known */
    void (*progress)(void *context, double spent_s);
} xp_tune_turns;

/** Pairs of turns, the first of a pair in turns too. @return XP_OK; XP_ENOMEM; the turn's failure */
XP_NODISCARD xp_status xp_tune_take_turns(const xp_tune_turns *turns, xp_tune_pair *pair,
                                          xp_tune_verdict *verdict);

#endif
