#include "report/trace.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"

#define MAX_TRACE_BYTES ((size_t)2 << 30)
#define MAX_LAYERS      4096
#define COMPUTE_ROW     "ops, compute stream"

typedef struct span {
    const char *name; /* of the JSON */
    int64_t row;
    double begin, end;
    int layer; /* -1: none */
    bool backward, communicates;
} span;

typedef struct trace {
    json_t *root;
    span *spans; /* [n] by row, then by begin */
    int64_t n;
} trace;

/* ---- reading ----------------------------------------------------------------------------- */

static xp_status wrong(const char *what, const json_t *event) {
    char *text = event ? json_dumps(event, JSON_COMPACT) : NULL;
    const xp_status status = xp_error(XP_EFORMAT, text ? "%s: %.120s" : "%s", what, text);
    free(text);
    return status;
}

/* The exchange of expert rows, and collectives. */
static bool is_communication(const char *name) {
    static const char *const starts[] = {"plan",       "dispatch",       "combine",
                                         "all-reduce", "reduce-scatter", "all-gather",
                                         "all-to-all", "broadcast",      "barrier"};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (strncmp(name, starts[i], strlen(starts[i])) == 0)
            return true;
    return false;
}

static xp_status read_span(const json_t *event, span *out) {
    const json_t *begin = json_object_get(event, "ts"), *length = json_object_get(event, "dur");
    const json_t *row = json_object_get(event, "tid"), *args = json_object_get(event, "args");
    const json_t *layer = json_object_get(args, "layer");
    const char *pass = json_string_value(json_object_get(args, "pass"));
    if (!json_is_number(begin) || !json_is_number(length))
        return wrong("an event without the numbers \"ts\" and \"dur\"", event);
    out->name = json_string_value(json_object_get(event, "name"));
    out->begin = json_number_value(begin);
    out->end = out->begin + json_number_value(length);
    if (!out->name || !json_is_integer(row) || json_number_value(length) < 0 || !isfinite(out->end))
        return wrong("an event without a name, a row or a length", event);
    out->row = json_integer_value(row);
    out->layer = json_is_integer(layer) && json_integer_value(layer) >= 0 &&
                         json_integer_value(layer) < MAX_LAYERS
                     ? (int)json_integer_value(layer)
                     : -1;
    out->backward = pass && strcmp(pass, "backward") == 0;
    out->communicates = is_communication(out->name);
    return XP_OK;
}

static bool has_phase(const json_t *event, const char *phase) {
    const char *value = json_string_value(json_object_get(event, "ph"));
    return value && strcmp(value, phase) == 0;
}

static int by_row_and_begin(const void *a, const void *b) {
    const span *x = a, *y = b;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static xp_status read_spans(trace *t) {
    const json_t *events = json_object_get(t->root, "traceEvents");
    const size_t n = json_array_size(events);
    if (!json_is_array(events))
        return wrong("no trace: it has no list of \"traceEvents\"", NULL);
    t->spans = calloc(n > 0 ? n : 1, sizeof *t->spans);
    if (!t->spans)
        return xp_error(XP_ENOMEM, "no memory for %zu events", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *event = json_array_get(events, i);
        if (!json_is_object(event))
            return wrong("an event that is no object", event);
        if (has_phase(event, "X"))
            XP_TRY(read_span(event, &t->spans[t->n++]));
    }
    if (t->n == 0)
        return wrong("a trace without events", NULL);
    qsort(t->spans, (size_t)t->n, sizeof *t->spans, by_row_and_begin);
    return XP_OK;
}

static xp_status load(const char *path, trace *t) {
    char *data = NULL;
    size_t n = 0;
    json_error_t error;
    XP_TRY(xp_file_read(path, MAX_TRACE_BYTES, &data, &n));
    t->root = json_loadb(data, n, 0, &error);
    free(data);
    if (!t->root)
        return xp_error(XP_EFORMAT, "%s: no JSON (line %d, column %d: %s)", path, error.line,
                        error.column, error.text);
    const xp_status status = read_spans(t);
    return status == XP_EFORMAT ? xp_error(XP_EFORMAT, "%s: %s", path, xp_last_error()) : status;
}

/* ---- rows -------------------------------------------------------------------------------- */

static int longest_first(const void *a, const void *b) {
    const xp_trace_op *x = a, *y = b;
    if (x->total_us != y->total_us)
        return x->total_us > y->total_us ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const span *const *)a)->name, (*(const span *const *)b)->name);
}

/* Calls and time of each name in the spans of one row. */
static xp_status sum_names(const span *spans, int64_t n, xp_trace_row *row) {
    const span **sorted = calloc((size_t)(n > 0 ? n : 1), sizeof *sorted);
    row->ops = calloc((size_t)(n > 0 ? n : 1), sizeof *row->ops);
    xp_status status = sorted && row->ops ? XP_OK : xp_error(XP_ENOMEM, "no memory for a table");
    for (int64_t i = 0; i < n && status == XP_OK; i++)
        sorted[i] = &spans[i];
    if (status == XP_OK)
        qsort(sorted, (size_t)n, sizeof *sorted, by_name);
    for (int64_t i = 0; i < n && status == XP_OK; i++) {
        if (i == 0 || strcmp(sorted[i]->name, sorted[i - 1]->name) != 0) {
            row->ops[row->n_ops].name = strdup(sorted[i]->name);
            if (!row->ops[row->n_ops++].name)
                status = xp_error(XP_ENOMEM, "no memory for a name");
        }
        row->ops[row->n_ops - 1].n_calls++;
        row->ops[row->n_ops - 1].total_us += sorted[i]->end - sorted[i]->begin;
    }
    free(sorted);
    if (status == XP_OK)
        qsort(row->ops, (size_t)row->n_ops, sizeof *row->ops, longest_first);
    return status;
}

/* Time in which at least one of the spans runs. */
static double covered(const span *spans, int64_t n) {
    double total = 0, until = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        total += fmax(0, spans[i].end - fmax(spans[i].begin, until));
        until = fmax(until, spans[i].end);
    }
    return total;
}

/* "ops, compute stream" of row 2; NULL: the file does not name it. */
static const char *row_name(const trace *t, int64_t row) {
    const json_t *events = json_object_get(t->root, "traceEvents");
    const json_t *event;
    size_t i;
    json_array_foreach(events, i, event) {
        const char *what = json_string_value(json_object_get(event, "name"));
        const json_t *id = json_object_get(event, "tid");
        if (has_phase(event, "M") && what && strcmp(what, "thread_name") == 0 &&
            json_is_integer(id) && json_integer_value(id) == row)
            return json_string_value(json_object_get(json_object_get(event, "args"), "name"));
    }
    return NULL;
}

static xp_status add_row(const trace *t, int64_t from, int64_t to, xp_trace_sums *sums) {
    xp_trace_row *grown = realloc(sums->rows, (size_t)(sums->n_rows + 1) * sizeof *grown);
    if (!grown)
        return xp_error(XP_ENOMEM, "no memory for a table");
    sums->rows = grown;
    xp_trace_row *row = &grown[sums->n_rows++];
    const char *name = row_name(t, t->spans[from].row);
    char numbered[40];
    snprintf(numbered, sizeof numbered, "row %lld", (long long)t->spans[from].row);
    *row = (xp_trace_row){.name = strdup(name ? name : numbered)};
    if (!row->name)
        return xp_error(XP_ENOMEM, "no memory for a name");
    row->has_idle = strcmp(row->name, COMPUTE_ROW) == 0;
    row->idle_us = fmax(0, sums->step_us - covered(t->spans + from, to - from));
    return sum_names(t->spans + from, to - from, row);
}

/* ---- layers ------------------------------------------------------------------------------ */

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
    return name && strncmp(name, "ops, ", 5) == 0;
}

static bool is_compute_row(const char *name) {
    return name && strncmp(name, COMPUTE_ROW, strlen(COMPUTE_ROW)) == 0;
}

typedef struct layer_work {
    interval *busy, *communication; /* room for every span */
    int64_t n_busy, n_communication;
    xp_trace_layer *layers; /* [n_layers]; the first is what is outside of layers */
    int n_layers;
} layer_work;

static void sort_ops(const trace *t, layer_work *w) {
    const char *name = NULL;
    for (int64_t i = 0; i < t->n; i++) {
        const span *s = &t->spans[i];
        name = i == 0 || s->row != t->spans[i - 1].row ? row_name(t, s->row) : name;
        if (!is_ops_row(name))
            continue;
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

static xp_status sum_layers(const trace *t, xp_trace_sums *sums) {
    int last = -1;
    for (int64_t i = 0; i < t->n; i++)
        last = t->spans[i].layer > last ? t->spans[i].layer : last;
    layer_work w = {.n_layers = last + 2};
    const size_t n = t->n > 0 ? (size_t)t->n : 1;
    w.busy = calloc(n, sizeof *w.busy);
    w.communication = calloc(n, sizeof *w.communication);
    w.layers = calloc((size_t)w.n_layers, sizeof *w.layers);
    xp_status status = XP_OK;
    if (!w.busy || !w.communication || !w.layers)
        status = xp_error(XP_ENOMEM, "no memory for the layers of a trace");
    if (status == XP_OK) {
        sort_ops(t, &w);
        add_communication(&w, &sums->all);
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
    free(w.communication);
    free(w.busy);
    return status;
}

/* ---- the whole --------------------------------------------------------------------------- */

static int64_t about(const trace *t, const char *key, int64_t otherwise) {
    const json_t *value = json_object_get(json_object_get(t->root, "otherData"), key);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static xp_status sum_up(const trace *t, xp_trace_sums *sums) {
    double first = INFINITY, last = -INFINITY;
    *sums = (xp_trace_sums){.step = about(t, "step", -1),
                            .rank = about(t, "rank", -1),
                            .n_left_out = about(t, "events_left_out", 0)};
    for (int64_t i = 0; i < t->n; i++) {
        first = fmin(first, t->spans[i].begin);
        last = fmax(last, t->spans[i].end);
    }
    sums->step_us = last - first;
    for (int64_t from = 0, to = 0; from < t->n; from = to) {
        while (to < t->n && t->spans[to].row == t->spans[from].row)
            to++;
        XP_TRY(add_row(t, from, to, sums));
    }
    return sum_layers(t, sums);
}

xp_status xp_trace_sums_read(const char *path, xp_trace_sums *sums) {
    trace t = {0};
    xp_trace_sums made = {0};
    xp_status status = load(path, &t);
    if (status == XP_OK)
        status = sum_up(&t, &made);
    json_decref(t.root);
    free(t.spans);
    if (status == XP_OK)
        *sums = made;
    else
        xp_trace_sums_free(&made);
    return status;
}

void xp_trace_sums_free(xp_trace_sums *sums) {
    for (int i = 0; i < sums->n_rows; i++) {
        for (int k = 0; k < sums->rows[i].n_ops; k++)
            free(sums->rows[i].ops[k].name);
        free(sums->rows[i].ops);
        free(sums->rows[i].name);
    }
    free(sums->rows);
    free(sums->layers);
    *sums = (xp_trace_sums){0};
}
