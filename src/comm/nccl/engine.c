/* NCCL's communicator of one xp_comm: made, asked, given up, destroyed. */
#include "comm/nccl/engine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "comm/nccl/internal.h"
#include "core/file.h"
#include "core/sync.h"

/* A call that NCCL hands to a thread of its own takes some ten microseconds; connecting to a peer,
 * milliseconds. */
#define YIELD_S 200e-6
#define SLEEP_S 50e-6
/* What is under way when a communicator is destroyed is not waited for longer. */
#define DESTROY_S 10.0

static const char phase[] = "connecting GPUs through NCCL";

/* ---- calls -------------------------------------------------------------------------------- */

xp_status xp_nccl_lock(xp_nccl_engine *e) {
    pthread_mutex_lock(&e->lock);
    if (e->nccl)
        return XP_OK;
    pthread_mutex_unlock(&e->lock);
    XP_TRY(xp_comm_async_error(e->base.comm));
    return xp_error(XP_ECOMM, "NCCL was given up on this communicator; destroy it");
}

void xp_nccl_unlock(xp_nccl_engine *e) {
    pthread_mutex_unlock(&e->lock);
}

/* No other thread calls NCCL once `nccl` is gone, so the abort itself needs no lock: it may take a
 * while. */
void xp_nccl_abort(xp_nccl_engine *e) {
    pthread_mutex_lock(&e->lock);
    void *nccl = e->nccl;
    e->nccl = NULL;
    pthread_mutex_unlock(&e->lock);
    if (nccl && e->calls->comm_abort(nccl) == XP_NCCL_FAILED)
        xp_error_clear(); /* the failure that led here is the one to tell */
}

xp_status xp_nccl_fail(xp_nccl_engine *e, const char *text) {
    xp_comm_fail(e->base.comm, text);
    xp_nccl_abort(e);
    return xp_comm_async_error(e->base.comm);
}

static xp_status fail_call(xp_nccl_engine *e, const xp_comm_call *call) {
    char text[800];
    snprintf(text, sizeof text, "rank %d in %s%s%s%s on %s: %s",
             xp_comm_world_rank(e->base.comm, e->base.comm->rank), xp_comm_kind_name(call->kind),
             call->phase ? " (" : "", call->phase ? call->phase : "", call->phase ? ")" : "",
             xp_device_name(e->base.device), xp_last_error());
    return xp_nccl_fail(e, text);
}

static xp_status ask(xp_nccl_engine *e, xp_nccl_state *state) {
    XP_TRY(xp_nccl_lock(e));
    *state = e->calls->comm_state(e->nccl);
    xp_nccl_unlock(e);
    return XP_OK;
}

static xp_status wait_while_busy(xp_nccl_engine *e, const xp_comm_call *call, double timeout_s,
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
            xp_nccl_report_late(e, call->kind, call->phase);
            xp_nccl_abort(e);
            return xp_comm_async_error(e->base.comm);
        }
        if (waited < YIELD_S)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = (long)(SLEEP_S * 1e9)}, NULL);
    }
}

xp_status xp_nccl_settle(xp_nccl_engine *e, const xp_comm_call *call, xp_nccl_state state) {
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

/* ---- destroy ------------------------------------------------------------------------------ */

/* In good order only while all ranks are well: NCCL waits for them. */
static void part(xp_nccl_engine *e) {
    const xp_comm *comm = e->base.comm;
    if (!e->nccl)
        return;
    xp_nccl_state state = XP_NCCL_FAILED;
    if (xp_comm_async_error(comm) == XP_OK)
        state = e->calls->comm_finalize(e->nccl);
    const double limit = comm->timeout_s < DESTROY_S ? comm->timeout_s : DESTROY_S;
    const double deadline = xp_time_s() + limit;
    while (state == XP_NCCL_BUSY && xp_time_s() < deadline && xp_comm_async_error(comm) == XP_OK) {
        nanosleep(&(struct timespec){.tv_nsec = (long)(SLEEP_S * 1e9)}, NULL);
        state = e->calls->comm_state(e->nccl);
    }
    if (state != XP_NCCL_OK) {
        xp_nccl_abort(e);
        return;
    }
    if (e->calls->comm_destroy(e->nccl) == XP_NCCL_FAILED)
        xp_error_clear();
    e->nccl = NULL;
}

static void destroy(xp_comm_engine *engine) {
    xp_nccl_engine *e = (xp_nccl_engine *)engine;
    if (!xp_nccl_watch_stop(e))
        return; /* what it uses stays: a communicator that failed, in a process about to end */
    part(e);
    for (int i = 0; i < XP_NCCL_MARKS; i++) {
        xp_event_destroy(e->marks[i].begin);
        xp_event_destroy(e->marks[i].end);
    }
    xp_device_free(engine->device, e->flag);
    xp_device_free(engine->device, e->scratch);
    free(e->sources);
    free(e->parts);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->watch_lock);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

static const xp_comm_engine_ops nccl_ops = {.name = "NCCL", .run = xp_nccl_run, .destroy = destroy};

/* ---- create ------------------------------------------------------------------------------- */

static xp_status reserve(xp_nccl_engine *e, size_t max_bytes) {
    static const char tag[] = "communication";
    xp_device *device = e->base.device;
    const size_t n_ranks = (size_t)e->base.comm->size;
    void *data = NULL;
    e->parts = calloc(n_ranks, sizeof *e->parts);
    e->sources = calloc(n_ranks, sizeof *e->sources);
    if (!e->parts || !e->sources)
        return xp_error(XP_ENOMEM, "no memory for the collectives of %zu ranks", n_ranks);
    e->scratch_bytes = xp_nccl_scratch_bytes((int)n_ranks, max_bytes);
    XP_TRY(xp_device_alloc(device, (size_t)e->scratch_bytes, tag, &data));
    e->scratch = data;
    XP_TRY(xp_device_alloc(device, sizeof *e->flag, tag, &data));
    e->flag = data;
    for (int i = 0; i < XP_NCCL_MARKS; i++) {
        XP_TRY(xp_event_create(device, &e->marks[i].begin));
        XP_TRY(xp_event_create(device, &e->marks[i].end));
    }
    return XP_OK;
}

/* The lowest rank has the name under which the ranks find each other. Ranks that cannot go on tell
 * the others through the world (xp_comm_engine_create). */
static xp_status connect_ranks(xp_nccl_engine *e) {
    xp_comm *comm = e->base.comm;
    xp_nccl_id id = {{0}};
    const xp_comm_call call = {.kind = XP_COMM_BROADCAST,
                               .dtype = XP_U8,
                               .n = sizeof id,
                               .send = &id,
                               .recv = &id,
                               .phase = phase};
    if (comm->rank == 0 && e->calls->get_unique_id(&id) == XP_NCCL_FAILED)
        return fail_call(e, &call);
    XP_TRY(comm->provider->run(comm, &call));
    void *nccl = NULL;
    const xp_nccl_state state =
        e->calls->comm_init(e->base.device, comm->size, &id, comm->rank, &nccl);
    pthread_mutex_lock(&e->lock);
    e->nccl = nccl;
    pthread_mutex_unlock(&e->lock);
    const xp_comm_call init = {.kind = XP_COMM_SPLIT, .phase = phase};
    return xp_nccl_settle(e, &init, state);
}

/* NCCL connects a pair of ranks when they first have something for each other: let that be now. */
static xp_status try_all(xp_nccl_engine *e, xp_stream *stream) {
    const int64_t n = e->scratch_bytes / 2 / e->base.comm->size;
    const xp_comm_call calls[] = {
        {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = phase},
        {.kind = XP_COMM_ALL_TO_ALL,
         .dtype = XP_U8,
         .n = n,
         .send = e->scratch,
         .recv = e->scratch + n * e->base.comm->size,
         .phase = phase},
        {.kind = XP_COMM_ALL_GATHER,
         .dtype = XP_U8,
         .n = n,
         .send = e->scratch + n * e->base.comm->rank,
         .recv = e->scratch,
         .phase = phase},
        {.kind = XP_COMM_ALL_REDUCE,
         .dtype = XP_F32,
         .n = n / 4,
         .send = e->scratch,
         .recv = e->scratch,
         .phase = phase},
        {.kind = XP_COMM_REDUCE_SCATTER,
         .dtype = XP_F32,
         .n = n / 4,
         .send = e->scratch,
         .recv = e->scratch + n / 4 * 4 * e->base.comm->rank,
         .phase = phase},
    };
    /* Within a node sums are exchanges, and those were tried. */
    const size_t n_calls = e->base.comm->n_nodes > 1 ? 5 : 3;
    XP_TRY(xp_zero(stream, e->flag, sizeof *e->flag));
    XP_TRY(xp_zero(stream, e->scratch, (size_t)e->scratch_bytes));
    for (size_t i = 0; i < n_calls; i++)
        XP_TRY(xp_nccl_run(&e->base, &calls[i], stream));
    XP_TRY(xp_stream_sync(stream));
    return xp_comm_async_error(e->base.comm);
}

static xp_status start(xp_nccl_engine *e, size_t max_bytes) {
    xp_stream *stream = NULL;
    XP_TRY(reserve(e, max_bytes));
    XP_TRY(connect_ranks(e));
    XP_TRY(xp_nccl_watch_start(e));
    XP_TRY(xp_stream_create(e->base.device, XP_STREAM_COMPUTE, &stream));
    const xp_status status = try_all(e, stream);
    xp_stream_destroy(stream);
    return status;
}

xp_status xp_nccl_engine_create(const xp_nccl_engine_args *args, xp_comm_engine **engine) {
    xp_nccl_engine *e = calloc(1, sizeof *e);
    if (!e) {
        xp_comm_abort(args->comm, "no memory for the collectives of its GPU");
        return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks", args->comm->size);
    }
    e->base = (xp_comm_engine){.ops = &nccl_ops, .comm = args->comm, .device = args->device};
    e->calls = args->calls;
    e->reduce = args->reduce;
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->watch_lock, NULL);
    xp_cond_init(&e->changed);
    const xp_status status = start(e, args->max_bytes);
    if (status != XP_OK) {
        char why[1024];
        snprintf(why, sizeof why, "%s", xp_last_error());
        xp_comm_abort(args->comm, why);
        destroy(&e->base);
        return xp_error(status, "%s", why);
    }
    *engine = &e->base;
    return XP_OK;
}
