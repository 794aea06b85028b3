/*
 * Collectives of ranks on one node, through their buffers in the node area. Long calls go in pieces:
 * every rank writes its piece into its own buffer, barrier, every rank reads what it needs from the
 * others' buffers, barrier. Reductions are split: each rank adds its share of the piece in rank
 * order and writes the sums to the common result area.
 */
#include <string.h>
#include "comm/callbacks/area.h"
#include "comm/callbacks/collectives.h"
#include "comm/reduce.h"

typedef struct node_call {
    xp_callback_comm *comm;
    const xp_comm_call *call;
    xp_callback_head *head;
    bool checked; /* the heads of all ranks agree */
} node_call;

static char *buffer(const node_call *c, int rank) {
    return xp_node_buffer(&c->comm->area, rank);
}

/* Everybody's piece is written. */
static xp_status enter(node_call *c) {
    xp_node_area *area = &c->comm->area;
    if (!c->checked)
        area->memory->slots[area->index].head = *c->head;
    XP_TRY(xp_node_barrier(c->comm, c->call));
    for (int r = 0; r < area->n && !c->checked; r++)
        XP_TRY(xp_callback_check_head(c->comm, c->head, &area->memory->slots[r].head, r));
    c->checked = true;
    return XP_OK;
}

/* Nobody reads any more. */
static xp_status leave(node_call *c) {
    return xp_node_barrier(c->comm, c->call);
}

/* Elements of each of n_parts parts that fit into a buffer at a time. */
static int64_t elements_at_a_time(int64_t size, int n_parts) {
    const int64_t n = XP_NODE_BUFFER_BYTES / n_parts / size / 64 * 64;
    return n > 0 ? n : XP_NODE_BUFFER_BYTES / n_parts / size;
}

static void reduce(const node_call *c, int64_t first_byte, int64_t n, void *result) {
    const xp_callback_comm *comm = c->comm;
    if (n == 0)
        return;
    for (int r = 0; r < comm->base.size; r++)
        comm->sources[r] = buffer(c, r) + first_byte;
    xp_reduce_to_one(comm->sources, comm->base.size, n, c->call->dtype, c->call->op, result);
}

/* The results of one piece are read before their reader comes to the next piece's first barrier, and
 * written after it. */
static xp_status run_all_reduce(node_call *c) {
    const xp_comm_call *call = c->call;
    const int n_ranks = c->comm->base.size, me = c->comm->base.rank;
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype), step = elements_at_a_time(size, 1);
    int64_t at = 0;
    do {
        const int64_t n = xp_callback_piece(call->n, at, step);
        char *results = buffer(c, n_ranks);
        const xp_pieces share = {.total = n, .each = xp_piece_size(n, n_ranks), .n = n};
        int64_t n_mine = 0, mine = xp_piece_of(&share, me, &n_mine);
        xp_callback_copy(buffer(c, me), (const char *)call->send + at * size, n * size);
        XP_TRY(enter(c));
        reduce(c, mine * size, n_mine, results + mine * size);
        XP_TRY(leave(c));
        xp_callback_copy((char *)call->recv + at * size, results, n * size);
        at += step;
    } while (at < call->n);
    return XP_OK;
}

/* This rank's piece of each of the parts for the ranks, `stride` bytes apart in memory and without
 * gaps in the buffer. */
static void show_parts(const node_call *c, const char *from, int64_t stride, int64_t n_bytes) {
    const int n_ranks = c->comm->base.size;
    for (int r = 0; r < n_ranks; r++)
        xp_callback_copy(buffer(c, c->comm->base.rank) + r * n_bytes, from + r * stride, n_bytes);
}

static xp_status run_reduce_scatter(node_call *c) {
    const xp_comm_call *call = c->call;
    const int n_ranks = c->comm->base.size, me = c->comm->base.rank;
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    const int64_t step = elements_at_a_time(size, n_ranks);
    int64_t at = 0;
    do {
        const int64_t n = xp_callback_piece(call->n, at, step);
        show_parts(c, (const char *)call->send + at * size, call->n * size, n * size);
        XP_TRY(enter(c));
        reduce(c, me * n * size, n, (char *)call->recv + at * size);
        XP_TRY(leave(c));
        at += step;
    } while (at < call->n);
    return XP_OK;
}

/* Starts after this rank, so that ranks do not all read the same memory at once. */
static int peer_at(const node_call *c, int i) {
    return (c->comm->base.rank + 1 + i) % c->comm->base.size;
}

static xp_status run_all_gather(node_call *c) {
    const xp_comm_call *call = c->call;
    const int64_t total = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    int64_t at = 0;
    do {
        const int64_t n = xp_callback_piece(total, at, XP_NODE_BUFFER_BYTES);
        xp_callback_copy(buffer(c, c->comm->base.rank), (const char *)call->send + at, n);
        XP_TRY(enter(c));
        for (int i = 0; i < c->comm->base.size; i++)
            xp_callback_copy((char *)call->recv + peer_at(c, i) * total + at,
                             buffer(c, peer_at(c, i)), n);
        XP_TRY(leave(c));
        at += n;
    } while (at < total);
    return XP_OK;
}

static xp_status run_all_to_all(node_call *c) {
    const xp_comm_call *call = c->call;
    const int n_ranks = c->comm->base.size, me = c->comm->base.rank;
    const int64_t step = elements_at_a_time(1, n_ranks);
    int64_t at = 0;
    do {
        const int64_t n = xp_callback_piece(call->n, at, step);
        show_parts(c, (const char *)call->send + at, call->n, n);
        XP_TRY(enter(c));
        for (int i = 0; i < n_ranks; i++)
            xp_callback_copy((char *)call->recv + peer_at(c, i) * call->n + at,
                             buffer(c, peer_at(c, i)) + me * n, n);
        XP_TRY(leave(c));
        at += n;
    } while (at < call->n);
    return XP_OK;
}

/* The byte counts first, for the check that they match and for the number of pieces. */
static xp_status exchange_counts(node_call *c, int64_t *longest) {
    const xp_comm_call *call = c->call;
    const xp_node_area *area = &c->comm->area;
    const int me = c->comm->base.rank;
    memcpy(buffer(c, me), call->v.send_bytes, (size_t)area->n * sizeof(int64_t));
    XP_TRY(enter(c));
    *longest = 0;
    for (int r = 0; r < area->n; r++) {
        const int64_t *theirs = (const int64_t *)(const void *)buffer(c, r);
        const xp_callback_head *head = &area->memory->slots[r].head;
        *longest = head->longest > *longest ? head->longest : *longest;
        XP_TRY(xp_callback_check_bytes(c->comm, call, r, theirs[me]));
    }
    return leave(c);
}

static xp_status run_all_to_allv(node_call *c) {
    const xp_alltoallv_args *v = &c->call->v;
    const int n_ranks = c->comm->base.size, me = c->comm->base.rank;
    const int64_t step = elements_at_a_time(1, n_ranks);
    int64_t longest = 0;
    XP_TRY(exchange_counts(c, &longest));
    for (int64_t at = 0; at < longest; at += step) {
        for (int r = 0; r < n_ranks; r++) {
            const int64_t n = xp_callback_piece(v->send_bytes[r], at, step);
            if (n > 0)
                xp_callback_copy(buffer(c, me) + r * step,
                                 (const char *)v->send + v->send_offsets[r] + at, n);
        }
        XP_TRY(enter(c));
        for (int i = 0; i < n_ranks; i++) {
            const int peer = peer_at(c, i);
            const int64_t n = xp_callback_piece(v->recv_bytes[peer], at, step);
            if (n > 0)
                xp_callback_copy((char *)v->recv + v->recv_offsets[peer] + at,
                                 buffer(c, peer) + me * step, n);
        }
        XP_TRY(leave(c));
    }
    return XP_OK;
}

static xp_status run_broadcast(node_call *c) {
    const xp_comm_call *call = c->call;
    const bool root = c->comm->base.rank == call->root;
    int64_t at = 0;
    do {
        const int64_t n = xp_callback_piece(call->n, at, XP_NODE_BUFFER_BYTES);
        if (root)
            xp_callback_copy(buffer(c, call->root), (const char *)call->send + at, n);
        XP_TRY(enter(c));
        if (!root)
            xp_callback_copy((char *)call->recv + at, buffer(c, call->root), n);
        XP_TRY(leave(c));
        at += n;
    } while (at < call->n);
    return XP_OK;
}

/* The second barrier frees the slots. */
static xp_status run_barrier(node_call *c) {
    XP_TRY(enter(c));
    return leave(c);
}

xp_status xp_callback_run_on_node(xp_callback_comm *comm, const xp_comm_call *call,
                                  xp_callback_head *head) {
    node_call c = {.comm = comm, .call = call, .head = head};
    switch (call->kind) {
    case XP_COMM_ALL_REDUCE:
        return run_all_reduce(&c);
    case XP_COMM_REDUCE_SCATTER:
        return run_reduce_scatter(&c);
    case XP_COMM_ALL_GATHER:
        return run_all_gather(&c);
    case XP_COMM_ALL_TO_ALLV:
        return run_all_to_allv(&c);
    case XP_COMM_ALL_TO_ALL:
        return run_all_to_all(&c);
    case XP_COMM_BROADCAST:
        return run_broadcast(&c);
    default:
        return run_barrier(&c);
    }
}
