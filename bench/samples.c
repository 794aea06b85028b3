#include "samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void xp_bench_samples_add(xp_bench_samples *samples, double value) {
    if (samples->n < XP_BENCH_MAX_SAMPLES)
        samples->values[samples->n++] = value;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double xp_bench_samples_quantile(const xp_bench_samples *samples, double q) {
    double sorted[XP_BENCH_MAX_SAMPLES];
    if (samples->n == 0)
        return 0;
    memcpy(sorted, samples->values, (size_t)samples->n * sizeof *sorted);
    qsort(sorted, (size_t)samples->n, sizeof *sorted, ascending);
    return sorted[(int)(q * (samples->n - 1) + 0.5)];
}

double xp_bench_samples_mean(const xp_bench_samples *samples) {
    double sum = 0;
    for (int i = 0; i < samples->n; i++)
        sum += samples->values[i];
    return samples->n > 0 ? sum / samples->n : 0;
}

double xp_bench_samples_median(const xp_bench_samples *samples) {
    return xp_bench_samples_quantile(samples, 0.5);
}

double xp_bench_samples_min(const xp_bench_samples *samples) {
    return xp_bench_samples_quantile(samples, 0);
}

/* Of n samples the number below the median is binomial (n, 1/2): n / 2 +- 1.96 sqrt(n) / 2. */
bool xp_bench_samples_median_bounds(const xp_bench_samples *samples, double *low, double *high) {
    const int n = samples->n;
    *low = *high = xp_bench_samples_median(samples);
    if (n < 8)
        return false;
    int first = (int)floor(((double)n - 1.96 * sqrt((double)n)) / 2);
    first = first < 0 ? 0 : first;
    *low = xp_bench_samples_quantile(samples, (double)first / (n - 1));
    *high = xp_bench_samples_quantile(samples, (double)(n - 1 - first) / (n - 1));
    return true;
}
