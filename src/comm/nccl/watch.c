/*
 * The watcher: a thread that looks at the marks around collectives on a GPU. One whose begin has
 * been passed for longer than the timeout waits for a rank that does not come; then, and when the
 * ranks have failed for another reason, NCCL is aborted, which ends its kernels, and whoever waits
 * for the stream goes on.
 */
#include <stdio.h>
#include <time.h>
#include "comm/nccl/internal.h"
#include "core/file.h"
#include "core/text.h"
#include "device/device_internal.h"

#define LOOK_S 0.05
/* Ranks that all wait for each other are given so long to find out that one of them does not. */
#define GRACE_S 4.0
/* An abort that takes longer is stuck in a driver that has gone. */
#define STOP_S 20.0

/* ---- who is missing ----------------------------------------------------------------------- */

static int count_absent(const xp_comm *comm) {
    int n = 0;
    for (int r = 0; r < comm->size; r++)
        n += r != comm->rank && !xp_comm_is_waiting(comm, r);
    return n;
}

xp_status xp_nccl_report_late(xp_nccl_engine *e, xp_comm_kind kind, const char *phase) {
    const xp_comm *comm = e->base.comm;
    const int n_absent = count_absent(comm);
    xp_text who = {0};
    int n = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank || (n_absent > 0 && xp_comm_is_waiting(comm, r)))
            continue;
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
             n_absent > 0 ? "" : " (all are waiting themselves)");
    xp_text_free(&who);
    return xp_nccl_fail(e, text);
}

/* ---- marks -------------------------------------------------------------------------------- */

static xp_nccl_mark *mark_at(xp_nccl_engine *e, int i) {
    return &e->marks[(e->first + i) % XP_NCCL_MARKS];
}

xp_status xp_nccl_watch_begin(xp_nccl_engine *e, const xp_comm_call *call, xp_stream *stream) {
    (void)call;
    pthread_mutex_lock(&e->watch_lock);
    xp_status status = XP_OK;
    e->begun = e->n_marks < XP_NCCL_MARKS;
    if (e->begun)
        status = xp_event_record(mark_at(e, e->n_marks)->begin, stream);
    pthread_mutex_unlock(&e->watch_lock);
    return status;
}

/* When all marks were in use the newest grows: its end moves behind this collective, too. */
xp_status xp_nccl_watch_end(xp_nccl_engine *e, const xp_comm_call *call, xp_stream *stream) {
    pthread_mutex_lock(&e->watch_lock);
    const bool grows = !e->begun && e->n_marks > 0;
    xp_nccl_mark *mark = mark_at(e, grows ? e->n_marks - 1 : e->n_marks);
    const xp_status status = xp_event_record(mark->end, stream);
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
    for (; e->n_marks > 0; e->n_marks--, e->first = (e->first + 1) % XP_NCCL_MARKS) {
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
        if (waited > timeout_s + grace_s || (waited > timeout_s && count_absent(e->base.comm) > 0))
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
    xp_comm_abort(e->base.comm, xp_last_error());
    return true;
}

/* @return false: until something is queued, or the end has come */
static bool rest(xp_nccl_engine *e) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    const int64_t ns = until.tv_nsec + (int64_t)(LOOK_S * 1e9);
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&e->watch_lock);
    while (e->n_marks == 0 && !e->stopping)
        pthread_cond_wait(&e->changed, &e->watch_lock);
    if (!e->stopping)
        pthread_cond_timedwait(&e->changed, &e->watch_lock, &until);
    const bool goes_on = !e->stopping;
    pthread_mutex_unlock(&e->watch_lock);
    return goes_on;
}

static void *watch(void *context) {
    xp_nccl_engine *e = context;
    xp_nccl_mark seen = {0};
    bool waiting = false, over = false;
    while (!over && rest(e)) {
        const sight what = look(e, &seen);
        const bool waits = what == WAITING || what == LATE;
        if (waits != waiting)
            xp_comm_mark_waiting(e->base.comm, waits ? 1 : -1);
        waiting = waits;
        if (what == BROKEN)
            xp_comm_abort(e->base.comm, xp_last_error());
        if (what == LATE)
            xp_nccl_report_late(e, seen.kind, seen.phase);
        over = what == BROKEN || what == LATE || (what != NOTHING && has_failed(e));
    }
    if (waiting)
        xp_comm_mark_waiting(e->base.comm, -1);
    if (over)
        xp_nccl_abort(e);
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
    pthread_mutex_lock(&e->watch_lock);
    e->stopping = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->watch_lock);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)STOP_S;
    return pthread_timedjoin_np(e->watcher, NULL, &until) == 0;
}
