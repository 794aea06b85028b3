#include "train/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"
#include "device/recorder.h"

/* Rows of the picture; one for each stream begins at ROW_OPS. */
enum { ROW_PHASES, ROW_LAYERS, ROW_OPS };

typedef struct event {
    const char *name;
    double began_s, ended_s;
    int row;
    int layer;            /* -1: none */
    bool is_op, backward; /* of an op: its layer's pass */
} event;

struct xp_trace {
    xp_recorder *recorder;
    char *folder;
    int rank;
    int64_t every, step;
    double began_s, layer_began_s, took_s;
    xp_trace_run_info info; /* owned; config NULL: not described */
    bool active;
    event *events; /* [XP_TRACE_MAX_EVENTS] phases and layers */
    int64_t n_events, n_lost;
};

static void add(xp_trace *trace, event e) {
    if (trace->n_events < XP_TRACE_MAX_EVENTS)
        trace->events[trace->n_events++] = e;
    else
        trace->n_lost++;
}

xp_status xp_trace_create(xp_device *device, const char *folder, int rank, int64_t every,
                          xp_trace **trace) {
    xp_trace *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "no memory for profiling");
    made->rank = rank;
    made->every = every;
    made->folder = strdup(folder);
    made->events = calloc(XP_TRACE_MAX_EVENTS, sizeof *made->events);
    xp_status status =
        made->folder && made->events
            ? xp_recorder_create(device, XP_TRACE_MAX_OPS, &made->recorder)
            : xp_error(XP_ENOMEM, "no memory for the %d events of a trace", XP_TRACE_MAX_EVENTS);
    if (status != XP_OK) {
        xp_trace_destroy(made);
        return status;
    }
    *trace = made;
    return XP_OK;
}

void xp_trace_destroy(xp_trace *trace) {
    if (!trace)
        return;
    xp_recorder_destroy(trace->recorder);
    free(trace->events);
    free(trace->folder);
    free((char *)trace->info.config);
    free((char *)trace->info.device);
    free(trace);
}

xp_status xp_trace_describe(xp_trace *trace, const xp_trace_run_info *info) {
    if (!trace)
        return XP_OK;
    char *config = strdup(info->config), *device = strdup(info->device);
    if (!config || !device) {
        free(config);
        free(device);
        return xp_error(XP_ENOMEM, "no memory for profiling");
    }
    free((char *)trace->info.config);
    free((char *)trace->info.device);
    trace->info = *info;
    trace->info.config = config;
    trace->info.device = device;
    return XP_OK;
}

xp_status xp_trace_begin(xp_trace *trace, int64_t step) {
    if (!trace || step % trace->every != 0)
        return XP_OK;
    trace->step = step;
    trace->n_events = 0;
    trace->n_lost = 0;
    trace->took_s = 0;
    trace->began_s = xp_time_s();
    XP_TRY(xp_recorder_start(trace->recorder));
    trace->active = true;
    return XP_OK;
}

void xp_trace_phase(xp_trace *trace, const char *name, double began_s, double ended_s) {
    if (trace && trace->active)
        add(trace, (event){name, began_s, ended_s, ROW_PHASES, -1, false, false});
}

void xp_trace_layer_begins(xp_trace *trace, int layer, bool backward) {
    if (!trace || !trace->active)
        return;
    trace->layer_began_s = xp_time_s();
    xp_recorder_set_tag(trace->recorder, 2 * layer + backward);
}

void xp_trace_layer_ends(xp_trace *trace, int layer, bool backward) {
    if (!trace || !trace->active)
        return;
    xp_recorder_set_tag(trace->recorder, XP_RECORDER_NO_TAG);
    add(trace, (event){backward ? "backward" : "forward", trace->layer_began_s, xp_time_s(),
                       ROW_LAYERS, layer, false, backward});
}

void xp_trace_took(xp_trace *trace, double seconds) {
    if (trace)
        trace->took_s = seconds;
}

/* ---- the file ---------------------------------------------------------------------------- */

static void put_row_name(const xp_trace *trace, int row, const char *name, xp_text *text) {
    xp_text_printf(text,
                   ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,"
                   "\"args\":{\"name\":\"%s\"}}",
                   trace->rank, row, name);
}

static void put_run(const xp_trace *trace, xp_text *text) {
    const xp_trace_run_info *info = &trace->info;
    if (trace->took_s > 0)
        xp_text_printf(text, ",\"step_us\":%.3f", trace->took_s * 1e6);
    if (!info->config)
        return;
    xp_text_printf(text, ",\"ranks\":%d,\"nodes\":%d,\"device\":", info->n_ranks, info->n_nodes);
    xp_text_add_json(text, info->device, strlen(info->device));
    xp_text_puts(text, ",\"config\":");
    xp_text_add_json(text, info->config, strlen(info->config));
}

static void put_header(const xp_trace *trace, const xp_recording *ops, xp_text *text) {
    xp_text_printf(text,
                   "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"step\":%lld,\"rank\":%d,"
                   "\"events_left_out\":%lld",
                   (long long)trace->step, trace->rank, (long long)(trace->n_lost + ops->n_lost));
    put_run(trace, text);
    xp_text_printf(text,
                   "},\"traceEvents\":[\n"
                   "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,"
                   "\"args\":{\"name\":\"rank %d\"}}",
                   trace->rank, trace->rank);
    put_row_name(trace, ROW_PHASES, "step", text);
    put_row_name(trace, ROW_LAYERS, "layers", text);
    for (int i = 0; i < ops->n_rows; i++) {
        char name[64];
        snprintf(name, sizeof name, "ops, %s", ops->rows[i]);
        put_row_name(trace, ROW_OPS + i, name, text);
    }
}

static void put_event(const xp_trace *trace, const event *e, xp_text *text) {
    char name[64];
    if (e->layer >= 0 && !e->is_op)
        snprintf(name, sizeof name, "layer %d %s", e->layer, e->name);
    else
        snprintf(name, sizeof name, "%s", e->name);
    xp_text_puts(text, ",\n{\"name\":");
    xp_text_add_json(text, name, strlen(name));
    xp_text_printf(text, ",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%d,\"tid\":%d",
                   (e->began_s - trace->began_s) * 1e6, (e->ended_s - e->began_s) * 1e6,
                   trace->rank, e->row);
    if (e->layer >= 0 && e->is_op)
        xp_text_printf(text, ",\"args\":{\"layer\":%d,\"pass\":\"%s\"}", e->layer,
                       e->backward ? "backward" : "forward");
    xp_text_puts(text, "}");
}

static xp_status write_text(const xp_trace *trace, const xp_text *text) {
    char name[64];
    if (text->failed)
        return xp_error(XP_ENOMEM, "no memory for the trace of step %lld", (long long)trace->step);
    XP_TRY(xp_folder_create(trace->folder));
    snprintf(name, sizeof name, "step-%lld-rank-%d.json", (long long)trace->step, trace->rank);
    char *path = xp_path_join(trace->folder, name);
    if (!path)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = xp_file_write_atomic(path, text->data, text->length);
    free(path);
    return status;
}

static xp_status write_file(const xp_trace *trace, const xp_recording *ops) {
    xp_text text = {0};
    put_header(trace, ops, &text);
    for (int64_t i = 0; i < trace->n_events; i++)
        put_event(trace, &trace->events[i], &text);
    for (int64_t i = 0; i < ops->n_ops; i++) {
        const xp_recorded_op *op = &ops->ops[i];
        const bool in_layer = op->tag != XP_RECORDER_NO_TAG;
        const event e = {op->name,
                         op->began_s,
                         op->ended_s,
                         ROW_OPS + op->row,
                         in_layer ? op->tag / 2 : -1,
                         true,
                         in_layer && op->tag % 2 == 1};
        put_event(trace, &e, &text);
    }
    xp_text_puts(&text, "\n]}\n");
    const xp_status status = write_text(trace, &text);
    xp_text_free(&text);
    return status;
}

xp_status xp_trace_end(xp_trace *trace) {
    xp_recording ops;
    if (!trace || !trace->active)
        return XP_OK;
    trace->active = false;
    XP_TRY(xp_recorder_stop(trace->recorder, &ops));
    return write_file(trace, &ops);
}
