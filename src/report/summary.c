/* What is said of a whole run, and of parts of it. */
#include <math.h>
#include <stdlib.h>
#include "report/data.h"

int64_t xp_report_bucket(int64_t n, int64_t max) {
    int64_t bucket = 1;
    while ((n + bucket - 1) / bucket > max)
        bucket *= 2;
    return bucket;
}

xp_report_range xp_report_range_of(const double *values, int64_t from, int64_t to) {
    xp_report_range range = {NAN, NAN, NAN};
    double sum = 0;
    int64_t n = 0;
    for (int64_t i = from; i < to; i++) {
        if (!isfinite(values[i]))
            continue;
        sum += values[i];
        n++;
        range.low = fmin(range.low, values[i]); /* of a number and NaN: the number */
        range.high = fmax(range.high, values[i]);
    }
    if (n > 0)
        range.mean = sum / (double)n;
    return range;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static xp_status median(const double *values, int64_t n, double *out) {
    double *sorted = malloc((size_t)(n > 0 ? n : 1) * sizeof *sorted);
    int64_t kept = 0;
    if (!sorted)
        return xp_error(XP_ENOMEM, "no memory for %lld numbers", (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (isfinite(values[i]))
            sorted[kept++] = values[i];
    qsort(sorted, (size_t)kept, sizeof *sorted, compare);
    *out = kept > 0 ? sorted[kept / 2] : NAN;
    free(sorted);
    return XP_OK;
}

xp_status xp_report_summarise(const xp_report_run *run, xp_report_summary *summary) {
    double *const *c = run->columns;
    const int64_t n = run->n_steps;
    xp_report_summary s = {.validation = NAN, .validation_step = NAN};
    XP_TRY(median(c[XP_COLUMN_TPS], n, &s.tps));
    XP_TRY(median(c[XP_COLUMN_MFU], n, &s.mfu));
    s.last_loss =
        xp_report_range_of(c[XP_COLUMN_LOSS], n > XP_REPORT_LAST ? n - XP_REPORT_LAST : 0, n).mean;
    s.memory_gib = xp_report_range_of(c[XP_COLUMN_MEMORY_GIB], 0, n).high;
    s.tokens = xp_report_range_of(c[XP_COLUMN_TOKENS], 0, n).high;
    s.seconds = n > 0 ? c[XP_COLUMN_ELAPSED][n - 1] : 0;
    for (int64_t i = 0; i < n; i++) {
        const double validation = c[XP_COLUMN_VALIDATION_LOSS][i];
        s.n_not_finite += !isfinite(c[XP_COLUMN_LOSS][i]);
        s.n_restarts += c[XP_COLUMN_RESUMED][i] > 0;
        if (isfinite(validation) && !(validation >= s.validation)) {
            s.validation = validation;
            s.validation_step = c[XP_COLUMN_STEP][i];
        }
    }
    *summary = s;
    return XP_OK;
}
