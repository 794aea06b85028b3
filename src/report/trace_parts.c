/* The time of a step by its parts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "report/trace_internal.h"

typedef struct list {
    xp_trace_interval *items; /* room for every span */
    int64_t n;
} list;

/* What runs beside the compute stream, and when the host did what is no part of a step. */
typedef struct beside {
    list exchange, communication, host;
} beside;

/* With whatever is fused into it. */
static xp_part part_of_grouped(const char *name) {
    return strstr(name, "wgrad")     ? XP_PART_EXPERT_WGRAD
           : strstr(name, "forward") ? XP_PART_EXPERT_FORWARD
                                     : XP_PART_EXPERT_DGRAD;
}

static xp_part part_of(const xp_trace_span *s) {
    static const struct {
        const char *start;
        xp_part part;
    } ops[] = {{"attention_forward", XP_PART_ATTENTION_FORWARD},
               {"attention_backward", XP_PART_ATTENTION_BACKWARD},
               {"silu_", XP_PART_ACTIVATION},
               {"rmsnorm_", XP_PART_NORMS},
               {"qknorm_", XP_PART_QK_NORM_ROPE},
               {"router_", XP_PART_ROUTER},
               {"histogram", XP_PART_ROUTER},
               {"plan", XP_PART_PLAN},
               {"cross_entropy", XP_PART_CROSS_ENTROPY},
               {"embed_", XP_PART_EMBEDDING},
               {"adamw", XP_PART_OPTIMIZER},
               {"sum_squares", XP_PART_OPTIMIZER},
               {"clip_scale", XP_PART_OPTIMIZER}};
    if (strcmp(s->name, "gemm") == 0)
        return s->layer < 0  ? XP_PART_HEAD
               : s->backward ? XP_PART_DENSE_BACKWARD
                             : XP_PART_DENSE_FORWARD;
    if (strncmp(s->name, "grouped_", 8) == 0)
        return part_of_grouped(s->name);
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        if (strncmp(s->name, ops[i].start, strlen(ops[i].start)) == 0)
            return ops[i].part;
    if (s->communicates)
        return s->exchanges ? XP_PART_EXCHANGE : XP_PART_COLLECTIVES;
    return XP_PART_OTHER;
}

/* ---- what runs beside ----------------------------------------------------------------------- */

static void note(list *l, const xp_trace_span *s) {
    l->items[l->n++] = (xp_trace_interval){s->begin, s->end, 0};
}

static void sort_and_merge(list *l) {
    qsort(l->items, (size_t)l->n, sizeof *l->items, xp_trace_by_layer_and_begin);
    l->n = xp_trace_merge(l->items, l->n);
}

static xp_status find_beside(const xp_trace_file *t, const xp_trace_row *rows, beside *b) {
    list *const lists[] = {&b->exchange, &b->communication, &b->host};
    for (int i = 0; i < 3; i++) {
        lists[i]->items = calloc((size_t)t->n, sizeof *lists[i]->items);
        if (!lists[i]->items)
            return xp_error(XP_ENOMEM, "no memory for the parts of a trace");
    }
    const xp_trace_row *row = rows;
    for (int64_t i = 0; i < t->n; i++) {
        const xp_trace_span *s = &t->spans[i];
        row += i > 0 && s->row != t->spans[i - 1].row;
        if (!xp_trace_is_ops_row(row->name)) {
            if (strcmp(s->name, "validation") == 0 || strcmp(s->name, "checkpoint") == 0)
                note(&b->host, s);
        } else if (!xp_trace_is_compute_row(row->name) && s->communicates) {
            note(&b->communication, s);
            if (s->exchanges)
                note(&b->exchange, s);
        }
    }
    for (int i = 0; i < 3; i++)
        sort_and_merge(lists[i]);
    return XP_OK;
}

static void release(beside *b) {
    free(b->exchange.items);
    free(b->communication.items);
    free(b->host.items);
}

static double covered(double begin, double end, const list *l) {
    return end > begin ? end - begin - xp_trace_outside(begin, end, l->items, l->n) : 0;
}

/* ---- the compute stream --------------------------------------------------------------------- */

static void add(const beside *b, xp_part part, double begin, double end, double *parts) {
    if (end <= begin)
        return;
    const double host = covered(begin, end, &b->host);
    parts[XP_PART_OUTSIDE] += host;
    parts[part] += end - begin - host;
}

static void add_gap(const beside *b, double begin, double end, double *parts) {
    if (end <= begin)
        return;
    const double host = covered(begin, end, &b->host), exchange = covered(begin, end, &b->exchange),
                 collectives = covered(begin, end, &b->communication) - exchange,
                 left = end - begin - host;
    parts[XP_PART_OUTSIDE] += host;
    parts[XP_PART_EXCHANGE] += fmin(left, exchange);
    parts[XP_PART_COLLECTIVES] += fmin(left - fmin(left, exchange), collectives);
    parts[XP_PART_GAPS] += fmax(0, left - exchange - collectives);
}

/* Every moment belongs to the op that began last and still runs. open: room for every span.
 * @return the end of the last op */
static double add_ops(const xp_trace_span *spans, int64_t n, const beside *b,
                      const xp_trace_span **open, double *parts) {
    double now = spans[0].begin;
    int64_t n_open = 0;
    for (int64_t i = 0; i <= n; i++) {
        const double next = i < n ? spans[i].begin : INFINITY;
        while (n_open > 0 && open[n_open - 1]->end <= next) {
            const xp_trace_span *s = open[--n_open];
            add(b, part_of(s), now, s->end, parts);
            now = fmax(now, s->end);
        }
        if (i == n)
            break;
        if (n_open > 0)
            add(b, part_of(open[n_open - 1]), now, next, parts);
        else
            add_gap(b, now, next, parts);
        now = fmax(now, next);
        open[n_open++] = &spans[i];
    }
    return now;
}

static void bounds(const xp_trace_file *t, double *first, double *last) {
    *first = INFINITY;
    *last = -INFINITY;
    for (int64_t i = 0; i < t->n; i++) {
        *first = fmin(*first, t->spans[i].begin);
        *last = fmax(*last, t->spans[i].end);
    }
}

static xp_status sum_compute(const xp_trace_file *t, int64_t from, int64_t to, const beside *b,
                             xp_trace_sums *sums) {
    double first, last;
    const xp_trace_span **open = calloc((size_t)(to - from), sizeof *open);
    if (!open)
        return xp_error(XP_ENOMEM, "no memory for the parts of a trace");
    bounds(t, &first, &last);
    const double end = add_ops(t->spans + from, to - from, b, open, sums->parts_us);
    add_gap(b, first, t->spans[from].begin, sums->edges_us);
    add_gap(b, end, last, sums->edges_us);
    free(open);
    return XP_OK;
}

xp_status xp_trace_sum_parts(const xp_trace_file *t, xp_trace_sums *sums) {
    beside b = {.host = {NULL, 0}};
    const xp_trace_row *row = sums->rows;
    xp_status status = find_beside(t, sums->rows, &b);
    for (int64_t from = 0, to = 0; status == XP_OK && from < t->n; from = to, row++) {
        while (to < t->n && t->spans[to].row == t->spans[from].row)
            to++;
        if (row->has_idle)
            status = sum_compute(t, from, to, &b, sums);
    }
    release(&b);
    return status;
}
