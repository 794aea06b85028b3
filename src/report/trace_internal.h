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

/** Fills sums->layers, all, and the exchange; sums->rows are there, in the order of the spans. */
XP_NODISCARD xp_status xp_trace_sum_layers(const xp_trace_file *t, xp_trace_sums *sums);

#endif
