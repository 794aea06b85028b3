/** A trace in memory: trace.c reads it and adds up its rows, trace_layers.c its layers. */
#ifndef XP_REPORT_TRACE_INTERNAL_H
#define XP_REPORT_TRACE_INTERNAL_H

#include <jansson.h>
#include "report/trace.h"

#define XP_TRACE_COMPUTE_ROW "ops, compute stream"

typedef struct xp_trace_span {
    const char *name; /* of the JSON */
    int64_t row;
    double begin, end;
    int layer; /* -1: none */
    bool backward, communicates, exchanges;
} xp_trace_span;

typedef struct xp_trace_file {
    json_t *root;
    xp_trace_span *spans; /* [n] by row, then by begin */
    int64_t n;
} xp_trace_file;

/* ---- trace_interval.c ---- */

typedef struct xp_trace_interval {
    double begin, end;
    int layer;
} xp_trace_interval;

/** For qsort(). */
int xp_trace_by_layer_and_begin(const void *a, const void *b);
/** Intervals of a layer that touch or overlap become one. Sorted. @return how many are left */
int64_t xp_trace_merge(xp_trace_interval *intervals, int64_t n);
/** What of [begin, end) no busy interval covers. busy: ascending, merged. */
double xp_trace_outside(double begin, double end, const xp_trace_interval *busy, int64_t n_busy);
/** "ops, compute stream": a stream's row. */
bool xp_trace_is_ops_row(const char *name);
bool xp_trace_is_compute_row(const char *name);

/** Fills sums->layers, all, and the exchange; sums->rows are there, in the order of the spans. */
XP_NODISCARD xp_status xp_trace_sum_layers(const xp_trace_file *t, xp_trace_sums *sums);
/** Fills sums->parts_us and edges_us; likewise. */
XP_NODISCARD xp_status xp_trace_sum_parts(const xp_trace_file *t, xp_trace_sums *sums);

#endif
