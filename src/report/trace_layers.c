/* The layers of a trace, and how much of their communication is exposed. */
#include <stdlib.h>
#include <string.h>
#include "report/trace_internal.h"

typedef struct layer_work {
    xp_trace_interval *busy, *communication; /* room for every span */
    xp_trace_interval *exchange[2];          /* likewise; forward, backward */
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
        if (!xp_trace_is_ops_row(name))
            continue;
        if (s->exchanges)
            w->exchange[s->backward][w->n_exchange[s->backward]++] =
                (xp_trace_interval){s->begin, s->end, 0};
        if (s->communicates)
            w->communication[w->n_communication++] =
                (xp_trace_interval){s->begin, s->end, s->layer};
        else if (xp_trace_is_compute_row(name))
            w->busy[w->n_busy++] = (xp_trace_interval){s->begin, s->end, 0};
        if (xp_trace_is_compute_row(name) && s->layer >= 0)
            *(s->backward ? &w->layers[s->layer + 1].backward_us
                          : &w->layers[s->layer + 1].forward_us) += s->end - s->begin;
    }
    qsort(w->busy, (size_t)w->n_busy, sizeof *w->busy, xp_trace_by_layer_and_begin);
    w->n_busy = xp_trace_merge(w->busy, w->n_busy);
}

static void add_communication(layer_work *w, xp_trace_layer *all) {
    qsort(w->communication, (size_t)w->n_communication, sizeof *w->communication,
          xp_trace_by_layer_and_begin);
    w->n_communication = xp_trace_merge(w->communication, w->n_communication);
    for (int64_t i = 0; i < w->n_communication; i++) {
        const xp_trace_interval *c = &w->communication[i];
        w->layers[c->layer + 1].communication_us += c->end - c->begin;
        w->layers[c->layer + 1].exposed_us +=
            xp_trace_outside(c->begin, c->end, w->busy, w->n_busy);
    }
    for (int64_t i = 0; i < w->n_communication; i++)
        w->communication[i].layer = 0;
    qsort(w->communication, (size_t)w->n_communication, sizeof *w->communication,
          xp_trace_by_layer_and_begin);
    w->n_communication = xp_trace_merge(w->communication, w->n_communication);
    for (int64_t i = 0; i < w->n_communication; i++) {
        const xp_trace_interval *c = &w->communication[i];
        all->communication_us += c->end - c->begin;
        all->exposed_us += xp_trace_outside(c->begin, c->end, w->busy, w->n_busy);
    }
}

/* Exchanges of several streams that run at the same time count once. */
static void add_exchange(layer_work *w, xp_trace_sums *sums) {
    for (int pass = 0; pass < 2; pass++) {
        qsort(w->exchange[pass], (size_t)w->n_exchange[pass], sizeof *w->exchange[pass],
              xp_trace_by_layer_and_begin);
        const int64_t n = xp_trace_merge(w->exchange[pass], w->n_exchange[pass]);
        for (int64_t i = 0; i < n; i++) {
            const xp_trace_interval *e = &w->exchange[pass][i];
            sums->exchange[pass].us += e->end - e->begin;
            sums->exchange[pass].exposed_us +=
                xp_trace_outside(e->begin, e->end, w->busy, w->n_busy);
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
