/*
 * The watcher: a thread that looks at the spans around collectives on a GPU. One whose begin has
 * been passed for longer than the timeout waits for a rank that does not come; then, and when the
 * ranks have failed for another reason, NCCL is aborted, which ends its kernels, and whoever waits
 * for the stream goes on.
 */
#include <stdio.h>
#include "comm/nccl/watch.h"
#include "core/file.h"
#include "core/sync.h"
#include "core/text.h"
#include "device/device_internal.h"

#define LOOK_S 0.05
/* Ranks that all wait for each other are given so long to find out that one of them does not. */
#define GRACE_S 4.0
/* An abort that takes longer is stuck in a driver that has gone. */
#define STOP_S 20.0

/* ---- spans -------------------------------------------------------------------------------- */

static xp_nccl_span *span_at(xp_nccl_backend *e, int i) {
    return &e->spans[(e->first + i) % XP_NCCL_SPANS];
}

/* Events are recorded outside of the lock: when the GPU waits for a peer and its queue is full, the
 * record waits with it, and the watcher must still come to its abort. The spans move on meanwhile,
 * but the place behind the newest one is this thread's. */
xp_status xp_nccl_watch_begin(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    (void)call;
    pthread_mutex_lock(&e->watch_lock);
    e->begun = e->n_spans < XP_NCCL_SPANS;
    xp_nccl_span *span = e->begun ? span_at(e, e->n_spans) : NULL;
    pthread_mutex_unlock(&e->watch_lock);
    return span ? xp_event_record(span->begin, stream) : XP_OK;
}

/* When all spans were in use the newest grows: its end moves behind this collective, too. */
xp_status xp_nccl_watch_end(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    pthread_mutex_lock(&e->watch_lock);
    const bool grows = !e->begun && e->n_spans > 0;
    xp_nccl_span *span = span_at(e, grows ? e->n_spans - 1 : e->n_spans);
    e->growing = grows;
    pthread_mutex_unlock(&e->watch_lock);
    const xp_status status = xp_event_record(span->end, stream);
    pthread_mutex_lock(&e->watch_lock);
    e->growing = false;
    span->kind = call->kind;
    span->phase = call->phase;
    if (!grows) {
        span->began_s = 0;
        if (e->n_spans++ == 0)
            pthread_cond_signal(&e->changed);
    }
    pthread_mutex_unlock(&e->watch_lock);
    return status;
}

/* ---- the thread --------------------------------------------------------------------------- */

typedef enum span_state { NOTHING, UNDER_WAY, WAITING, LATE, BROKEN } span_state;

/* Take away what is done and look at the oldest that is not. Under the lock. */
static span_state look_at_spans(xp_nccl_backend *e, xp_nccl_span *seen) {
    const double timeout_s = e->base.comm->timeout_s;
    const double grace_s = timeout_s < GRACE_S ? timeout_s : GRACE_S;
    /* The newest stays while its end is being moved. */
    for (; e->n_spans > e->growing; e->n_spans--, e->first = (e->first + 1) % XP_NCCL_SPANS) {
        xp_nccl_span *span = span_at(e, 0);
        bool passed = false;
        if (xp_event_query(span->end, &passed) != XP_OK)
            return BROKEN;
        if (passed)
            continue;
        if (span->began_s == 0 && xp_event_query(span->begin, &passed) != XP_OK)
            return BROKEN;
        if (span->began_s == 0)
            span->began_s = passed ? xp_time_s() : 0;
        *seen = *span;
        const double waited = span->began_s > 0 ? xp_time_s() - span->began_s : 0;
        if (waited > timeout_s + grace_s ||
            (waited > timeout_s && xp_comm_count_in_state(e->base.comm, XP_WAIT_BUSY) > 0))
            return LATE;
        return waited > LOOK_S ? WAITING : UNDER_WAY;
    }
    return NOTHING;
}

static span_state look(xp_nccl_backend *e, xp_nccl_span *seen) {
    pthread_mutex_lock(&e->watch_lock);
    const span_state what = look_at_spans(e, seen);
    pthread_mutex_unlock(&e->watch_lock);
    return what;
}

/* NCCL itself has something to say, or another rank has failed. @return false: all is well */
static bool has_failed(xp_nccl_backend *e) {
    if (xp_comm_async_error(e->base.comm) != XP_OK)
        return true;
    if (xp_nccl_lock(e) != XP_OK)
        return true;
    const xp_nccl_state state = e->calls->comm_state(e->nccl);
    xp_nccl_unlock(e);
    if (state != XP_NCCL_FAILED)
        return false;
    xp_comm_abort(e->base.comm, NULL);
    return true;
}

/* Until something is queued and it is time to look again. @return false: the end has come */
static bool sleep_until_next_look(xp_nccl_backend *e) {
    const double until = xp_time_s() + LOOK_S;
    pthread_mutex_lock(&e->watch_lock);
    while (e->n_spans == 0 && !e->stopping)
        pthread_cond_wait(&e->changed, &e->watch_lock);
    if (!e->stopping)
        xp_cond_wait_until(&e->changed, &e->watch_lock, until);
    const bool goes_on = !e->stopping;
    pthread_mutex_unlock(&e->watch_lock);
    return goes_on;
}

/* Ask for failures first: a look at the spans may have to wait for a driver that another thread of
 * this process keeps busy. */
static bool is_over(xp_nccl_backend *e, xp_nccl_span *seen, bool *waiting) {
    if (has_failed(e))
        return true;
    const span_state what = look(e, seen);
    const bool waits = what == WAITING || what == LATE;
    if (waits != *waiting)
        xp_comm_mark_waiting(e->base.comm, waits ? 1 : -1);
    *waiting = waits;
    if (what == BROKEN)
        xp_comm_abort(e->base.comm, NULL);
    if (what == LATE)
        xp_nccl_report_timeout(e, seen->kind, seen->phase);
    return what == BROKEN || what == LATE;
}

static void *watch(void *context) {
    xp_nccl_backend *e = context;
    xp_nccl_span seen = {0};
    bool waiting = false, over = false;
    while (!over && sleep_until_next_look(e))
        over = is_over(e, &seen, &waiting);
    if (waiting)
        xp_comm_mark_waiting(e->base.comm, -1);
    /* The last act: whoever destroys the backend does not wait for an abort that is stuck. */
    if (over)
        xp_nccl_abort(e);
    pthread_mutex_lock(&e->watch_lock);
    e->ended = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->watch_lock);
    return NULL;
}

xp_status xp_nccl_watch_start(xp_nccl_backend *e) {
    if (pthread_create(&e->watcher, NULL, watch, e) != 0)
        return xp_error(XP_ENOMEM, "cannot start the thread that watches over NCCL");
    e->watched = true;
    return XP_OK;
}

bool xp_nccl_watch_stop(xp_nccl_backend *e) {
    if (!e->watched)
        return true;
    const double until = xp_time_s() + STOP_S;
    pthread_mutex_lock(&e->watch_lock);
    e->stopping = true;
    pthread_cond_signal(&e->changed);
    while (!e->ended && xp_cond_wait_until(&e->changed, &e->watch_lock, until)) {
    }
    const bool ended = e->ended;
    pthread_mutex_unlock(&e->watch_lock);
    if (ended)
        pthread_join(e->watcher, NULL);
    return ended;
}
