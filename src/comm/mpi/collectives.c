/*
 * Collectives, made of exchanges on the calling thread. Reductions add in ascending rank order as
 * all providers do, so none of MPI's own can be used: every rank gets everybody's share of its
 * piece, adds, and shows the result.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/mpi/collectives.h"
#include "comm/mpi/failure.h"
#include "comm/mpi/progress.h"
#include "comm/reduce.h"

/* What ranks send of a reduction at a time, from all ranks together. */
#define SCRATCH_BYTES ((int64_t)8 << 20)
/* Up to here everybody gets everything and adds it all: one exchange instead of two. */
#define SMALL_BYTES ((int64_t)16 << 10)

static const char *phase_name(const xp_comm_call *call) {
    return call->phase ? call->phase : xp_comm_kind_name(call->kind);
}

/* A new call: what goes into every exchange of it. */
static xp_mpi_exchange *begin(xp_mpi_comm *comm, const xp_comm_call *call) {
    xp_mpi_exchange *x = &comm->exchange;
    x->head = (xp_mpi_head){.n_call = ++comm->n_calls,
                            .n = call->n,
                            .kind = (int32_t)call->kind,
                            .dtype = (int32_t)call->dtype,
                            .op = (int32_t)call->op,
                            .root = call->root};
    x->phase = call->phase;
    snprintf(x->head.phase, sizeof x->head.phase, "%s", call->phase ? call->phase : "");
    xp_liveness_set_activity(&comm->world->liveness, phase_name(call));
    return x;
}

static void set_peer(xp_mpi_exchange *x, int peer, const void *send, int64_t send_bytes, void *recv,
                     int64_t recv_bytes) {
    x->peers[peer] = (xp_mpi_peer){
        .send = send, .send_bytes = send_bytes, .recv = recv, .recv_bytes = recv_bytes};
}

static xp_status run(xp_mpi_exchange *x) {
    XP_TRY(xp_mpi_exchange_run(x));
    x->head.step++;
    return XP_OK;
}

static void copy(void *dst, const void *src, int64_t n_bytes) {
    if (n_bytes > 0 && dst != src)
        memcpy(dst, src, (size_t)n_bytes);
}

static xp_status need_scratch(xp_mpi_comm *comm, int64_t n_bytes) {
    if (comm->scratch_bytes >= (size_t)n_bytes)
        return XP_OK;
    free(comm->scratch);
    comm->scratch_bytes = 0;
    comm->scratch = aligned_alloc(64, ((size_t)n_bytes + 63) / 64 * 64);
    if (!comm->scratch)
        return xp_error(XP_ENOMEM, "no memory (%lld bytes) for a reduction over %d ranks",
                        (long long)n_bytes, comm->base.size);
    comm->scratch_bytes = (size_t)n_bytes;
    return XP_OK;
}

/* Add what lies in the scratch of each peer, `stride` bytes apart, and `mine` in its place. */
static void reduce(xp_mpi_comm *comm, const xp_comm_call *call, const void *mine, int64_t stride,
                   int64_t n, void *result) {
    for (int i = 0; i < comm->base.size; i++)
        comm->sources[i] = i == comm->base.rank ? mine : comm->scratch + i * stride;
    xp_reduce_to_one(comm->sources, comm->base.size, n, call->dtype, call->op, result);
}

/* Elements of each rank's piece that are reduced at a time. */
static int64_t elements_at_a_time(const xp_mpi_comm *comm, int64_t size) {
    int64_t n = SCRATCH_BYTES / comm->base.size / size / 64 * 64;
    return n > 64 ? n : 64;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static xp_status reduce_small(xp_mpi_comm *comm, const xp_comm_call *call) {
    int64_t n_bytes = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    xp_mpi_exchange *x = &comm->exchange;
    XP_TRY(need_scratch(comm, n_bytes * comm->base.size));
    for (int i = 0; i < comm->base.size; i++)
        set_peer(x, i, call->send, n_bytes, comm->scratch + i * n_bytes, n_bytes);
    XP_TRY(run(x));
    if (call->n > 0)
        reduce(comm, call, call->send, n_bytes, call->n, call->recv);
    return XP_OK;
}

/* One exchange that brings everybody's share of this rank's piece, and the sum. */
static xp_status gather_and_reduce(xp_mpi_comm *comm, const xp_comm_call *call, const xp_pieces *p,
                                   void *result) {
    xp_mpi_exchange *x = &comm->exchange;
    int64_t size = (int64_t)xp_dtype_bytes(call->dtype), n_mine = 0;
    int64_t mine = xp_piece_of(p, comm->base.rank, &n_mine);
    int64_t stride = (p->n * size + 63) / 64 * 64;
    for (int i = 0; i < comm->base.size; i++) {
        int64_t n = 0, first = xp_piece_of(p, i, &n);
        set_peer(x, i, (const char *)call->send + first * size, n * size,
                 comm->scratch + i * stride, n_mine * size);
    }
    XP_TRY(run(x));
    if (n_mine > 0)
        reduce(comm, call, (const char *)call->send + mine * size, stride, n_mine, result);
    return XP_OK;
}

static xp_status run_all_reduce(xp_mpi_comm *comm, const xp_comm_call *call) {
    xp_mpi_exchange *x = &comm->exchange;
    int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    if (call->n * size <= SMALL_BYTES)
        return reduce_small(comm, call);
    int64_t each = xp_piece_size(call->n, comm->base.size);
    int64_t step = smaller(elements_at_a_time(comm, size), each);
    XP_TRY(need_scratch(comm, (step * size + 63) / 64 * 64 * comm->base.size));
    for (int64_t at = 0; at < each; at += step) {
        xp_pieces p = {.total = call->n, .each = each, .at = at, .n = step};
        int64_t n_mine = 0, mine = xp_piece_of(&p, comm->base.rank, &n_mine);
        char *result = (char *)call->recv + mine * size;
        XP_TRY(gather_and_reduce(comm, call, &p, result));
        for (int i = 0; i < comm->base.size; i++) {
            int64_t n = 0, first = xp_piece_of(&p, i, &n);
            set_peer(x, i, result, n_mine * size, (char *)call->recv + first * size, n * size);
        }
        XP_TRY(run(x));
    }
    return XP_OK;
}

static xp_status run_reduce_scatter(xp_mpi_comm *comm, const xp_comm_call *call) {
    int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    int64_t step = smaller(elements_at_a_time(comm, size), call->n > 0 ? call->n : 1);
    XP_TRY(need_scratch(comm, (step * size + 63) / 64 * 64 * comm->base.size));
    int64_t at = 0;
    do {
        xp_pieces p = {.total = call->n * comm->base.size,
                       .each = call->n,
                       .at = at,
                       .n = smaller(step, call->n - at)};
        XP_TRY(gather_and_reduce(comm, call, &p, (char *)call->recv + at * size));
        at += step;
    } while (at < call->n);
    return XP_OK;
}

static xp_status run_all_gather(xp_mpi_comm *comm, const xp_comm_call *call) {
    int64_t n_bytes = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    char *recv = call->recv;
    for (int i = 0; i < comm->base.size; i++)
        set_peer(&comm->exchange, i, call->send, n_bytes, recv + i * n_bytes, n_bytes);
    copy(recv + comm->base.rank * n_bytes, call->send, n_bytes);
    return run(&comm->exchange);
}

static xp_status run_all_to_all(xp_mpi_comm *comm, const xp_comm_call *call) {
    const char *send = call->send;
    char *recv = call->recv;
    int64_t own = call->n * comm->base.rank;
    for (int i = 0; i < comm->base.size; i++)
        set_peer(&comm->exchange, i, send + i * call->n, call->n, recv + i * call->n, call->n);
    copy(recv + own, send + own, call->n);
    return run(&comm->exchange);
}

static xp_status run_all_to_allv(xp_mpi_comm *comm, const xp_comm_call *call) {
    const xp_alltoallv_args *v = &call->v;
    int me = comm->base.rank;
    for (int i = 0; i < comm->base.size; i++)
        set_peer(&comm->exchange, i, (const char *)v->send + v->send_offsets[i], v->send_bytes[i],
                 (char *)v->recv + v->recv_offsets[i], v->recv_bytes[i]);
    if (v->send_bytes[me] != v->recv_bytes[me]) {
        char text[200];
        snprintf(text, sizeof text,
                 "all-to-allv (%s): rank %d sends %lld bytes to itself and expects %lld",
                 phase_name(call), comm->world->rank, (long long)v->send_bytes[me],
                 (long long)v->recv_bytes[me]);
        xp_mpi_fail(comm->world, XP_FAILURE_MISMATCH, comm->world->rank, text);
        return xp_mpi_world_status(comm->world);
    }
    if (v->recv_bytes[me] > 0)
        copy((char *)v->recv + v->recv_offsets[me], (const char *)v->send + v->send_offsets[me],
             v->recv_bytes[me]);
    return run(&comm->exchange);
}

/* What is long goes out in pieces that the ranks pass on to each other, so that the root does not
 * send it all once for each of them. */
static xp_status run_broadcast(xp_mpi_comm *comm, const xp_comm_call *call) {
    xp_mpi_exchange *x = &comm->exchange;
    int size = comm->base.size, me = comm->base.rank;
    char *data = call->recv;
    bool root = me == call->root, cut = call->n > SMALL_BYTES && size > 2;
    int64_t each = cut ? (call->n / size + 64) / 64 * 64 : call->n;
    int64_t n_mine = smaller(each, call->n - smaller(each * me, call->n));
    for (int i = 0; i < size; i++) {
        int64_t first = cut ? smaller(each * i, call->n) : 0;
        int64_t n = smaller(each, call->n - first);
        set_peer(x, i, data + first, root ? n : 0, data + (cut ? smaller(each * me, call->n) : 0),
                 i == call->root ? (cut ? n_mine : call->n) : 0);
    }
    XP_TRY(run(x));
    if (!cut)
        return XP_OK;
    for (int i = 0; i < size; i++) {
        int64_t first = smaller(each * i, call->n), n = smaller(each, call->n - first);
        set_peer(x, i, data + smaller(each * me, call->n), n_mine, data + first, n);
    }
    return run(x);
}

static xp_status dispatch(xp_mpi_comm *comm, const xp_comm_call *call) {
    begin(comm, call);
    switch (call->kind) {
    case XP_COMM_ALL_REDUCE:
        return run_all_reduce(comm, call);
    case XP_COMM_REDUCE_SCATTER:
        return run_reduce_scatter(comm, call);
    case XP_COMM_ALL_GATHER:
        return run_all_gather(comm, call);
    case XP_COMM_ALL_TO_ALLV:
        return run_all_to_allv(comm, call);
    case XP_COMM_ALL_TO_ALL:
        return run_all_to_all(comm, call);
    case XP_COMM_BROADCAST:
        return run_broadcast(comm, call);
    default:
        for (int i = 0; i < comm->base.size; i++)
            set_peer(&comm->exchange, i, NULL, 0, NULL, 0);
        return run(&comm->exchange);
    }
}

xp_status xp_mpi_run(xp_comm *base, const xp_comm_call *call) {
    xp_mpi_comm *comm = (xp_mpi_comm *)base;
    pthread_mutex_lock(&comm->lock);
    xp_status status = dispatch(comm, call);
    pthread_mutex_unlock(&comm->lock);
    return status;
}

xp_status xp_mpi_gather_bytes(xp_mpi_comm *comm, xp_comm_kind kind, const void *mine, void *all,
                              int64_t n_bytes) {
    xp_comm_call call = {.kind = kind,
                         .dtype = XP_U8,
                         .n = n_bytes,
                         .send = mine,
                         .recv = all,
                         .phase = atomic_load(&comm->base.phase)};
    pthread_mutex_lock(&comm->lock);
    begin(comm, &call);
    xp_status status = run_all_gather(comm, &call);
    pthread_mutex_unlock(&comm->lock);
    return status;
}
