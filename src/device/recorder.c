#include "device/recorder.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "core/file.h"
#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"

#define NO_OP           ((int64_t)-1)
#define REFERENCE_TRIES 3
#define REFERENCE_S     100e-6 /* recording an event and waiting for it takes less */
#define PENDING         (-1.0) /* ended_s of an op whose second event is not recorded */

typedef struct row {
    xp_stream *stream;
    char name[48];
    int64_t open;    /* the op being queued, or NO_OP */
    xp_event *last;  /* behind the last whole op */
    double passed_s; /* while events are read: when the op before ended */
} row;

struct xp_recorder {
    xp_device *device;
    bool listening; /* read without the lock, too */
    int tag;        /* likewise */
    /* Of what follows: ops come from several threads. Held while an event is recorded, so where a
     * device's streams are filled by several threads these wait for each other. */
    pthread_mutex_t lock;
    xp_recorded_op *ops; /* [max_ops] */
    int64_t max_ops;
    /* Ops are numbered on from one recording to the next, so that one that is still being queued
     * when its own recording ends changes nothing in a later one. */
    int64_t first, n_begun;
    int64_t n_lost; /* of streams without a row, or whose events failed */
    row rows[XP_RECORDER_MAX_ROWS];
    int n_rows;
    /* Timed events only. */
    xp_event **events;   /* [2 max_ops] before and after each op; NULL: the device has none */
    xp_event *reference; /* recorded at the start, when it was reference_s on the host */
    double reference_s;
    xp_stream *own; /* of the reference: nothing else is queued on it */
};

/* ---- rows and room, under the lock --------------------------------------------------------- */

static void name_row(const xp_recorder *r, row *named) {
    int nth = 1;
    for (const row *other = r->rows; other < named; other++)
        nth += other->stream->kind == named->stream->kind;
    const char *kind = named->stream->kind == XP_STREAM_COMPUTE ? "compute" : "communication";
    if (nth == 1)
        snprintf(named->name, sizeof named->name, "%s stream", kind);
    else
        snprintf(named->name, sizeof named->name, "%s stream %d", kind, nth);
}

/* NULL: there are more streams than rows. */
static row *row_of(xp_recorder *r, xp_stream *stream) {
    for (int i = 0; i < r->n_rows; i++)
        if (r->rows[i].stream == stream)
            return &r->rows[i];
    if (r->n_rows == XP_RECORDER_MAX_ROWS)
        return NULL;
    row *made = &r->rows[r->n_rows++];
    *made = (row){.stream = stream, .open = NO_OP};
    name_row(r, made);
    return made;
}

/* Where an op is kept; NULL: it had no room, or is another recording's. */
static xp_recorded_op *op_at(xp_recorder *r, int64_t number) {
    const int64_t i = number - r->first;
    return i >= 0 && i < r->n_begun && i < r->max_ops ? &r->ops[i] : NULL;
}

static xp_event *event_of(const xp_recorder *r, const xp_recorded_op *op, bool after) {
    return r->events[2 * (op - r->ops) + after];
}

static int64_t n_kept(const xp_recorder *r) {
    return r->n_begun < r->max_ops ? r->n_begun : r->max_ops;
}

static int tag_of(xp_recorder *r) {
    return __atomic_load_n(&r->tag, __ATOMIC_RELAXED);
}

void xp_recorder_set_tag(xp_recorder *recorder, int tag) {
    __atomic_store_n(&recorder->tag, tag, __ATOMIC_RELAXED);
}

/* ---- ops ----------------------------------------------------------------------------------- */

/* xp_cpu_observer.ran */
static void op_ran(void *context, xp_stream *stream, const char *name, const void *args,
                   double began_s, double ended_s) {
    xp_recorder *r = context;
    (void)args;
    if (!__atomic_load_n(&r->listening, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&r->lock);
    row *its = r->listening ? row_of(r, stream) : NULL;
    xp_recorded_op *op = its ? op_at(r, r->first + r->n_begun++) : NULL;
    const bool at_once = xp_cpu_stream_is_inline(stream);
    if (op)
        *op = (xp_recorded_op){name, (int)(its - r->rows), at_once ? tag_of(r) : XP_RECORDER_NO_TAG,
                               began_s, ended_s};
    r->n_lost += r->listening && !its;
    pthread_mutex_unlock(&r->lock);
}

static int64_t begin_op(xp_recorder *r, xp_stream *stream, const char *name) {
    row *its = row_of(r, stream);
    if (!its) {
        r->n_lost++;
        return NO_OP;
    }
    if (its->open != NO_OP)
        return NO_OP;
    its->open = r->first + r->n_begun++;
    xp_recorded_op *op = op_at(r, its->open);
    if (!op)
        return its->open;
    *op = (xp_recorded_op){name, (int)(its - r->rows), tag_of(r), 0, PENDING};
    if (r->device->vtable->event_record(event_of(r, op, false), stream) != XP_OK)
        op->name = NULL;
    return its->open;
}

int64_t xp_recorder_begin_op(xp_stream *stream, const char *name) {
    xp_recorder *r = __atomic_load_n(&stream->device->recorder, __ATOMIC_ACQUIRE);
    if (!r)
        return NO_OP;
    pthread_mutex_lock(&r->lock);
    const int64_t number = r->listening ? begin_op(r, stream, name) : NO_OP;
    pthread_mutex_unlock(&r->lock);
    return number;
}

static void end_op(xp_recorder *r, xp_stream *stream, int64_t number, xp_status status) {
    row *its = row_of(r, stream);
    if (!its || its->open != number)
        return;
    its->open = NO_OP;
    xp_recorded_op *op = op_at(r, number);
    if (!op || status != XP_OK)
        return;
    xp_event *after = event_of(r, op, true);
    /* What is wrong with the device when an event fails, the run's own calls meet. */
    if (!op->name || r->device->vtable->event_record(after, stream) != XP_OK) {
        r->n_lost++;
        return;
    }
    op->ended_s = 0;
    its->last = after;
}

xp_status xp_recorder_end_op(xp_stream *stream, int64_t op, xp_status status) {
    if (op == NO_OP)
        return status;
    xp_recorder *r = __atomic_load_n(&stream->device->recorder, __ATOMIC_ACQUIRE);
    if (!r)
        return status;
    pthread_mutex_lock(&r->lock);
    if (r->listening)
        end_op(r, stream, op, status);
    pthread_mutex_unlock(&r->lock);
    return status;
}

/* ---- create and destroy -------------------------------------------------------------------- */

static xp_status create_event(xp_device *device, xp_event **event) {
    XP_TRY(device->vtable->timed_event_create(device, event));
    (*event)->device = device;
    return XP_OK;
}

static xp_status create_events(xp_recorder *r) {
    if (r->max_ops > XP_RECORDER_MAX_TIMED)
        r->max_ops = XP_RECORDER_MAX_TIMED;
    r->events = calloc((size_t)(2 * r->max_ops), sizeof(xp_event *));
    if (!r->events)
        return xp_error(XP_ENOMEM, "no memory for the events of %lld ops", (long long)r->max_ops);
    for (int64_t i = 0; i < 2 * r->max_ops; i++)
        XP_TRY(create_event(r->device, &r->events[i]));
    XP_TRY(create_event(r->device, &r->reference));
    return xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->own);
}

static xp_status prepare(xp_recorder *r) {
    const xp_cpu_observer observer = {.ran = op_ran, .context = r};
    if (r->device->vtable->timed_event_create)
        XP_TRY(create_events(r));
    else if (xp_device_get_kind(r->device) == XP_DEVICE_CPU)
        xp_cpu_device_observe(r->device, &observer);
    r->ops = calloc((size_t)r->max_ops, sizeof *r->ops);
    return r->ops
               ? XP_OK
               : xp_error(XP_ENOMEM, "no memory for the times of %lld ops", (long long)r->max_ops);
}

xp_status xp_recorder_create(xp_device *device, int64_t max_ops, xp_recorder **recorder) {
    xp_recorder *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "no memory for a recorder");
    made->device = device;
    made->max_ops = max_ops;
    made->tag = XP_RECORDER_NO_TAG;
    pthread_mutex_init(&made->lock, NULL);
    xp_status status = prepare(made);
    if (status != XP_OK) {
        xp_recorder_destroy(made);
        return status;
    }
    *recorder = made;
    return XP_OK;
}

static void destroy_events(xp_recorder *r) {
    __atomic_store_n(&r->device->recorder, NULL, __ATOMIC_RELEASE);
    xp_stream_destroy(r->own);
    xp_event_destroy(r->reference);
    for (int64_t i = 0; i < 2 * r->max_ops; i++)
        xp_event_destroy(r->events[i]);
    free(r->events);
}

void xp_recorder_destroy(xp_recorder *recorder) {
    if (!recorder)
        return;
    if (recorder->events)
        destroy_events(recorder);
    else if (xp_device_get_kind(recorder->device) == XP_DEVICE_CPU)
        xp_cpu_device_observe(recorder->device, NULL);
    pthread_mutex_destroy(&recorder->lock);
    free(recorder->ops);
    free(recorder);
}

/* ---- start and stop ------------------------------------------------------------------------ */

/* Which moment of the host the device's clock is told from. The event's stream has nothing else, so
 * it is passed between the two readings; where streams share a queue of the hardware other work can
 * keep them apart, so the last of a few tries counts, or the first that is quick. */
static xp_status set_reference(xp_recorder *r) {
    const xp_device_vtable *device = r->device->vtable;
    for (int i = 0; i < REFERENCE_TRIES; i++) {
        const double before = xp_time_s();
        XP_TRY(device->event_record(r->reference, r->own));
        XP_TRY(device->event_sync(r->reference, r->own));
        const double after = xp_time_s();
        r->reference_s = (before + after) / 2;
        if (after - before < REFERENCE_S)
            break;
    }
    return XP_OK;
}

xp_status xp_recorder_start(xp_recorder *recorder) {
    xp_recorder *r = recorder;
    if (r->events)
        XP_TRY(set_reference(r));
    pthread_mutex_lock(&r->lock);
    r->first += r->n_begun;
    r->n_begun = 0;
    r->n_lost = 0;
    r->n_rows = 0;
    __atomic_store_n(&r->listening, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&r->lock);
    if (r->events)
        __atomic_store_n(&r->device->recorder, r, __ATOMIC_RELEASE);
    return XP_OK;
}

static xp_status wait_for_rows(xp_recorder *r) {
    for (int i = 0; i < r->n_rows; i++)
        if (r->rows[i].last)
            XP_TRY(r->device->vtable->event_sync(r->rows[i].last, r->rows[i].stream));
    return XP_OK;
}

/* The length is measured by itself: times since the reference are rounded more coarsely the longer
 * the step, and may not let an op begin before the one ahead of it has ended. */
static xp_status read_times(xp_recorder *r, xp_recorded_op *op) {
    const xp_device_vtable *device = r->device->vtable;
    xp_event *before = event_of(r, op, false), *after = event_of(r, op, true);
    row *its = &r->rows[op->row];
    double began = 0, length = 0;
    XP_TRY(device->event_elapsed(r->reference, before, &began));
    XP_TRY(device->event_elapsed(before, after, &length));
    op->began_s = r->reference_s + began;
    if (op->began_s < its->passed_s)
        op->began_s = its->passed_s;
    op->ended_s = its->passed_s = op->began_s + length;
    return XP_OK;
}

/* Whole ops move up to the front. */
static xp_status read_ops(xp_recorder *r, int64_t *n_ops) {
    int64_t n = 0;
    XP_TRY(wait_for_rows(r));
    for (int64_t i = 0; i < n_kept(r); i++) {
        if (r->ops[i].ended_s == PENDING)
            continue;
        XP_TRY(read_times(r, &r->ops[i]));
        r->ops[n++] = r->ops[i];
    }
    *n_ops = n;
    return XP_OK;
}

xp_status xp_recorder_stop(xp_recorder *recorder, xp_recording *recording) {
    xp_recorder *r = recorder;
    if (r->events)
        __atomic_store_n(&r->device->recorder, NULL, __ATOMIC_RELEASE);
    pthread_mutex_lock(&r->lock); /* whoever is past the test above sees what it changes */
    __atomic_store_n(&r->listening, false, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&r->lock);
    int64_t n_ops = n_kept(r);
    if (r->events)
        XP_TRY(read_ops(r, &n_ops));
    *recording = (xp_recording){.ops = r->ops,
                                .n_ops = n_ops,
                                .n_lost = r->n_lost + r->n_begun - n_kept(r),
                                .n_rows = r->n_rows};
    for (int i = 0; i < r->n_rows; i++)
        recording->rows[i] = r->rows[i].name;
    return XP_OK;
}
