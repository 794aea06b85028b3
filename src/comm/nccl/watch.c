/*
 * The watcher: a thread that looks at the marks around collectives on a GPU. One whose begin has
 * been passed for longer than the timeout waits for a rank that does not come; then, and when the
 * ranks have failed for another reason, NCCL is aborted, which ends its kernels, and whoever waits
 * for the stream goes on.
 */
#include <stdio.h>
#include "comm/nccl/internal.h"
#include "core/file.h"
#include "core/sync.h"
#include "core/text.h"
#include "device/device_internal.h"

#define LOOK_S 0.05
/* Ranks that all wait for each other are given so long to find out that one of them does not. */
#define GRACE_S 4.0
/* An abort that takes longer is stuck in a driver that has gone. */
#define STOP_S 20.0

/* ---- who is missing ----------------------------------------------------------------------- */

static int count_ranks(const xp_comm *comm, xp_wait_state state) {
    int n = 0;
    for (int r = 0; r < comm->size; r++)
        n += r != comm->rank && xp_comm_wait_state(comm, r) == state;
    return n;
}

/* Ranks that do not wait themselves; where there is none, those of other nodes, which cannot be
 * seen; where there is none either, all. */
xp_status xp_nccl_report_late(xp_nccl_engine *e, xp_comm_kind kind, const char *phase) {
    xp_comm *comm = e->base.comm;
    const int n_busy = count_ranks(comm, XP_WAIT_BUSY);
    const int n_unknown = count_ranks(comm, XP_WAIT_UNKNOWN);
    const xp_wait_state named = n_busy > 0      ? XP_WAIT_BUSY
                                : n_unknown > 0 ? XP_WAIT_UNKNOWN
                                                : XP_WAIT_WAITING;
    xp_text who = {0};
    int n = 0, first = -1;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank || xp_comm_wait_state(comm, r) != named)
            continue;
        first = first < 0 ? r : first;
        if (n++ < 8)
            xp_text_printf(&who, n > 1 ? ", rank %d" : "rank %d", xp_comm_world_rank(comm, r));
    }
    if (n > 8)
        xp_text_printf(&who, " and %d more", n - 8);
    char text[800];
    snprintf(text, sizeof text, "rank %d waited %g s in %s%s%s%s on %s for %s%s",
             xp_comm_world_rank(comm, comm->rank), comm->timeout_s, xp_comm_kind_name(kind),
             phase ? " (" : "", phase ? phase : "", phase ? ")" : "",
             xp_device_name(e->base.device), who.data ? who.data : "other ranks",
             named == XP_WAIT_BUSY ? ""
             : named == XP_WAIT_UNKNOWN
                 ? " (on other nodes; all of this node are waiting themselves)"
                 : " (all are waiting themselves)");
    xp_text_free(&who);
    return first < 0 ? xp_comm_fail(comm, text) : xp_comm_fail_timeout(comm, first, text);
}

/* ---- marks -------------------------------------------------------------------------------- */

static xp_nccl_mark *mark_at(xp_nccl_engine *e, int i) {
    return &e->marks[(e->first + i) % XP_NCCL_MARKS];
}

/* Events are recorded outside of the lock: when the GPU waits for a peer and its queue is full, the
 * record waits with it, and the watcher must still come to its abort. The marks move on meanwhile,
 * but the place behind the newest one is this thread's. */
xp_status xp_nccl_watch_begin(xp_nccl_engine *e, const xp_comm_call *call, xp_stream *stream) {
    (void)call;
    pthread_mutex_lock(&e->watch_lock);
    e->begun = e->n_marks < XP_NCCL_MARKS;
    xp_nccl_mark *mark = e->begun ? mark_at(e, e->n_marks) : NULL;
    pthread_mutex_unlock(&e->watch_lock);
    return mark ? xp_event_record(mark->begin, stream) : XP_OK;
}

/* When all marks were in use the newest grows: its end moves behind this collective, too. */
xp_status xp_nccl_watch_end(xp_nccl_engine *e, const xp_comm_call *call, xp_stream *stream) {
    pthread_mutex_lock(&e->watch_lock);
    const bool grows = !e->begun && e->n_marks > 0;
    xp_nccl_mark *mark = mark_at(e, grows ? e->n_marks - 1 : e->n_marks);
    e->growing = grows;
    pthread_mutex_unlock(&e->watch_lock);
    const xp_status status = xp_event_record(mark->end, stream);
    pthread_mutex_lock(&e->watch_lock);
    e->growing = false;
    mark->kind = call->kind;
    mark->phase = call->phase;
    if (!grows) {
        mark->began_s = 0;
        if (e->n_marks++ == 0)
            pthread_cond_signal(&e->changed);
    }
    pthread_mutex_unlock(&e->watch_lock);
    return status;
}

/* ---- the thread --------------------------------------------------------------------------- */

typedef enum sight { NOTHING, UNDER_WAY, WAITING, LATE, BROKEN } sight;

/* Take away what is done and look at the oldest that is not. Under the lock. */
static sight look_at_marks(xp_nccl_engine *e, xp_nccl_mark *seen) {
    const double timeout_s = e->base.comm->timeout_s;
    const double grace_s = timeout_s < GRACE_S ? timeout_s : GRACE_S;
    /* The newest stays while its end is being moved. */
    for (; e->n_marks > e->growing; e->n_marks--, e->first = (e->first + 1) % XP_NCCL_MARKS) {
        xp_nccl_mark *mark = mark_at(e, 0);
        bool passed = false;
        if (xp_event_query(mark->end, &passed) != XP_OK)
            return BROKEN;
        if (passed)
            continue;
        if (mark->began_s == 0 && xp_event_query(mark->begin, &passed) != XP_OK)
            return BROKEN;
        if (mark->began_s == 0)
            mark->began_s = passed ? xp_time_s() : 0;
        *seen = *mark;
        const double waited = mark->began_s > 0 ? xp_time_s() - mark->began_s : 0;
        if (waited > timeout_s + grace_s ||
            (waited > timeout_s && count_ranks(e->base.comm, XP_WAIT_BUSY) > 0))
            return LATE;
        return waited > LOOK_S ? WAITING : UNDER_WAY;
    }
    return NOTHING;
}

static sight look(xp_nccl_engine *e, xp_nccl_mark *seen) {
    pthread_mutex_lock(&e->watch_lock);
    const sight what = look_at_marks(e, seen);
    pthread_mutex_unlock(&e->watch_lock);
    return what;
}

/* NCCL itself has something to say, or another rank has failed. @return false: all is well */
static bool has_failed(xp_nccl_engine *e) {
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
static bool rest(xp_nccl_engine *e) {
    const double until = xp_time_s() + LOOK_S;
    pthread_mutex_lock(&e->watch_lock);
    while (e->n_marks == 0 && !e->stopping)
        pthread_cond_wait(&e->changed, &e->watch_lock);
    if (!e->stopping)
        xp_cond_wait_until(&e->changed, &e->watch_lock, until);
    const bool goes_on = !e->stopping;
    pthread_mutex_unlock(&e->watch_lock);
    return goes_on;
}

/* Ask for failures first: a look at the marks may have to wait for a driver that another thread of
 * this process keeps busy. */
static bool is_over(xp_nccl_engine *e, xp_nccl_mark *seen, bool *waiting) {
    if (has_failed(e))
        return true;
    const sight what = look(e, seen);
    const bool waits = what == WAITING || what == LATE;
    if (waits != *waiting)
        xp_comm_mark_waiting(e->base.comm, waits ? 1 : -1);
    *waiting = waits;
    if (what == BROKEN)
        xp_comm_abort(e->base.comm, NULL);
    if (what == LATE)
        xp_nccl_report_late(e, seen->kind, seen->phase);
    return what == BROKEN || what == LATE;
}

static void *watch(void *context) {
    xp_nccl_engine *e = context;
    xp_nccl_mark seen = {0};
    bool waiting = false, over = false;
    while (!over && rest(e))
        over = is_over(e, &seen, &waiting);
    if (waiting)
        xp_comm_mark_waiting(e->base.comm, -1);
    /* The last act: whoever destroys the engine does not wait for an abort that is stuck. */
    if (over)
        xp_nccl_abort(e);
    pthread_mutex_lock(&e->watch_lock);
    e->ended = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->watch_lock);
    return NULL;
}

xp_status xp_nccl_watch_start(xp_nccl_engine *e) {
    if (pthread_create(&e->watcher, NULL, watch, e) != 0)
        return xp_error(XP_ENOMEM, "cannot start the thread that watches over NCCL");
    e->watched = true;
    return XP_OK;
}

bool xp_nccl_watch_stop(xp_nccl_engine *e) {
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
