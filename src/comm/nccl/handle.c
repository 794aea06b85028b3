/* NCCL's communicator, which several threads use: state, abort, and the report of a timeout. */
#include "comm/nccl/handle.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>
#include "core/file.h"
#include "core/text.h"

/* A call that NCCL hands to a thread of its own takes some ten microseconds; connecting to a peer,
 * milliseconds. */
#define YIELD_S 200e-6
#define SLEEP_S 50e-6

/* ---- who is missing ----------------------------------------------------------------------- */

/* Ranks that do not wait themselves; where there is none, those of other nodes, which cannot be
 * seen; where there is none either, all. */
xp_status xp_nccl_report_timeout(xp_nccl_backend *e, xp_comm_kind kind, const char *phase) {
    xp_comm *comm = e->base.comm;
    const int n_busy = xp_comm_count_in_state(comm, XP_WAIT_BUSY);
    const int n_unknown = xp_comm_count_in_state(comm, XP_WAIT_UNKNOWN);
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

/* ---- calls -------------------------------------------------------------------------------- */

xp_status xp_nccl_lock(xp_nccl_backend *e) {
    pthread_mutex_lock(&e->lock);
    if (e->nccl)
        return XP_OK;
    pthread_mutex_unlock(&e->lock);
    XP_TRY(xp_comm_async_error(e->base.comm));
    return xp_error(XP_ECOMM, "NCCL was given up on this communicator; destroy it");
}

void xp_nccl_unlock(xp_nccl_backend *e) {
    pthread_mutex_unlock(&e->lock);
}

/* No other thread calls NCCL once `nccl` is gone, so the abort itself needs no lock: it may take a
 * while. */
void xp_nccl_abort(xp_nccl_backend *e) {
    pthread_mutex_lock(&e->lock);
    void *nccl = e->nccl;
    e->nccl = NULL;
    pthread_mutex_unlock(&e->lock);
    if (nccl && e->calls->comm_abort(nccl) == XP_NCCL_FAILED)
        xp_error_clear(); /* the failure that led here is the one to tell */
}

xp_status xp_nccl_fail(xp_nccl_backend *e, const char *text) {
    xp_comm_fail(e->base.comm, text);
    xp_nccl_abort(e);
    return xp_comm_async_error(e->base.comm);
}

static xp_status fail_call(xp_nccl_backend *e, const xp_comm_call *call) {
    char text[800];
    snprintf(text, sizeof text, "rank %d in %s%s%s%s on %s: %s",
             xp_comm_world_rank(e->base.comm, e->base.comm->rank), xp_comm_kind_name(call->kind),
             call->phase ? " (" : "", call->phase ? call->phase : "", call->phase ? ")" : "",
             xp_device_name(e->base.device), xp_last_error());
    return xp_nccl_fail(e, text);
}

static xp_status ask(xp_nccl_backend *e, xp_nccl_state *state) {
    XP_TRY(xp_nccl_lock(e));
    *state = e->calls->comm_state(e->nccl);
    xp_nccl_unlock(e);
    return XP_OK;
}

static xp_status wait_while_busy(xp_nccl_backend *e, const xp_comm_call *call, double timeout_s,
                                 xp_nccl_state *state) {
    const double began = xp_time_s();
    for (;;) {
        XP_TRY(ask(e, state));
        if (*state != XP_NCCL_BUSY)
            return XP_OK;
        if (xp_comm_async_error(e->base.comm) != XP_OK) {
            xp_nccl_abort(e);
            return xp_comm_async_error(e->base.comm);
        }
        const double waited = xp_time_s() - began;
        if (waited > timeout_s) {
            xp_nccl_report_timeout(e, call->kind, call->phase);
            xp_nccl_abort(e);
            return xp_comm_async_error(e->base.comm);
        }
        if (waited < YIELD_S)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = (long)(SLEEP_S * 1e9)}, NULL);
    }
}

xp_status xp_nccl_settle(xp_nccl_backend *e, const xp_comm_call *call, xp_nccl_state state) {
    xp_status status = XP_OK;
    if (state == XP_NCCL_BUSY) {
        /* Peers that miss this rank should blame whom it waits for. */
        xp_comm_mark_waiting(e->base.comm, 1);
        status = wait_while_busy(e, call, e->base.comm->timeout_s, &state);
        xp_comm_mark_waiting(e->base.comm, -1);
    }
    XP_TRY(status);
    return state == XP_NCCL_FAILED ? fail_call(e, call) : XP_OK;
}
