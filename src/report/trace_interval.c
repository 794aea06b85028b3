/* Parts of a trace's time, and rows by their names. */
#include <math.h>
#include <string.h>
#include "report/trace_internal.h"

int xp_trace_by_layer_and_begin(const void *a, const void *b) {
    const xp_trace_interval *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

double xp_trace_outside(double begin, double end, const xp_trace_interval *busy, int64_t n_busy) {
    int64_t low = 0, high = n_busy;
    double left = end - begin;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (busy[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    for (int64_t i = low; i < n_busy && busy[i].begin < end; i++)
        left -= fmin(end, busy[i].end) - fmax(begin, busy[i].begin);
    return fmax(0, left);
}

int64_t xp_trace_merge(xp_trace_interval *intervals, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        xp_trace_interval *last = kept > 0 ? &intervals[kept - 1] : NULL;
        if (last && last->layer == intervals[i].layer && intervals[i].begin <= last->end)
            last->end = fmax(last->end, intervals[i].end);
        else
            intervals[kept++] = intervals[i];
    }
    return kept;
}

bool xp_trace_is_ops_row(const char *name) {
    return strncmp(name, "ops, ", 5) == 0;
}

bool xp_trace_is_compute_row(const char *name) {
    return strncmp(name, XP_TRACE_COMPUTE_ROW, strlen(XP_TRACE_COMPUTE_ROW)) == 0;
}
