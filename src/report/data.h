/**
 * What the page draws, as JSON: runs with at most XP_REPORT_MAX_POINTS points each. A point is a
 * power of two of steps: their mean, and for values with spikes their smallest and largest too.
 */
#ifndef XP_REPORT_DATA_H
#define XP_REPORT_DATA_H

#include "core/text.h"
#include "report/run.h"

#define XP_REPORT_MAX_POINTS  4000
#define XP_REPORT_MAX_COLUMNS 400 /* of the heat map */

/** What the first table says of a run. NaN: no value. */
typedef struct xp_report_summary {
    double last_loss;                   /* mean of the last XP_REPORT_LAST steps */
    double validation, validation_step; /* the lowest, and where */
    double tps, mfu;                    /* medians over the steps, of one rank */
    double memory_gib;                  /* peak */
    double tokens, seconds;
    int64_t n_restarts, n_not_finite; /* steps whose loss is no number */
} xp_report_summary;
#define XP_REPORT_LAST 50
XP_NODISCARD xp_status xp_report_summarise(const xp_report_run *run, xp_report_summary *summary);

/** Steps of one point for n steps and at most max points: 1, 2, 4, ... */
int64_t xp_report_bucket(int64_t n, int64_t max);
/** Mean, smallest and largest of the finite values of [from, to); all NaN: none is. */
typedef struct xp_report_range {
    double mean, low, high;
} xp_report_range;
xp_report_range xp_report_range_of(const double *values, int64_t from, int64_t to);

/** All of `runs` as one JSON object, in which no '<', '>' or '&' stands: it can be put into HTML.
 * @param version  counts what --serve has sent. Check out->failed */
XP_NODISCARD xp_status xp_report_data(xp_report_run *const *runs, int n_runs, int64_t version,
                                      xp_text *out);

#endif
