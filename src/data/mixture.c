#include "data/mixture.h"

#include <math.h>
#include <stdlib.h>

/* Whole rows that add up to the period: rounded down, then one more for the largest remainders. */
static void share_out(const double *weights, int n, double sum, int32_t *quota) {
    int32_t given = 0;
    for (int i = 0; i < n; i++) {
        quota[i] = (int32_t)floor(weights[i] / sum * XP_MIXTURE_PERIOD);
        quota[i] += quota[i] == 0;
        given += quota[i];
    }
    while (given != XP_MIXTURE_PERIOD) {
        int32_t step = given < XP_MIXTURE_PERIOD ? 1 : -1;
        int best = -1;
        double most = 0;
        for (int i = 0; i < n; i++) {
            double missing = step * (weights[i] / sum * XP_MIXTURE_PERIOD - quota[i]);
            if (quota[i] + step >= 1 && (best < 0 || missing > most)) {
                best = i;
                most = missing;
            }
        }
        quota[best] += step;
        given += step;
    }
}

/* Each row goes to the source that lags behind its share most; of equals to the first. */
static void lay_out(xp_mixture *m) {
    int32_t credit[XP_MIXTURE_MAX_SOURCES] = {0}, done[XP_MIXTURE_MAX_SOURCES] = {0};
    for (int at = 0; at < XP_MIXTURE_PERIOD; at++) {
        int best = 0;
        for (int i = 0; i < m->n_sources; i++) {
            credit[i] += m->quota[i];
            if (credit[i] > credit[best])
                best = i;
        }
        credit[best] -= XP_MIXTURE_PERIOD;
        m->source[at] = (uint8_t)best;
        m->rank[at] = done[best]++;
    }
}

xp_status xp_mixture_create(const double *weights, int n, xp_mixture *mixture) {
    double sum = 0;
    if (n < 1 || n > XP_MIXTURE_MAX_SOURCES)
        return xp_error(XP_ECONFIG, "training.datasets has %d sources, at most %d are possible", n,
                        XP_MIXTURE_MAX_SOURCES);
    for (int i = 0; i < n; i++)
        sum += weights[i];
    for (int i = 0; i < n; i++)
        if (!(weights[i] > 0) || !isfinite(sum) || weights[i] / sum * XP_MIXTURE_PERIOD < 0.5)
            return xp_error(XP_ECONFIG,
                            "training.datasets: the weight %g of source %d of %d is a share of "
                            "%.2g; the smallest share is %g",
                            weights[i], i + 1, n, weights[i] / sum, 0.5 / XP_MIXTURE_PERIOD);
    xp_mixture made = {.n_sources = n,
                       .quota = calloc((size_t)n, sizeof *made.quota),
                       .source = malloc(XP_MIXTURE_PERIOD * sizeof *made.source),
                       .rank = malloc(XP_MIXTURE_PERIOD * sizeof *made.rank)};
    if (made.quota == NULL || made.source == NULL || made.rank == NULL) {
        xp_mixture_destroy(&made);
        return xp_error(XP_ENOMEM, "data: out of memory");
    }
    share_out(weights, n, sum, made.quota);
    lay_out(&made);
    *mixture = made;
    return XP_OK;
}

void xp_mixture_destroy(xp_mixture *mixture) {
    free(mixture->quota);
    free(mixture->source);
    free(mixture->rank);
    *mixture = (xp_mixture){0};
}

void xp_mixture_row(const xp_mixture *m, int64_t n, int *source, int64_t *row) {
    int64_t period = n / XP_MIXTURE_PERIOD, at = n % XP_MIXTURE_PERIOD;
    *source = m->source[at];
    *row = period * m->quota[*source] + m->rank[at];
}
