/*
 * Collectives of ranks on several nodes, made of two things: a gather of equal parts, and an exchange
 * of a part for each rank, which is a gather of everything where the transport knows no better. Long
 * calls go in pieces. Sums are added here, in rank order.
 */
#include <stdlib.h>
#include <string.h>
#include "comm/callbacks/area.h"
#include "comm/callbacks/collectives.h"
#include "comm/callbacks/failure.h"
#include "comm/reduce.h"

/* Bytes in scratch at a time, from all ranks together. */
#define SCRATCH_BYTES ((int64_t)16 << 20)
/* Up to here everybody gets everything and adds it all. */
#define SMALL_BYTES ((int64_t)16 << 10)

typedef struct far_call {
    xp_callback_comm *comm;
    const xp_comm_call *call;
} far_call;

static xp_status need_scratch(xp_callback_comm *comm, int64_t n_bytes) {
    if (comm->scratch_bytes >= (size_t)n_bytes)
        return XP_OK;
    free(comm->scratch);
    comm->scratch_bytes = 0;
    comm->scratch = aligned_alloc(64, ((size_t)n_bytes + 63) / 64 * 64);
    if (!comm->scratch) {
        xp_comm_abort(&comm->base, "no memory for a collective");
        return xp_error(XP_ENOMEM, "no memory (%lld bytes) for a collective over %d ranks",
                        (long long)n_bytes, comm->base.size);
    }
    comm->scratch_bytes = (size_t)n_bytes;
    return XP_OK;
}

/* Every rank's n bytes, of which its transport carries a limited number at a time. */
static xp_status gather(const far_call *c, const void *send, char *recv, int64_t n) {
    xp_callback_comm *comm = c->comm;
    XP_TRY(xp_node_barrier(comm, c->call));
    xp_error_clear();
    xp_comm_mark_waiting(&comm->base, 1);
    const int code = comm->transport->all_gather(comm->transport->context, send, recv, (size_t)n);
    xp_comm_mark_waiting(&comm->base, -1);
    return code == 0 ? XP_OK : xp_callback_fail_transport(comm->world, c->call, "all_gather", code);
}

/* Bytes of each part in an exchange. */
static int64_t bytes_at_a_time(const xp_callback_comm *comm) {
    const int64_t n_ranks = comm->base.size;
    const int64_t n_parts = comm->transport->all_to_allv ? n_ranks : n_ranks * n_ranks + n_ranks;
    const int64_t n = SCRATCH_BYTES / 2 / n_parts / 64 * 64;
    return n > 64 ? n : 64;
}

/* In `counts` what goes to and comes from each rank, at most `each`, from and to places `each` bytes
 * apart. `all` has room for everybody's parts where the transport can only gather. */
static xp_status exchange(const far_call *c, int64_t each, const char *out, char *in, char *all) {
    xp_callback_comm *comm = c->comm;
    const int n_ranks = comm->base.size, me = comm->base.rank;
    const xp_callback_transport *t = comm->transport;
    if (!t->all_to_allv) {
        XP_TRY(gather(c, out, all, each * n_ranks));
        for (int r = 0; r < n_ranks; r++)
            xp_callback_copy(in + r * each, all + (r * (int64_t)n_ranks + me) * each,
                             comm->counts[2][r]);
        return XP_OK;
    }
    for (int r = 0; r < n_ranks; r++)
        comm->counts[1][r] = comm->counts[3][r] = r * each;
    XP_TRY(xp_node_barrier(comm, c->call));
    xp_error_clear();
    xp_comm_mark_waiting(&comm->base, 1);
    const int code = t->all_to_allv(t->context, out, comm->counts[0], comm->counts[1], in,
                                    comm->counts[2], comm->counts[3]);
    xp_comm_mark_waiting(&comm->base, -1);
    return code == 0 ? XP_OK
                     : xp_callback_fail_transport(comm->world, c->call, "all_to_allv", code);
}

static void set_counts(xp_callback_comm *comm, int peer, int64_t out, int64_t in) {
    comm->counts[0][peer] = out;
    comm->counts[2][peer] = in;
}

/* Scratch: the parts that go out, those that come in, and room for a gather of all. */
static xp_status carve(xp_callback_comm *comm, int64_t each, char **out, char **in, char **all) {
    const int64_t n_ranks = comm->base.size, n_bytes = n_ranks * each;
    const int64_t n_all = comm->transport->all_to_allv ? 0 : n_ranks * n_bytes;
    XP_TRY(need_scratch(comm, 2 * n_bytes + n_all));
    *out = comm->scratch;
    *in = *out + n_bytes;
    *all = *in + n_bytes;
    return XP_OK;
}

static void reduce(const far_call *c, const char *parts, int64_t stride, int64_t n, void *result) {
    const xp_callback_comm *comm = c->comm;
    if (n == 0)
        return;
    for (int r = 0; r < comm->base.size; r++)
        comm->sources[r] = parts + r * stride;
    xp_reduce_to_one(comm->sources, comm->base.size, n, c->call->dtype, c->call->op, result);
}

static xp_status reduce_small(const far_call *c) {
    const int64_t n_bytes = c->call->n * (int64_t)xp_dtype_bytes(c->call->dtype);
    if (n_bytes == 0)
        return XP_OK;
    XP_TRY(need_scratch(c->comm, n_bytes * c->comm->base.size));
    XP_TRY(gather(c, c->call->send, c->comm->scratch, n_bytes));
    reduce(c, c->comm->scratch, n_bytes, c->call->n, c->call->recv);
    return XP_OK;
}

/* Every rank gets everybody's part of its share of a piece, adds, and shows the sums. */
static xp_status run_all_reduce(const far_call *c) {
    const xp_comm_call *call = c->call;
    xp_callback_comm *comm = c->comm;
    const int n_ranks = comm->base.size, me = comm->base.rank;
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype);
    char *out, *in, *all;
    if (call->n * size <= SMALL_BYTES)
        return reduce_small(c);
    const int64_t each = bytes_at_a_time(comm), n_each = each / size;
    XP_TRY(carve(comm, each, &out, &in, &all));
    for (int64_t at = 0; at < call->n; at += n_each * n_ranks) {
        const xp_pieces p = {.total = call->n - at, .each = n_each, .n = n_each};
        int64_t n_mine = 0, n = 0;
        xp_piece_of(&p, me, &n_mine);
        for (int r = 0; r < n_ranks; r++) {
            const int64_t first = xp_piece_of(&p, r, &n);
            set_counts(comm, r, n * size, n_mine * size);
            xp_callback_copy(out + r * each, (const char *)call->send + (at + first) * size,
                             n * size);
        }
        XP_TRY(exchange(c, each, out, in, all));
        reduce(c, in, each, n_mine, out);
        XP_TRY(gather(c, out, in, each));
        for (int r = 0; r < n_ranks; r++) {
            const int64_t first = xp_piece_of(&p, r, &n);
            xp_callback_copy((char *)call->recv + (at + first) * size, in + r * each, n * size);
        }
    }
    return XP_OK;
}

/* Parts for all ranks, `stride` bytes apart, n bytes of each from `at` on, are exchanged into `in`. */
static xp_status exchange_parts(const far_call *c, const char *send, int64_t stride, int64_t n,
                                int64_t each, char **in) {
    char *out, *all;
    XP_TRY(carve(c->comm, each, &out, in, &all));
    for (int r = 0; r < c->comm->base.size; r++) {
        set_counts(c->comm, r, n, n);
        xp_callback_copy(out + r * each, send + r * stride, n);
    }
    return exchange(c, each, out, *in, all);
}

static xp_status run_reduce_scatter(const far_call *c) {
    const xp_comm_call *call = c->call;
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype), each = bytes_at_a_time(c->comm);
    for (int64_t at = 0; at < call->n; at += each / size) {
        const int64_t n = xp_callback_piece(call->n, at, each / size);
        char *in;
        XP_TRY(exchange_parts(c, (const char *)call->send + at * size, call->n * size, n * size,
                              each, &in));
        reduce(c, in, each, n, (char *)call->recv + at * size);
    }
    return XP_OK;
}

static xp_status run_all_to_all(const far_call *c) {
    const xp_comm_call *call = c->call;
    const int64_t each = bytes_at_a_time(c->comm);
    for (int64_t at = 0; at < call->n; at += each) {
        const int64_t n = xp_callback_piece(call->n, at, each);
        char *in;
        XP_TRY(exchange_parts(c, (const char *)call->send + at, call->n, n, each, &in));
        for (int r = 0; r < c->comm->base.size; r++)
            xp_callback_copy((char *)call->recv + r * call->n + at, in + r * each, n);
    }
    return XP_OK;
}

static xp_status run_all_gather(const far_call *c) {
    const xp_comm_call *call = c->call;
    const int n_ranks = c->comm->base.size;
    const int64_t total = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    const int64_t each = SCRATCH_BYTES / n_ranks;
    for (int64_t at = 0; at < total; at += each) {
        const int64_t n = xp_callback_piece(total, at, each);
        XP_TRY(need_scratch(c->comm, n * n_ranks));
        XP_TRY(gather(c, (const char *)call->send + at, c->comm->scratch, n));
        for (int r = 0; r < n_ranks; r++)
            xp_callback_copy((char *)call->recv + r * total + at, c->comm->scratch + r * n, n);
    }
    return XP_OK;
}

/* The check that what is sent is what is expected. */
static xp_status check_counts(const far_call *c) {
    xp_callback_comm *comm = c->comm;
    const int n_ranks = comm->base.size;
    const int64_t n_bytes = n_ranks * (int64_t)sizeof(int64_t);
    XP_TRY(need_scratch(comm, n_bytes * n_ranks));
    XP_TRY(gather(c, c->call->v.send_bytes, comm->scratch, n_bytes));
    for (int r = 0; r < n_ranks; r++) {
        int64_t sent;
        memcpy(&sent, comm->scratch + r * n_bytes + comm->base.rank * (int64_t)sizeof sent,
               sizeof sent);
        XP_TRY(xp_callback_check_bytes(comm, c->call, r, sent));
    }
    return XP_OK;
}

static xp_status run_all_to_allv(const far_call *c, int64_t longest) {
    const xp_alltoallv_args *v = &c->call->v;
    xp_callback_comm *comm = c->comm;
    const int64_t each = bytes_at_a_time(comm);
    char *out, *in, *all;
    XP_TRY(check_counts(c));
    XP_TRY(carve(comm, each, &out, &in, &all));
    for (int64_t at = 0; at < longest; at += each) {
        for (int r = 0; r < comm->base.size; r++) {
            set_counts(comm, r, xp_callback_piece(v->send_bytes[r], at, each),
                       xp_callback_piece(v->recv_bytes[r], at, each));
            if (comm->counts[0][r] > 0)
                xp_callback_copy(out + r * each, (const char *)v->send + v->send_offsets[r] + at,
                                 comm->counts[0][r]);
        }
        XP_TRY(exchange(c, each, out, in, all));
        for (int r = 0; r < comm->base.size; r++)
            if (comm->counts[2][r] > 0)
                xp_callback_copy((char *)v->recv + v->recv_offsets[r] + at, in + r * each,
                                 comm->counts[2][r]);
    }
    return XP_OK;
}

/* Ranks other than the root gather bytes that nobody reads: what is long goes out in shares. */
static xp_status run_broadcast(const far_call *c) {
    const xp_comm_call *call = c->call;
    xp_callback_comm *comm = c->comm;
    const int64_t step = SCRATCH_BYTES / comm->base.size;
    for (int64_t at = 0; at < call->n; at += step) {
        const int64_t n = xp_callback_piece(call->n, at, step);
        XP_TRY(need_scratch(comm, n * comm->base.size));
        XP_TRY(gather(c, (const char *)call->send + at, comm->scratch, n));
        xp_callback_copy((char *)call->recv + at, comm->scratch + call->root * n, n);
    }
    return XP_OK;
}

/* Heads first: with them a call that does not match is an error before sizes differ. */
static xp_status check_heads(const far_call *c, const xp_callback_head *mine, int64_t *longest) {
    xp_callback_comm *comm = c->comm;
    XP_TRY(need_scratch(comm, (int64_t)sizeof *mine * comm->base.size));
    XP_TRY(gather(c, mine, comm->scratch, sizeof *mine));
    *longest = 0;
    for (int r = 0; r < comm->base.size; r++) {
        xp_callback_head theirs;
        memcpy(&theirs, comm->scratch + r * sizeof theirs, sizeof theirs);
        *longest = theirs.longest > *longest ? theirs.longest : *longest;
        XP_TRY(xp_callback_check_head(comm, mine, &theirs, r));
    }
    return XP_OK;
}

xp_status xp_callback_run_between_nodes(xp_callback_comm *comm, const xp_comm_call *call,
                                        xp_callback_head *head) {
    const far_call c = {.comm = comm, .call = call};
    int64_t longest = 0;
    XP_TRY(check_heads(&c, head, &longest));
    switch (call->kind) {
    case XP_COMM_ALL_REDUCE:
        return run_all_reduce(&c);
    case XP_COMM_REDUCE_SCATTER:
        return run_reduce_scatter(&c);
    case XP_COMM_ALL_GATHER:
        return run_all_gather(&c);
    case XP_COMM_ALL_TO_ALLV:
        return run_all_to_allv(&c, longest);
    case XP_COMM_ALL_TO_ALL:
        return run_all_to_all(&c);
    case XP_COMM_BROADCAST:
        return run_broadcast(&c);
    default:
        return XP_OK; /* all heads are here: nobody passes before all have come */
    }
}
