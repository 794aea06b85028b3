/* The NCCL backend: created, connected, tried and destroyed. */
#include "comm/nccl/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "comm/nccl/collectives.h"
#include "comm/nccl/watch.h"
#include "core/file.h"
#include "core/sync.h"

#define SLEEP_S 50e-6
/* What is under way when a communicator is destroyed is not waited for longer. */
#define DESTROY_S 10.0

static const char phase[] = "connecting GPUs through NCCL";

/* ---- destroy ------------------------------------------------------------------------------ */

/* In good order only while all ranks are well: NCCL waits for them. */
static void finalize(xp_nccl_backend *e) {
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

static void destroy(xp_comm_backend *backend) {
    xp_nccl_backend *e = (xp_nccl_backend *)backend;
    if (!xp_nccl_watch_stop(e))
        return; /* what it uses stays: a communicator that failed, in a process about to end */
    finalize(e);
    for (int i = 0; i < XP_NCCL_SPANS; i++) {
        xp_event_destroy(e->spans[i].begin);
        xp_event_destroy(e->spans[i].end);
    }
    xp_device_free(backend->device, e->flag);
    xp_device_free(backend->device, e->scratch);
    free(e->sources);
    free(e->parts);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->watch_lock);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

static const xp_comm_backend_ops nccl_ops = {
    .name = "NCCL", .run = xp_nccl_run, .destroy = destroy};

/* ---- create ------------------------------------------------------------------------------- */

static xp_status reserve(xp_nccl_backend *e, size_t max_bytes) {
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
    for (int i = 0; i < XP_NCCL_SPANS; i++) {
        XP_TRY(xp_event_create(device, &e->spans[i].begin));
        XP_TRY(xp_event_create(device, &e->spans[i].end));
    }
    return XP_OK;
}

/* The lowest rank has the name under which the ranks find each other. Ranks that cannot go on tell
 * the others through the world (xp_comm_backend_create). */
static xp_status connect_ranks(xp_nccl_backend *e) {
    xp_comm *comm = e->base.comm;
    xp_nccl_id id = {{0}};
    const xp_comm_call call = {.kind = XP_COMM_BROADCAST,
                               .dtype = XP_U8,
                               .n = sizeof id,
                               .send = &id,
                               .recv = &id,
                               .phase = phase};
    if (comm->rank == 0 && e->calls->get_unique_id(&id) == XP_NCCL_FAILED)
        return xp_nccl_settle(e, &call, XP_NCCL_FAILED);
    XP_TRY(comm->provider->run(comm, &call));
    void *nccl = NULL;
    const xp_nccl_state state =
        e->calls->comm_init(e->base.device, comm->size, &id, comm->rank, comm->max_ctas, &nccl);
    pthread_mutex_lock(&e->lock);
    e->nccl = nccl;
    pthread_mutex_unlock(&e->lock);
    const xp_comm_call init = {.kind = XP_COMM_SPLIT, .phase = phase};
    return xp_nccl_settle(e, &init, state);
}

/* All hosts at the same call: nobody is still in a driver call that waits for a GPU. */
static xp_status host_barrier(xp_nccl_backend *e) {
    const xp_comm_call call = {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = phase};
    return e->base.comm->provider->run(e->base.comm, &call);
}

/* NCCL connects ranks, reserves memory and loads kernels when a collective is used first: let that
 * be now, one collective at a time between host barriers, before any kernel waits for a peer. */
static xp_status warm_up(xp_nccl_backend *e, xp_stream *stream) {
    const int me = e->base.comm->rank, n_ranks = e->base.comm->size;
    const int64_t n = e->scratch_bytes / 2 / n_ranks;
    char *scratch = e->scratch;
    const xp_comm_call calls[] = {
        {.kind = XP_COMM_BARRIER},
        {.kind = XP_COMM_ALL_TO_ALL, .n = n, .send = scratch, .recv = scratch + n * n_ranks},
        {.kind = XP_COMM_ALL_GATHER, .n = n, .send = scratch + n * me, .recv = scratch},
        {.kind = XP_COMM_BROADCAST, .n = n, .send = scratch, .recv = scratch},
        {.kind = XP_COMM_ALL_REDUCE, .dtype = XP_F32, .n = n / 4, .send = scratch, .recv = scratch},
        {.kind = XP_COMM_REDUCE_SCATTER,
         .dtype = XP_F32,
         .n = n / 4,
         .send = scratch,
         .recv = scratch + n / 4 * 4 * me},
    };
    /* Within a node sums are exchanges, which the all-to-all has tried. */
    const size_t n_calls = e->base.comm->n_nodes > 1 ? 6 : 4;
    XP_TRY(xp_zero(stream, e->flag, sizeof *e->flag));
    XP_TRY(xp_zero(stream, e->scratch, (size_t)e->scratch_bytes));
    for (size_t i = 0; i < n_calls; i++) {
        xp_comm_call call = calls[i];
        call.phase = phase;
        if (call.kind != XP_COMM_ALL_REDUCE && call.kind != XP_COMM_REDUCE_SCATTER)
            call.dtype = XP_U8;
        XP_TRY(xp_stream_sync(stream));
        XP_TRY(host_barrier(e));
        XP_TRY(xp_nccl_run(&e->base, &call, stream));
    }
    XP_TRY(xp_stream_sync(stream));
    return xp_comm_async_error(e->base.comm);
}

static xp_status start(xp_nccl_backend *e, size_t max_bytes) {
    xp_stream *stream = NULL;
    XP_TRY(reserve(e, max_bytes));
    XP_TRY(connect_ranks(e));
    XP_TRY(xp_nccl_watch_start(e));
    XP_TRY(xp_stream_create(e->base.device, XP_STREAM_COMPUTE, &stream));
    const xp_status status = warm_up(e, stream);
    xp_stream_destroy(stream);
    return status;
}

xp_status xp_nccl_backend_create(const xp_nccl_backend_args *args, xp_comm_backend **backend) {
    xp_nccl_backend *e = calloc(1, sizeof *e);
    if (!e) {
        xp_comm_abort(args->comm, "no memory for the collectives of its GPU");
        return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks", args->comm->size);
    }
    e->base = (xp_comm_backend){.ops = &nccl_ops, .comm = args->comm, .device = args->device};
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
    *backend = &e->base;
    return XP_OK;
}
