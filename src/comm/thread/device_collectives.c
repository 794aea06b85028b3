/*
 * Collectives of rank threads on the same GPU. The host never waits for the device: every rank
 * records an event where its data is ready, host barrier, each rank queues its part of the work
 * behind all ranks' events and records a second event, host barrier, and later work of every rank
 * waits for all second events. Same sums, same order as on the host.
 */
#include <stdio.h>
#include <string.h>
#include "comm/thread/device_collectives.h"
#include "comm/thread/collectives.h"
#include "device/plugin.h"

static xp_status copy(xp_stream *stream, void *dst, const void *src, int64_t n_bytes) {
    return n_bytes > 0 && dst != src ? xp_copy(stream, dst, src, (size_t)n_bytes) : XP_OK;
}

static xp_status reduce(xp_thread_comm *comm, int64_t first_byte, int64_t n, bool to_all,
                        const xp_comm_call *call, xp_stream *stream) {
    const xp_team *team = comm->team;
    const xp_cuda_backend *backend;
    XP_TRY(xp_cuda_backend_get(&backend));
    if (n == 0)
        return XP_OK;
    for (int i = 0; i < team->size; i++) {
        comm->src[i] = (const char *)team->slots[i].call.send + first_byte;
        if (to_all)
            comm->dst[i] = (char *)team->slots[i].call.recv + first_byte;
    }
    if (!to_all)
        comm->dst[0] = call->recv;
    const xp_reduce_args args = {.src = comm->src,
                                 .n_src = team->size,
                                 .dst = comm->dst,
                                 .n_dst = to_all ? team->size : 1,
                                 .n = n,
                                 .dtype = call->dtype,
                                 .op = call->op};
    return backend->reduce(stream, &args);
}

/* This rank's part of the work. */
static xp_status run(xp_thread_comm *comm, const xp_comm_call *call, xp_stream *stream) {
    const xp_team_slot *slots = comm->team->slots;
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    const int me = comm->base.rank, n_ranks = comm->base.size;
    if (call->kind == XP_COMM_ALL_REDUCE) {
        int64_t first = xp_thread_piece_start(call->n, n_ranks, me);
        int64_t n = xp_thread_piece_start(call->n, n_ranks, me + 1) - first;
        return reduce(comm, first * size, n, true, call, stream);
    }
    if (call->kind == XP_COMM_REDUCE_SCATTER)
        return reduce(comm, call->n * me * size, call->n, false, call, stream);
    for (int i = 0; i < n_ranks; i++) {
        const int peer = (me + 1 + i) % n_ranks;
        const xp_comm_call *theirs = &slots[peer].call;
        const int64_t n_bytes = call->n * size;
        char *to = (char *)call->recv + n_bytes * peer;
        if (call->kind == XP_COMM_ALL_GATHER)
            XP_TRY(copy(stream, to, theirs->send, n_bytes));
        else if (call->kind == XP_COMM_ALL_TO_ALL)
            XP_TRY(copy(stream, to, (const char *)theirs->send + n_bytes * me, n_bytes));
        else if (call->kind == XP_COMM_ALL_TO_ALLV)
            XP_TRY(copy(stream, (char *)call->v.recv + call->v.recv_offsets[peer],
                        (const char *)theirs->v.send + theirs->v.send_offsets[me],
                        call->v.recv_bytes[peer]));
        else if (call->kind == XP_COMM_BROADCAST && peer == call->root)
            XP_TRY(copy(stream, call->recv, theirs->send, n_bytes));
    }
    return XP_OK;
}

/* All ranks' calls are on streams of the same GPU. */
static xp_status check_devices(xp_thread_comm *comm, const xp_stream *stream) {
    const xp_team *team = comm->team;
    const char *mine = xp_device_name(xp_stream_device(stream));
    char text[256];
    for (int i = 0; i < team->size; i++) {
        if (team->slots[i].ready && strcmp(team->slots[i].device_name, mine) == 0)
            continue;
        snprintf(text, sizeof text,
                 "rank %d makes a collective on %s, rank %d on %s; ranks on several devices need "
                 "NCCL",
                 team->world_ranks[comm->base.rank], mine, team->world_ranks[i],
                 team->slots[i].ready ? team->slots[i].device_name : "the host");
        return xp_comm_fail_mismatch(&comm->base, text);
    }
    return XP_OK;
}

static xp_status wait_for(xp_thread_comm *comm, xp_stream *stream, bool done) {
    const xp_team_slot *slots = comm->team->slots;
    for (int i = 0; i < comm->base.size; i++)
        if (i != comm->base.rank)
            XP_TRY(xp_event_wait(done ? slots[i].done : slots[i].ready, stream));
    return XP_OK;
}

/* Between the two events; both are recorded whatever happens, so that nobody waits for nothing.
 * @param[out] shown  peers know the events and may still use them */
static xp_status run_between_events(xp_thread_comm *comm, const xp_comm_call *call,
                                    xp_stream *stream, xp_team_slot *own, bool *shown) {
    XP_TRY(xp_event_record(own->ready, stream));
    XP_TRY(xp_team_enter(comm, call->kind, call->phase));
    *shown = true;
    xp_status status = xp_thread_check_match(comm, call);
    if (status == XP_OK)
        status = check_devices(comm, stream);
    if (status == XP_OK)
        status = wait_for(comm, stream, false);
    if (status == XP_OK)
        status = run(comm, call, stream);
    if (status == XP_OK)
        status = xp_event_record(own->done, stream);
    if (status != XP_OK)
        xp_comm_abort(&comm->base, NULL);
    const xp_status left = xp_team_leave(comm);
    if (status != XP_OK || left != XP_OK)
        return status != XP_OK ? status : left;
    XP_TRY(wait_for(comm, stream, true));
    /* Once more: the events are gone after this call. */
    XP_TRY(xp_team_enter(comm, call->kind, call->phase));
    *shown = false;
    return xp_team_leave(comm);
}

xp_status xp_thread_run_on_device(xp_comm *base, const xp_comm_call *call, xp_stream *stream) {
    xp_thread_comm *comm = (xp_thread_comm *)base;
    xp_device *device = xp_stream_device(stream);
    xp_team_slot *own = &comm->team->slots[base->rank];
    xp_event *ready = NULL, *done = NULL;
    bool shown = false;
    comm->n_device_calls++;
    XP_TRY(xp_event_create(device, &ready));
    xp_status status = xp_event_create(device, &done);
    if (status == XP_OK) {
        own->call = *call;
        own->ready = ready;
        own->done = done;
        own->device_name = xp_device_name(device);
        status = run_between_events(comm, call, stream, own, &shown);
    }
    /* After a failure peers may be on their way to them; ids of windows are not negative. */
    if (shown && !xp_team_final_barrier(comm, -comm->n_device_calls))
        return status;
    xp_event_destroy(ready);
    xp_event_destroy(done);
    return status;
}
