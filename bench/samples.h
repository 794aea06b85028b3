/** Repeated measurements of one thing. */
#ifndef XP_BENCH_SAMPLES_H
#define XP_BENCH_SAMPLES_H

#include <stdbool.h>

#define XP_BENCH_MAX_SAMPLES 512

typedef struct xp_bench_samples {
    int n;
    double values[XP_BENCH_MAX_SAMPLES];
} xp_bench_samples;

/** Past the last place nothing is added. */
void xp_bench_samples_add(xp_bench_samples *samples, double value);
/** 0 without samples. */
double xp_bench_samples_median(const xp_bench_samples *samples);
double xp_bench_samples_mean(const xp_bench_samples *samples);
double xp_bench_samples_min(const xp_bench_samples *samples);
/** Quantile q in [0, 1], the nearest sample. */
double xp_bench_samples_quantile(const xp_bench_samples *samples, double q);

/** 95 % bounds of the median, from the order of the samples. @return false: fewer than 8 samples */
bool xp_bench_samples_median_bounds(const xp_bench_samples *samples, double *low, double *high);

#endif
