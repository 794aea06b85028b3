#include "report/trace_internal.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"

#define MAX_TRACE_BYTES ((size_t)2 << 30)
#define MAX_LAYERS      4096
#define MAX_RANKS       (1 << 20)

/* ---- reading ----------------------------------------------------------------------------- */

static xp_status wrong(const char *what, const json_t *event) {
    char *text = event ? json_dumps(event, JSON_COMPACT) : NULL;
    const xp_status status = xp_error(XP_EFORMAT, text ? "%s: %.120s" : "%s", what, text);
    free(text);
    return status;
}

static bool starts_with_any(const char *name, const char *const *starts) {
    for (; *starts; starts++)
        if (strncmp(name, *starts, strlen(*starts)) == 0)
            return true;
    return false;
}

static bool is_exchange(const char *name) {
    static const char *const starts[] = {"plan", "dispatch", "combine", NULL};
    return starts_with_any(name, starts);
}

static bool is_collective(const char *name) {
    static const char *const starts[] = {"all-reduce", "reduce-scatter", "all-gather", "all-to-all",
                                         "broadcast",  "barrier",        NULL};
    return starts_with_any(name, starts);
}

static xp_status read_span(const json_t *event, xp_trace_span *out) {
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
    out->exchanges = is_exchange(out->name);
    out->communicates = out->exchanges || is_collective(out->name);
    /* It may be queued while the layer above is still the one that is timed. */
    out->backward |= out->exchanges && strstr(out->name, " backward") != NULL;
    return XP_OK;
}

static bool has_phase(const json_t *event, const char *phase) {
    const char *value = json_string_value(json_object_get(event, "ph"));
    return value && strcmp(value, phase) == 0;
}

static int by_row_and_begin(const void *a, const void *b) {
    const xp_trace_span *x = a, *y = b;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static xp_status read_spans(xp_trace_file *t) {
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

static xp_status load(const char *path, xp_trace_file *t) {
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
    return strcmp((*(const xp_trace_span *const *)a)->name,
                  (*(const xp_trace_span *const *)b)->name);
}

/* Calls and time of each name in the spans of one row. */
static xp_status sum_names(const xp_trace_span *spans, int64_t n, xp_trace_row *row) {
    const xp_trace_span **sorted = calloc((size_t)(n > 0 ? n : 1), sizeof *sorted);
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
static double covered(const xp_trace_span *spans, int64_t n) {
    double total = 0, until = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        total += fmax(0, spans[i].end - fmax(spans[i].begin, until));
        until = fmax(until, spans[i].end);
    }
    return total;
}

/* "ops, compute stream" of row 2; NULL: the file does not name it. */
static const char *row_name(const xp_trace_file *t, int64_t row) {
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

static xp_status add_row(const xp_trace_file *t, int64_t from, int64_t to, xp_trace_sums *sums) {
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
    row->has_idle = strcmp(row->name, XP_TRACE_COMPUTE_ROW) == 0;
    row->idle_us = fmax(0, sums->step_us - covered(t->spans + from, to - from));
    return sum_names(t->spans + from, to - from, row);
}

/* ---- the whole --------------------------------------------------------------------------- */

static int64_t about(const xp_trace_file *t, const char *key, int64_t otherwise) {
    const json_t *value = json_object_get(json_object_get(t->root, "otherData"), key);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static xp_status copy_text(const json_t *object, const char *key, char **out) {
    const char *text = json_string_value(json_object_get(object, key));
    *out = text ? strdup(text) : NULL;
    return text && !*out ? xp_error(XP_ENOMEM, "no memory for a trace's \"%s\"", key) : XP_OK;
}

static xp_status read_run(const xp_trace_file *t, xp_trace_run *run) {
    const json_t *other = json_object_get(t->root, "otherData");
    const int64_t n_ranks = about(t, "ranks", 0), n_nodes = about(t, "nodes", 0);
    const double step_us = json_number_value(json_object_get(other, "step_us"));
    run->n_ranks = n_ranks > 0 && n_ranks <= MAX_RANKS ? (int)n_ranks : 0;
    run->n_nodes = n_nodes > 0 && n_nodes <= n_ranks ? (int)n_nodes : 0;
    run->step_us = step_us > 0 && isfinite(step_us) ? step_us : 0;
    XP_TRY(copy_text(other, "config", &run->config));
    return copy_text(other, "device", &run->device);
}

static xp_status sum_up(const xp_trace_file *t, xp_trace_sums *sums) {
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
    XP_TRY(xp_trace_sum_layers(t, sums));
    XP_TRY(xp_trace_sum_parts(t, sums));
    return read_run(t, &sums->run);
}

xp_status xp_trace_sums_read(const char *path, xp_trace_sums *sums) {
    xp_trace_file t = {0};
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
    free(sums->run.config);
    free(sums->run.device);
    *sums = (xp_trace_sums){0};
}
