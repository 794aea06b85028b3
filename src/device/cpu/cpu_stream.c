#include "device/cpu/cpu_stream.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "device/cpu/cpu_graph.h"
#include "device/cpu/test_protect.h"

#define QUEUE_LENGTH 256

typedef struct job {
    xp_cpu_fn fn;
    const char *name; /* NULL: no observer hears of it */
    _Alignas(16) char args[XP_CPU_MAX_ARGS];
} job;

typedef struct scratch {
    void *data;
    size_t n_bytes;
} scratch;

typedef struct cpu_stream {
    xp_stream base;
    xp_pool *pool;
    scratch *scratch; /* [threads of the pool] */
    bool is_inline;
    /* deferred streams only: work that waits for xp_stream_sync() */
    job *kept;
    int n_kept, kept_capacity;
    bool running_kept;
    /* worker streams only */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    job *queue; /* [QUEUE_LENGTH] ring */
    uint64_t n_submitted, n_done;
    bool stop;
    xp_status status; /* first failure */
    char error[1024];
} cpu_stream;

typedef struct cpu_event {
    xp_event base;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t n_recorded, n_reached; /* record() calls made, and passed by their stream */
    cpu_stream *deferred;           /* the stream of the last record(), if it is a deferred one */
} cpu_event;

typedef struct event_job {
    cpu_event *event;
    uint64_t count;
} event_job;

static xp_status observe(cpu_stream *s, const char *name, xp_cpu_fn fn, void *args) {
    const xp_cpu_observer *observer = &((xp_cpu_device *)s->base.device)->observer;
    if (name == NULL || observer->ran == NULL)
        return fn(&s->base, args);
    const double began = xp_time_s();
    const xp_status status = fn(&s->base, args);
    observer->ran(observer->context, &s->base, name, args, began, xp_time_s());
    return status;
}

static xp_status event_reached(xp_stream *stream, void *args);

static xp_status run_work(cpu_stream *s, const char *name, xp_cpu_fn fn, void *args) {
    if (!s->base.device->hides_memory)
        return observe(s, name, fn, args);
    xp_test_protect_open();
    const xp_status status = observe(s, name, fn, args);
    xp_test_protect_close();
    return status;
}

/* ---- deferred streams: nothing runs before somebody waits ---- */

static bool is_deferred(const cpu_stream *s) {
    return s->is_inline && ((const xp_cpu_device *)s->base.device)->deferred;
}

static xp_status keep_work(cpu_stream *s, const job *work, size_t n_bytes) {
    if (s->n_kept == s->kept_capacity) {
        int capacity = s->kept_capacity == 0 ? 256 : 2 * s->kept_capacity;
        job *grown = realloc(s->kept, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return xp_error(XP_ENOMEM, "stream: out of memory");
        s->kept = grown;
        s->kept_capacity = capacity;
    }
    job *j = &s->kept[s->n_kept++];
    j->fn = work->fn;
    j->name = work->name;
    memcpy(j->args, work->args, n_bytes);
    return XP_OK;
}

static bool is_reached(cpu_event *e) {
    pthread_mutex_lock(&e->lock);
    const bool reached = e->n_reached == e->n_recorded;
    pthread_mutex_unlock(&e->lock);
    return reached;
}

/* All kept work, or (`until` not NULL) what lies before the event's last point. */
static xp_status run_kept(cpu_stream *s, cpu_event *until) {
    xp_status status = XP_OK;
    int n = 0;
    s->running_kept = true;
    while (n < s->n_kept && status == XP_OK && !(until && is_reached(until))) {
        job *j = &s->kept[n++];
        status = run_work(s, j->name, j->fn, j->args);
    }
    s->running_kept = false;
    if (status != XP_OK)
        n = s->n_kept;
    memmove(s->kept, s->kept + n, (size_t)(s->n_kept - n) * sizeof *s->kept);
    s->n_kept -= n;
    return status;
}

static void run_next(cpu_stream *s) {
    job *j = &s->queue[s->n_done % QUEUE_LENGTH];
    xp_status status = s->status;
    pthread_mutex_unlock(&s->lock);
    /* After a failure work is skipped, but whoever waits for an event behind it goes on. */
    if (status == XP_OK || j->fn == event_reached)
        status = run_work(s, j->name, j->fn, j->args);
    pthread_mutex_lock(&s->lock);
    if (status != XP_OK && s->status == XP_OK) {
        s->status = status;
        strncpy(s->error, xp_last_error(), sizeof s->error - 1);
    }
    s->n_done++;
    pthread_cond_broadcast(&s->changed);
}

static void *stream_main(void *arg) {
    cpu_stream *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        if (s->n_done < s->n_submitted)
            run_next(s);
        else if (s->stop)
            break;
        else
            pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static xp_status start_worker(cpu_stream *s) {
    s->queue = calloc(QUEUE_LENGTH, sizeof *s->queue);
    if (s->queue == NULL)
        return xp_error(XP_ENOMEM, "stream: out of memory");
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, stream_main, s) != 0) {
        free(s->queue);
        return xp_error(XP_ENOMEM, "stream: cannot start its thread");
    }
    return XP_OK;
}

xp_status xp_cpu_stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream) {
    xp_cpu_device *cpu = (xp_cpu_device *)device;
    cpu_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return xp_error(XP_ENOMEM, "stream: out of memory");
    s->base.device = device;
    s->is_inline = kind == XP_STREAM_COMPUTE;
    s->pool = s->is_inline ? cpu->pool : cpu->worker_pool;
    s->scratch = calloc((size_t)xp_pool_n_threads(s->pool), sizeof *s->scratch);
    xp_status status = s->scratch == NULL ? xp_error(XP_ENOMEM, "stream: out of memory") : XP_OK;
    if (status == XP_OK && !s->is_inline)
        status = start_worker(s);
    if (status != XP_OK) {
        free(s->scratch);
        free(s);
        return status;
    }
    *stream = &s->base;
    return XP_OK;
}

void xp_cpu_stream_destroy(xp_stream *stream) {
    cpu_stream *s = (cpu_stream *)stream;
    if (!s->is_inline) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
        pthread_mutex_destroy(&s->lock);
        pthread_cond_destroy(&s->changed);
        free(s->queue);
    }
    for (int i = 0; i < xp_pool_n_threads(s->pool); i++)
        xp_device_free(stream->device, s->scratch[i].data);
    free(s->scratch);
    free(s->kept);
    free(s);
}

xp_status xp_cpu_stream_sync(xp_stream *stream) {
    cpu_stream *s = (cpu_stream *)stream;
    if (s->is_inline)
        return is_deferred(s) ? run_kept(s, NULL) : XP_OK;
    pthread_mutex_lock(&s->lock);
    while (s->n_done < s->n_submitted)
        pthread_cond_wait(&s->changed, &s->lock);
    xp_status status = s->status;
    if (status != XP_OK)
        status = xp_error(status, "%s", s->error);
    pthread_mutex_unlock(&s->lock);
    return status;
}

xp_status xp_cpu_submit(xp_stream *stream, xp_cpu_fn fn, const void *args, size_t n_bytes) {
    return xp_cpu_submit_named(stream, NULL, fn, args, n_bytes);
}

xp_status xp_cpu_submit_named(xp_stream *stream, const char *name, xp_cpu_fn fn, const void *args,
                              size_t n_bytes) {
    cpu_stream *s = (cpu_stream *)stream;
    if (n_bytes > XP_CPU_MAX_ARGS)
        return xp_error(XP_EINTERNAL, "stream: %zu bytes of arguments", n_bytes);
    if (stream->recording != NULL)
        return xp_cpu_graph_add(stream->recording, name, fn, args, n_bytes);
    if (s->is_inline) {
        job now;
        now.fn = fn;
        now.name = name;
        memcpy(now.args, args, n_bytes);
        if (is_deferred(s) && !s->running_kept)
            return keep_work(s, &now, n_bytes);
        return run_work(s, name, fn, now.args);
    }
    pthread_mutex_lock(&s->lock);
    while (s->n_submitted - s->n_done == QUEUE_LENGTH)
        pthread_cond_wait(&s->changed, &s->lock);
    job *j = &s->queue[s->n_submitted % QUEUE_LENGTH];
    j->fn = fn;
    j->name = name;
    memcpy(j->args, args, n_bytes);
    s->n_submitted++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return XP_OK;
}

bool xp_cpu_stream_is_inline(const xp_stream *stream) {
    const cpu_stream *s = (const cpu_stream *)stream;
    return s->is_inline && !is_deferred(s);
}

xp_pool *xp_cpu_stream_pool(const xp_stream *stream) {
    return ((const cpu_stream *)stream)->pool;
}

void *xp_cpu_stream_scratch(xp_stream *stream, int worker, size_t n_bytes) {
    cpu_stream *s = (cpu_stream *)stream;
    scratch *own = &s->scratch[worker];
    if (own->n_bytes < n_bytes) {
        xp_device_free(stream->device, own->data);
        *own = (scratch){0};
        void *data;
        if (xp_device_alloc(stream->device, n_bytes, "workspace", &data) != XP_OK)
            return NULL;
        *own = (scratch){.data = data, .n_bytes = n_bytes};
    }
    return own->data;
}

xp_status xp_cpu_scratch_error(size_t n_bytes) {
    return xp_error(XP_ENOMEM, "cpu: no memory for %zu bytes of scratch", n_bytes);
}

xp_status xp_cpu_event_create(xp_device *device, xp_event **event) {
    cpu_event *e = calloc(1, sizeof *e);
    if (e == NULL)
        return xp_error(XP_ENOMEM, "event: out of memory");
    e->base.device = device;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    *event = &e->base;
    return XP_OK;
}

void xp_cpu_event_destroy(xp_event *event) {
    cpu_event *e = (cpu_event *)event;
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
    free(e);
}

static xp_status event_reached(xp_stream *stream, void *args) {
    (void)stream;
    event_job *j = args;
    pthread_mutex_lock(&j->event->lock);
    if (j->event->n_reached < j->count)
        j->event->n_reached = j->count;
    pthread_cond_broadcast(&j->event->changed);
    pthread_mutex_unlock(&j->event->lock);
    return XP_OK;
}

static xp_status event_wait_for(xp_stream *stream, void *args) {
    (void)stream;
    event_job *j = args;
    pthread_mutex_lock(&j->event->lock);
    while (j->event->n_reached < j->count)
        pthread_cond_wait(&j->event->changed, &j->event->lock);
    pthread_mutex_unlock(&j->event->lock);
    return XP_OK;
}

xp_status xp_cpu_event_record(xp_event *event, xp_stream *stream) {
    cpu_event *e = (cpu_event *)event;
    cpu_stream *s = (cpu_stream *)stream;
    e->deferred = is_deferred(s) ? s : NULL;
    pthread_mutex_lock(&e->lock);
    event_job j = {.event = e, .count = ++e->n_recorded};
    pthread_mutex_unlock(&e->lock);
    return xp_cpu_submit(stream, event_reached, &j, sizeof j);
}

xp_status xp_cpu_event_wait(xp_event *event, xp_stream *stream) {
    cpu_event *e = (cpu_event *)event;
    /* Whoever waits for the event may be all that makes its stream's owner wait. */
    if (e->deferred && !e->deferred->running_kept)
        XP_TRY(run_kept(e->deferred, e));
    pthread_mutex_lock(&e->lock);
    event_job j = {.event = e, .count = e->n_recorded};
    pthread_mutex_unlock(&e->lock);
    return xp_cpu_submit(stream, event_wait_for, &j, sizeof j);
}

xp_status xp_cpu_event_sync(xp_event *event, xp_stream *stream) {
    cpu_event *e = (cpu_event *)event;
    cpu_stream *s = (cpu_stream *)stream;
    if (s->is_inline)
        return is_deferred(s) ? run_kept(s, e) : XP_OK;
    pthread_mutex_lock(&e->lock);
    while (e->n_reached < e->n_recorded)
        pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
    pthread_mutex_lock(&s->lock);
    const xp_status status = s->status == XP_OK ? XP_OK : xp_error(s->status, "%s", s->error);
    pthread_mutex_unlock(&s->lock);
    return status;
}

xp_status xp_cpu_event_query(xp_event *event, bool *passed) {
    cpu_event *e = (cpu_event *)event;
    pthread_mutex_lock(&e->lock);
    *passed = e->n_reached == e->n_recorded;
    pthread_mutex_unlock(&e->lock);
    return XP_OK;
}

typedef struct copy_job {
    void *dst;
    const void *src; /* NULL: zeros */
    size_t n_bytes;
} copy_job;

#define COPY_TILE ((size_t)1 << 20)

static void copy_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const copy_job *j = context;
    size_t first = (size_t)tile * COPY_TILE;
    size_t n = j->n_bytes - first < COPY_TILE ? j->n_bytes - first : COPY_TILE;
    if (j->src == NULL)
        memset((char *)j->dst + first, 0, n);
    else
        memmove((char *)j->dst + first, (const char *)j->src + first, n);
}

static xp_status run_copy(xp_stream *stream, void *args) {
    copy_job *j = args;
    xp_pool_run(xp_cpu_stream_pool(stream), copy_tile, j,
                (int64_t)((j->n_bytes + COPY_TILE - 1) / COPY_TILE));
    return XP_OK;
}

/* Neither device memory nor staging memory. */
static bool is_pageable(xp_device *device, const void *data) {
    return !xp_test_protect_holds(data) && !xp_device_holds_host(device, data);
}

xp_status xp_cpu_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    xp_device *device = stream->device;
    if (device->hides_memory && (is_pageable(device, dst) || is_pageable(device, src)))
        __atomic_fetch_add(&((xp_cpu_device *)device)->n_pageable, 1, __ATOMIC_RELAXED);
    copy_job j = {.dst = dst, .src = src, .n_bytes = n_bytes};
    return xp_cpu_submit_named(stream, "copy", run_copy, &j, sizeof j);
}

xp_status xp_cpu_zero(xp_stream *stream, void *dst, size_t n_bytes) {
    copy_job j = {.dst = dst, .n_bytes = n_bytes};
    return xp_cpu_submit_named(stream, "copy", run_copy, &j, sizeof j);
}
