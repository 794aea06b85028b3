#include "comm/nccl/collectives.h"

#include <stdio.h>
#include "comm/nccl/watch.h"
#include "comm/reduce.h"

/* Up to here everybody gets everything and adds it all: one call instead of two. */
#define SMALL_BYTES ((int64_t)64 << 10)
/* What others send of a reduction lies here until it is added. Beside GEMMs that fill a GPU each kernel
 * of a reduction waits for an SM, so a layer's gradients go in one piece, not in several. */
#define MOST_SCRATCH    ((int64_t)192 << 20)
#define UNKNOWN_SCRATCH ((int64_t)16 << 20)

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t xp_nccl_scratch_bytes(int n_ranks, size_t max_bytes) {
    const int64_t least = SMALL_BYTES * n_ranks;
    const int64_t wanted = max_bytes > 0 ? (int64_t)max_bytes : UNKNOWN_SCRATCH;
    /* Parts are rounded up to whole lines. */
    const int64_t n_bytes = wanted + (int64_t)256 * n_ranks;
    return smaller(n_bytes > least ? n_bytes : least, MOST_SCRATCH);
}

/* ---- building blocks ---------------------------------------------------------------------- */

static bool is_idle(const xp_nccl_backend *e) {
    for (int r = 0; r < e->base.comm->size; r++)
        if (r != e->base.comm->rank && e->parts[r].send_bytes + e->parts[r].recv_bytes > 0)
            return false;
    return true;
}

static xp_nccl_state queue_part(xp_nccl_backend *e, int peer, xp_stream *stream) {
    const xp_nccl_part *p = &e->parts[peer];
    xp_nccl_state state = XP_NCCL_OK;
    if (p->send_bytes > 0)
        state = e->calls->send(e->nccl, p->send, (size_t)p->send_bytes, peer, stream);
    if (state != XP_NCCL_FAILED && p->recv_bytes > 0)
        state = e->calls->recv(e->nccl, p->recv, (size_t)p->recv_bytes, peer, stream);
    return state;
}

/* One group, whatever happens inside it. */
static xp_nccl_state queue_parts(xp_nccl_backend *e, xp_stream *stream) {
    const int me = e->base.comm->rank, size = e->base.comm->size;
    char why[512] = "";
    if (e->calls->group_start() == XP_NCCL_FAILED)
        return XP_NCCL_FAILED;
    for (int i = 0; i < size - 1 && !why[0]; i++)
        if (queue_part(e, (me + 1 + i) % size, stream) == XP_NCCL_FAILED)
            snprintf(why, sizeof why, "%s", xp_last_error());
    const xp_nccl_state state = e->calls->group_end();
    if (!why[0])
        return state;
    xp_error(XP_ECOMM, "%s", why);
    return XP_NCCL_FAILED;
}

/* What `parts` says, and this rank's own part by a copy. */
static xp_status exchange(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    const xp_nccl_part *own = &e->parts[e->base.comm->rank];
    if (own->recv_bytes > 0 && own->send != own->recv)
        XP_TRY(xp_copy(stream, own->recv, own->send, (size_t)own->recv_bytes));
    if (is_idle(e))
        return XP_OK;
    XP_TRY(xp_nccl_lock(e));
    const xp_nccl_state state = queue_parts(e, stream);
    xp_nccl_unlock(e);
    return xp_nccl_settle(e, call, state);
}

static void set_part(xp_nccl_backend *e, int rank, xp_nccl_part part) {
    const bool own = rank == e->base.comm->rank;
    if (own)
        part.recv_bytes = part.send_bytes = 0;
    e->parts[rank] = part;
}

/* The sum in rank order: this rank's own data where it lies, the others' in the scratch. */
static xp_status add(xp_nccl_backend *e, const xp_comm_call *call, const void *mine, int64_t stride,
                     int64_t n, void *result, xp_stream *stream) {
    const xp_comm *comm = e->base.comm;
    if (n == 0)
        return XP_OK;
    for (int r = 0; r < comm->size; r++)
        e->sources[r] = r == comm->rank ? mine : e->scratch + r * stride;
    const xp_reduce_args args = {.src = e->sources,
                                 .n_src = comm->size,
                                 .dst = (void *const[]){result},
                                 .n_dst = 1,
                                 .n = n,
                                 .dtype = call->dtype,
                                 .op = call->op};
    return e->reduce(stream, &args);
}

/* ---- reductions --------------------------------------------------------------------------- */

/* NCCL's own sums send less between nodes; of bf16 they round at every hop. */
static bool adds_here(const xp_nccl_backend *e, xp_dtype dtype) {
    const xp_comm *comm = e->base.comm;
    return comm->size <= XP_COMM_MAX_ORDERED && (comm->n_nodes == 1 || dtype == XP_BF16);
}

static int64_t elements_at_a_time(const xp_nccl_backend *e, int64_t size) {
    const int64_t n = e->scratch_bytes / e->base.comm->size / size / 64 * 64;
    return n > 64 ? n : 64;
}

/* Everybody's share of this rank's piece, and the sum. */
static xp_status gather_and_add(xp_nccl_backend *e, const xp_comm_call *call, const xp_pieces *p,
                                void *result, xp_stream *stream) {
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype), stride = p->n * size;
    int64_t n_mine = 0;
    const int64_t mine = xp_piece_of(p, e->base.comm->rank, &n_mine);
    for (int r = 0; r < e->base.comm->size; r++) {
        int64_t n = 0;
        const int64_t first = xp_piece_of(p, r, &n);
        set_part(e, r,
                 (xp_nccl_part){.send = (const char *)call->send + first * size,
                                .send_bytes = n * size,
                                .recv = e->scratch + r * stride,
                                .recv_bytes = n_mine * size});
    }
    XP_TRY(exchange(e, call, stream));
    return add(e, call, (const char *)call->send + mine * size, stride, n_mine, result, stream);
}

static xp_status show_sums(xp_nccl_backend *e, const xp_comm_call *call, const xp_pieces *p,
                           const char *result, xp_stream *stream) {
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    int64_t n_mine = 0;
    xp_piece_of(p, e->base.comm->rank, &n_mine);
    for (int r = 0; r < e->base.comm->size; r++) {
        int64_t n = 0;
        const int64_t first = xp_piece_of(p, r, &n);
        set_part(e, r,
                 (xp_nccl_part){.send = result,
                                .send_bytes = n_mine * size,
                                .recv = (char *)call->recv + first * size,
                                .recv_bytes = n * size});
    }
    return exchange(e, call, stream);
}

static xp_status all_gather(xp_nccl_backend *e, const xp_comm_call *call, void *recv,
                            int64_t n_bytes, xp_stream *stream) {
    XP_TRY(xp_nccl_lock(e));
    const xp_nccl_state state =
        e->calls->all_gather(e->nccl, call->send, recv, (size_t)n_bytes, stream);
    xp_nccl_unlock(e);
    return xp_nccl_settle(e, call, state);
}

static xp_status all_reduce_by_nccl(xp_nccl_backend *e, const xp_comm_call *call,
                                    xp_stream *stream) {
    XP_TRY(xp_nccl_lock(e));
    const xp_nccl_state state = e->calls->all_reduce(e->nccl, call->send, call->recv, call->n,
                                                     call->dtype, call->op, stream);
    xp_nccl_unlock(e);
    return xp_nccl_settle(e, call, state);
}

static xp_status all_reduce(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype), n_bytes = call->n * size;
    if (!adds_here(e, call->dtype))
        return all_reduce_by_nccl(e, call, stream);
    if (n_bytes <= smaller(SMALL_BYTES, e->scratch_bytes / e->base.comm->size)) {
        XP_TRY(all_gather(e, call, e->scratch, n_bytes, stream));
        return add(e, call, call->send, n_bytes, call->n, call->recv, stream);
    }
    const int64_t each = xp_piece_size(call->n, e->base.comm->size);
    const int64_t step = smaller(elements_at_a_time(e, size), each);
    for (int64_t at = 0; at < each; at += step) {
        const xp_pieces p = {.total = call->n, .each = each, .at = at, .n = step};
        int64_t n_mine = 0;
        char *result = (char *)call->recv + xp_piece_of(&p, e->base.comm->rank, &n_mine) * size;
        XP_TRY(gather_and_add(e, call, &p, result, stream));
        XP_TRY(show_sums(e, call, &p, result, stream));
    }
    return XP_OK;
}

static xp_status reduce_scatter(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    if (!adds_here(e, call->dtype)) {
        XP_TRY(xp_nccl_lock(e));
        const xp_nccl_state state =
            e->calls->reduce_scatter(e->nccl, call->send, call->recv, call->n, call->dtype, stream);
        xp_nccl_unlock(e);
        return xp_nccl_settle(e, call, state);
    }
    const int64_t step = elements_at_a_time(e, size);
    for (int64_t at = 0; at < call->n; at += step) {
        const int64_t n = (smaller(step, call->n - at) + 63) / 64 * 64;
        const xp_pieces p = {
            .total = call->n * e->base.comm->size, .each = call->n, .at = at, .n = n};
        XP_TRY(gather_and_add(e, call, &p, (char *)call->recv + at * size, stream));
    }
    return XP_OK;
}

/* ---- the others --------------------------------------------------------------------------- */

static xp_status all_to_all(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    for (int r = 0; r < e->base.comm->size; r++)
        e->parts[r] = (xp_nccl_part){.send = (const char *)call->send + r * call->n,
                                     .send_bytes = call->n,
                                     .recv = (char *)call->recv + r * call->n,
                                     .recv_bytes = call->n};
    return exchange(e, call, stream);
}

static xp_status all_to_allv(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    const xp_alltoallv_args *v = &call->v;
    const int me = e->base.comm->rank;
    if (v->send_bytes[me] != v->recv_bytes[me])
        return xp_error(XP_EINVAL, "all-to-allv: the rank sends %lld bytes to itself, expects %lld",
                        (long long)v->send_bytes[me], (long long)v->recv_bytes[me]);
    for (int r = 0; r < e->base.comm->size; r++)
        e->parts[r] = (xp_nccl_part){.send = (const char *)v->send + v->send_offsets[r],
                                     .send_bytes = v->send_bytes[r],
                                     .recv = (char *)v->recv + v->recv_offsets[r],
                                     .recv_bytes = v->recv_bytes[r]};
    return exchange(e, call, stream);
}

static xp_status broadcast(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    XP_TRY(xp_nccl_lock(e));
    const xp_nccl_state state =
        e->calls->broadcast(e->nccl, call->recv, (size_t)call->n, call->root, stream);
    xp_nccl_unlock(e);
    return xp_nccl_settle(e, call, state);
}

static xp_status barrier(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    xp_comm_call sum = *call;
    sum.send = sum.recv = e->flag;
    sum.n = 1;
    sum.dtype = XP_I32;
    sum.op = XP_MAX;
    return all_reduce_by_nccl(e, &sum, stream);
}

static xp_status dispatch(xp_nccl_backend *e, const xp_comm_call *call, xp_stream *stream) {
    switch (call->kind) {
    case XP_COMM_ALL_REDUCE:
        return all_reduce(e, call, stream);
    case XP_COMM_REDUCE_SCATTER:
        return reduce_scatter(e, call, stream);
    case XP_COMM_ALL_GATHER:
        return all_gather(e, call, call->recv, call->n * (int64_t)xp_dtype_bytes(call->dtype),
                          stream);
    case XP_COMM_ALL_TO_ALLV:
        return all_to_allv(e, call, stream);
    case XP_COMM_ALL_TO_ALL:
        return all_to_all(e, call, stream);
    case XP_COMM_BROADCAST:
        return broadcast(e, call, stream);
    default:
        return barrier(e, call, stream);
    }
}

xp_status xp_nccl_run(xp_comm_backend *backend, const xp_comm_call *call, xp_stream *stream) {
    xp_nccl_backend *e = (xp_nccl_backend *)backend;
    if (call->n == 0 && call->kind != XP_COMM_BARRIER && call->kind != XP_COMM_ALL_TO_ALLV)
        return XP_OK;
    XP_TRY(xp_nccl_watch_begin(e, call, stream));
    XP_TRY(dispatch(e, call, stream));
    return xp_nccl_watch_end(e, call, stream);
}
