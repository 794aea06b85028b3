#include "train/trace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"
#include "device/cpu/cpu_device.h"

#define MAX_THREADS 16

/* Rows of the picture. Ops of other threads than the rank's own stand on rows of their own. */
enum { ROW_PHASES, ROW_LAYERS, ROW_OPS };

typedef struct event {
    const char *name;
    double began_s, ended_s;
    int row;
    int layer; /* -1: none */
} event;

struct xp_trace {
    xp_device *device; /* listened to; NULL: no CPU device */
    char *folder;
    int rank;
    int64_t every, step;
    double began_s, layer_began_s;
    atomic_bool active;
    pthread_mutex_t lock; /* of what follows: ops come from several threads */
    event *events;        /* [XP_TRACE_MAX_EVENTS] */
    int64_t n_events, n_lost;
    pthread_t threads[MAX_THREADS]; /* row - ROW_OPS of each; [0] is the rank's own */
    int n_threads;
};

static void add(xp_trace *trace, event e) {
    if (trace->n_events < XP_TRACE_MAX_EVENTS)
        trace->events[trace->n_events++] = e;
    else
        trace->n_lost++;
}

/* Threads past the table share its last row. */
static int row_of_caller(xp_trace *trace) {
    pthread_t self = pthread_self();
    int i = 0;
    while (i < trace->n_threads && !pthread_equal(trace->threads[i], self))
        i++;
    if (i == trace->n_threads && i < MAX_THREADS)
        trace->threads[trace->n_threads++] = self;
    return ROW_OPS + (i < MAX_THREADS ? i : MAX_THREADS - 1);
}

/* xp_cpu_observer.ran */
static void op_ran(void *context, xp_stream *stream, const char *name, const void *args,
                   double began_s, double ended_s) {
    xp_trace *trace = context;
    (void)stream;
    (void)args;
    if (!atomic_load_explicit(&trace->active, memory_order_acquire))
        return;
    pthread_mutex_lock(&trace->lock);
    add(trace, (event){.name = name,
                       .began_s = began_s,
                       .ended_s = ended_s,
                       .row = row_of_caller(trace),
                       .layer = -1});
    pthread_mutex_unlock(&trace->lock);
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
    pthread_mutex_init(&made->lock, NULL);
    if (!made->folder || !made->events) {
        xp_trace_destroy(made);
        return xp_error(XP_ENOMEM, "no memory for the %d events of a trace", XP_TRACE_MAX_EVENTS);
    }
    if (xp_device_get_kind(device) == XP_DEVICE_CPU) {
        const xp_cpu_observer observer = {.ran = op_ran, .context = made};
        made->device = device;
        xp_cpu_device_observe(device, &observer);
    }
    *trace = made;
    return XP_OK;
}

void xp_trace_destroy(xp_trace *trace) {
    if (!trace)
        return;
    if (trace->device)
        xp_cpu_device_observe(trace->device, NULL);
    pthread_mutex_destroy(&trace->lock);
    free(trace->events);
    free(trace->folder);
    free(trace);
}

static bool is_active(const xp_trace *trace) {
    return trace && atomic_load_explicit(&trace->active, memory_order_relaxed);
}

void xp_trace_begin(xp_trace *trace, int64_t step) {
    if (!trace || step % trace->every != 0)
        return;
    pthread_mutex_lock(&trace->lock);
    trace->step = step;
    trace->n_events = 0;
    trace->n_lost = 0;
    trace->threads[0] = pthread_self();
    trace->n_threads = 1;
    trace->began_s = xp_time_s();
    pthread_mutex_unlock(&trace->lock);
    atomic_store_explicit(&trace->active, true, memory_order_release);
}

static void add_own(xp_trace *trace, int row, const char *name, int layer, double began_s,
                    double ended_s) {
    pthread_mutex_lock(&trace->lock);
    add(trace,
        (event){.name = name, .began_s = began_s, .ended_s = ended_s, .row = row, .layer = layer});
    pthread_mutex_unlock(&trace->lock);
}

void xp_trace_phase(xp_trace *trace, const char *name, double began_s, double ended_s) {
    if (is_active(trace))
        add_own(trace, ROW_PHASES, name, -1, began_s, ended_s);
}

void xp_trace_layer_begins(xp_trace *trace) {
    if (is_active(trace))
        trace->layer_began_s = xp_time_s();
}

void xp_trace_layer_ends(xp_trace *trace, int layer, bool backward) {
    if (is_active(trace))
        add_own(trace, ROW_LAYERS, backward ? "backward" : "forward", layer, trace->layer_began_s,
                xp_time_s());
}

/* ---- the file ---------------------------------------------------------------------------- */

static void put_row_name(const xp_trace *trace, int row, const char *name, xp_text *text) {
    xp_text_printf(text,
                   ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,"
                   "\"args\":{\"name\":\"%s\"}}",
                   trace->rank, row, name);
}

static void put_header(const xp_trace *trace, xp_text *text) {
    xp_text_printf(text,
                   "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"step\":%lld,\"rank\":%d,"
                   "\"events_left_out\":%lld},\"traceEvents\":[\n"
                   "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,"
                   "\"args\":{\"name\":\"rank %d\"}}",
                   (long long)trace->step, trace->rank, (long long)trace->n_lost, trace->rank,
                   trace->rank);
    put_row_name(trace, ROW_PHASES, "step", text);
    put_row_name(trace, ROW_LAYERS, "layers", text);
    put_row_name(trace, ROW_OPS, "ops", text);
    for (int i = 1; i < trace->n_threads; i++) {
        char name[32];
        snprintf(name, sizeof name, "ops, stream thread %d", i);
        put_row_name(trace, ROW_OPS + i, name, text);
    }
}

static void put_event(const xp_trace *trace, const event *e, xp_text *text) {
    char name[64];
    if (e->layer >= 0)
        snprintf(name, sizeof name, "layer %d %s", e->layer, e->name);
    else
        snprintf(name, sizeof name, "%s", e->name);
    xp_text_puts(text, ",\n{\"name\":");
    xp_text_add_json(text, name, strlen(name));
    xp_text_printf(text, ",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%d,\"tid\":%d}",
                   (e->began_s - trace->began_s) * 1e6, (e->ended_s - e->began_s) * 1e6,
                   trace->rank, e->row);
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

xp_status xp_trace_end(xp_trace *trace) {
    if (!is_active(trace))
        return XP_OK;
    atomic_store_explicit(&trace->active, false, memory_order_release);
    /* Held while writing: a worker's last op may still be on its way in. */
    pthread_mutex_lock(&trace->lock);
    xp_text text = {0};
    put_header(trace, &text);
    for (int64_t i = 0; i < trace->n_events; i++)
        put_event(trace, &trace->events[i], &text);
    xp_text_puts(&text, "\n]}\n");
    xp_status status = write_text(trace, &text);
    xp_text_free(&text);
    pthread_mutex_unlock(&trace->lock);
    return status;
}
