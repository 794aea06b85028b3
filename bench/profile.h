/** A hardware description of this machine, measured: for `expar plan --gpu FILE`. */
#ifndef XP_BENCH_PROFILE_H
#define XP_BENCH_PROFILE_H

#include "predict/step_time.h"
#include "step.h"

typedef struct xp_bench_profile {
    xp_hardware
        hardware;      /* complete: what cannot be measured is the description's it started from */
    char machine[128]; /* what was measured, for people */
    double step_s;     /* the median step, and what the description it started from gave for it */
    double planned_s;
} xp_bench_profile;

/**
 * Measure: on the CPU the GEMM rate, the copy rate, and whole steps of a mid-size model by phase; on a GPU the
 * memory that the driver reports, a large GEMM, a copy, and whole steps of layers of 30B-A3B.
 * @param on_gpu   the first GPU; else the CPU
 * @param n_steps  measured steps
 * @param like     the description for what cannot be measured; NULL: the GPU's own, or "cpu"
 */
XP_NODISCARD xp_status xp_bench_profile_measure(bool on_gpu, int n_steps, const char *like,
                                                xp_bench_profile *profile);

/** The steps of a report scale the shares of `base`, which stand in `hardware` before: apart from measuring, for
 * tests. `planned` is what `base` gives for the same step. */
void xp_bench_profile_scale(const xp_bench_step_report *report, const xp_step_prediction *planned,
                            xp_hardware *hardware);

#endif
