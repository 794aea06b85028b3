/*
 * Collectives in one address space: every rank publishes its buffers, barrier, each rank reads and
 * writes its part, barrier. Reductions are split: rank c reduces piece c of
 * everybody and writes it into everybody's result, so no rank needs scratch and a result may be the
 * input's own memory.
 */
#include <stdio.h>
#include <string.h>
#include "comm/reduce.h"
#include "comm/thread/collectives.h"

/* Boundaries of pieces are multiples of 64 elements, so that ranks do not share cache lines. */
int64_t xp_thread_piece_start(int64_t n, int size, int piece) {
    int64_t each = (n + size - 1) / size;
    each = (each + 63) / 64 * 64;
    return each * piece < n ? each * piece : n;
}

static void copy(void *dst, const void *src, int64_t n_bytes) {
    if (n_bytes > 0 && dst != src)
        memcpy(dst, src, (size_t)n_bytes);
}

static void run_all_reduce(xp_thread_comm *comm, const xp_comm_call *call) {
    const xp_team *team = comm->team;
    int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    int64_t first = xp_thread_piece_start(call->n, team->size, comm->base.rank);
    int64_t n = xp_thread_piece_start(call->n, team->size, comm->base.rank + 1) - first;
    if (n == 0)
        return;
    for (int i = 0; i < team->size; i++) {
        comm->src[i] = (const char *)team->slots[i].call.send + first * size;
        comm->dst[i] = (char *)team->slots[i].call.recv + first * size;
    }
    xp_reduce_run(&(xp_reduce_args){.src = comm->src,
                                    .n_src = team->size,
                                    .dst = comm->dst,
                                    .n_dst = team->size,
                                    .n = n,
                                    .dtype = call->dtype,
                                    .op = call->op});
}

static void run_reduce_scatter(xp_thread_comm *comm, const xp_comm_call *call) {
    const xp_team *team = comm->team;
    if (call->n == 0)
        return;
    int64_t first = call->n * comm->base.rank * (int64_t)xp_dtype_bytes(call->dtype);
    for (int i = 0; i < team->size; i++)
        comm->src[i] = (const char *)team->slots[i].call.send + first;
    xp_reduce_to_one(comm->src, team->size, call->n, call->dtype, XP_SUM, call->recv);
}

/* Peers in an order that starts after this rank, so that ranks do not all read the same memory at
 * once. */
static int peer_at(const xp_thread_comm *comm, int i) {
    return (comm->base.rank + 1 + i) % comm->base.size;
}

static void run_all_gather(const xp_thread_comm *comm, const xp_comm_call *call) {
    int64_t n_bytes = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    for (int i = 0; i < comm->base.size; i++) {
        int peer = peer_at(comm, i);
        copy((char *)call->recv + n_bytes * peer, comm->team->slots[peer].call.send, n_bytes);
    }
}

static void run_all_to_all(const xp_thread_comm *comm, const xp_comm_call *call) {
    int64_t first = call->n * comm->base.rank;
    for (int i = 0; i < comm->base.size && call->n > 0; i++) {
        int peer = peer_at(comm, i);
        copy((char *)call->recv + call->n * peer,
             (const char *)comm->team->slots[peer].call.send + first, call->n);
    }
}

static void run_all_to_allv(const xp_thread_comm *comm, const xp_comm_call *call) {
    for (int i = 0; i < comm->base.size; i++) {
        int peer = peer_at(comm, i);
        const xp_alltoallv_args *theirs = &comm->team->slots[peer].call.v;
        if (call->v.recv_bytes[peer] > 0)
            copy((char *)call->v.recv + call->v.recv_offsets[peer],
                 (const char *)theirs->send + theirs->send_offsets[comm->base.rank],
                 call->v.recv_bytes[peer]);
    }
}

/* XP_ECOMM for all when two ranks do not make the same call: better here than as garbage in a
 * tensor. */
xp_status xp_thread_check_match(xp_thread_comm *comm, const xp_comm_call *mine) {
    const xp_team *team = comm->team;
    char text[400];
    for (int i = 0; i < team->size; i++) {
        const xp_comm_call *call = &team->slots[i].call;
        int me = team->world_ranks[comm->base.rank], other = team->world_ranks[i];
        if (call->kind != mine->kind || call->n != mine->n || call->dtype != mine->dtype ||
            call->op != mine->op || call->root != mine->root) {
            snprintf(text, sizeof text,
                     "ranks do not make the same call: rank %d %s of %lld x %s (%s), rank %d %s of "
                     "%lld x %s (%s)",
                     me, xp_comm_kind_name(mine->kind), (long long)mine->n,
                     xp_dtype_name(mine->dtype), mine->phase ? mine->phase : "no phase", other,
                     xp_comm_kind_name(call->kind), (long long)call->n, xp_dtype_name(call->dtype),
                     call->phase ? call->phase : "no phase");
            return xp_comm_fail_mismatch(&comm->base, text);
        }
        if (mine->kind != XP_COMM_ALL_TO_ALLV ||
            call->v.send_bytes[comm->base.rank] == mine->v.recv_bytes[i])
            continue;
        snprintf(text, sizeof text,
                 "all-to-allv (%s): rank %d sends %lld bytes to rank %d, which expects %lld",
                 mine->phase ? mine->phase : "no phase", other,
                 (long long)call->v.send_bytes[comm->base.rank], me,
                 (long long)mine->v.recv_bytes[i]);
        return xp_comm_fail_mismatch(&comm->base, text);
    }
    return XP_OK;
}

xp_status xp_thread_run(xp_comm *base, const xp_comm_call *call) {
    xp_thread_comm *comm = (xp_thread_comm *)base;
    comm->team->slots[base->rank].call = *call;
    comm->team->slots[base->rank].ready = NULL;
    XP_TRY(xp_team_enter(comm, call->kind, call->phase));
    xp_status status = xp_thread_check_match(comm, call);
    if (status == XP_OK) {
        switch (call->kind) {
        case XP_COMM_ALL_REDUCE:
            run_all_reduce(comm, call);
            break;
        case XP_COMM_REDUCE_SCATTER:
            run_reduce_scatter(comm, call);
            break;
        case XP_COMM_ALL_GATHER:
            run_all_gather(comm, call);
            break;
        case XP_COMM_ALL_TO_ALLV:
            run_all_to_allv(comm, call);
            break;
        case XP_COMM_ALL_TO_ALL:
            run_all_to_all(comm, call);
            break;
        case XP_COMM_BROADCAST:
            copy(call->recv, comm->team->slots[call->root].call.send, call->n);
            break;
        default:
            break; /* a barrier is done by now; the second one makes the slots reusable */
        }
    }
    xp_status left = xp_team_leave(comm);
    return status != XP_OK ? status : left;
}
