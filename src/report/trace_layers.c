/* The layers of a trace, and how much of their communication is exposed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "report/trace_internal.h"

typedef struct interval {
    double begin, end;
    int layer;
} interval;

static int by_layer_and_begin(const void *a, const void *b) {
    const interval *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* What of [begin, end) no busy interval covers. busy: ascending. */
static double outside(double begin, double end, const interval *busy, int64_t n_busy) {
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

/* Intervals that touch or overlap become one. @return how many are left */
static int64_t merge(interval *intervals, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        interval *last = kept > 0 ? &intervals[kept - 1] : NULL;
        if (last && last->layer == intervals[i].layer && intervals[i].begin <= last->end)
            last->end = fmax(last->end, intervals[i].end);
        else
            intervals[kept++] = intervals[i];
    }
    return kept;
}

static bool is_ops_row(const char *name) {
    return strncmp(name, "ops, ", 5) == 0;
}

static bool is_compute_row(const char *name) {
    return strncmp(name, XP_TRACE_COMPUTE_ROW, strlen(XP_TRACE_COMPUTE_ROW)) == 0;
}

typedef struct layer_work {
    interval *busy, *communication; /* room for every span */
    interval *exchange[2];          /* likewise; forward, backward */
    int64_t n_busy, n_communication, n_exchange[2];
    xp_trace_layer *layers; /* [n_layers]; the first is what is outside of layers */
    int n_layers;
} layer_work;

static void sort_ops(const xp_trace_file *t, const xp_trace_row *rows, layer_work *w) {
    const xp_trace_row *row = rows;
    for (int64_t i = 0; i < t->n; i++) {
        const xp_trace_span *s = &t->spans[i];
        row += i > 0 && s->row != t->spans[i - 1].row;
        const char *name = row->name;
        if (!is_ops_row(name))
            continue;
        if (s->exchanges)
            w->exchange[s->backward][w->n_exchange[s->backward]++] =
                (interval){s->begin, s->end, 0};
        if (s->communicates)
            w->communication[w->n_communication++] = (interval){s->begin, s->end, s->layer};
        else if (is_compute_row(name))
            w->busy[w->n_busy++] = (interval){s->begin, s->end, 0};
        if (is_compute_row(name) && s->layer >= 0)
            *(s->backward ? &w->layers[s->layer + 1].backward_us
                          : &w->layers[s->layer + 1].forward_us) += s->end - s->begin;
    }
    qsort(w->busy, (size_t)w->n_busy, sizeof *w->busy, by_layer_and_begin);
    w->n_busy = merge(w->busy, w->n_busy);
}

static void add_communication(layer_work *w, xp_trace_layer *all) {
    qsort(w->communication, (size_t)w->n_communication, sizeof *w->communication,
          by_layer_and_begin);
    w->n_communication = merge(w->communication, w->n_communication);
    for (int64_t i = 0; i < w->n_communication; i++) {
        const interval *c = &w->communication[i];
        w->layers[c->layer + 1].communication_us += c->end - c->begin;
        w->layers[c->layer + 1].exposed_us += outside(c->begin, c->end, w->busy, w->n_busy);
    }
    for (int64_t i = 0; i < w->n_communication; i++)
        w->communication[i].layer = 0;
    qsort(w->communication, (size_t)w->n_communication, sizeof *w->communication,
          by_layer_and_begin);
    w->n_communication = merge(w->communication, w->n_communication);
    for (int64_t i = 0; i < w->n_communication; i++) {
        const interval *c = &w->communication[i];
        all->communication_us += c->end - c->begin;
        all->exposed_us += outside(c->begin, c->end, w->busy, w->n_busy);
    }
}

/* Exchanges of several streams that run at the same time count once. */
static void add_exchange(layer_work *w, xp_trace_sums *sums) {
    for (int pass = 0; pass < 2; pass++) {
        qsort(w->exchange[pass], (size_t)w->n_exchange[pass], sizeof *w->exchange[pass],
              by_layer_and_begin);
        const int64_t n = merge(w->exchange[pass], w->n_exchange[pass]);
        for (int64_t i = 0; i < n; i++) {
            const interval *e = &w->exchange[pass][i];
            sums->exchange[pass].us += e->end - e->begin;
            sums->exchange[pass].exposed_us += outside(e->begin, e->end, w->busy, w->n_busy);
        }
    }
}

static xp_status reserve(layer_work *w, int64_t n_spans) {
    const size_t n = n_spans > 0 ? (size_t)n_spans : 1;
    w->busy = calloc(n, sizeof *w->busy);
    w->communication = calloc(n, sizeof *w->communication);
    for (int pass = 0; pass < 2; pass++)
        w->exchange[pass] = calloc(n, sizeof *w->exchange[pass]);
    w->layers = calloc((size_t)w->n_layers, sizeof *w->layers);
    return w->busy && w->communication && w->exchange[0] && w->exchange[1] && w->layers
               ? XP_OK
               : xp_error(XP_ENOMEM, "no memory for the layers of a trace");
}

xp_status xp_trace_sum_layers(const xp_trace_file *t, xp_trace_sums *sums) {
    int last = -1;
    for (int64_t i = 0; i < t->n; i++)
        last = t->spans[i].layer > last ? t->spans[i].layer : last;
    layer_work w = {.n_layers = last + 2};
    const xp_status status = reserve(&w, t->n);
    if (status == XP_OK) {
        sort_ops(t, sums->rows, &w);
        add_communication(&w, &sums->all);
        add_exchange(&w, sums);
        for (int i = 0; i < w.n_layers; i++) {
            w.layers[i].layer = i - 1;
            sums->all.forward_us += w.layers[i].forward_us;
            sums->all.backward_us += w.layers[i].backward_us;
            if (last >= 0 && (i > 0 || w.layers[0].communication_us > 0))
                w.layers[sums->n_layers++] = w.layers[i];
        }
        sums->layers = w.layers;
        w.layers = NULL;
    }
    free(w.layers);
    for (int pass = 0; pass < 2; pass++)
        free(w.exchange[pass]);
    free(w.communication);
    free(w.busy);
    return status;
}
