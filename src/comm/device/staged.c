/*
 * Collectives on GPU memory through pinned host memory, in pieces of what fits. Every piece: copies
 * to the host, a wait for them (counted as every wait for a device), the provider's collective, and
 * copies back that nobody waits for here.
 */
#include <stdlib.h>
#include <time.h>
#include "comm/device/staged.h"
#include "core/file.h"
#include "device/device_internal.h"

/* Of each of the two areas. */
#define MOST_BYTES  ((int64_t)16 << 20)
#define LEAST_BYTES ((int64_t)64 << 10)

typedef struct staged_backend {
    xp_comm_backend base;
    char *out, *in; /* what goes to the provider, what comes back; pinned */
    int64_t n_bytes;
    int64_t *counts[4]; /* [size] of an all-to-allv's piece */
    xp_event *taken;    /* the copies back have read `in` */
} staged_backend;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* What is queued so far, `out` among it, is done, and `in` is free. */
static xp_status wait(staged_backend *s, xp_stream *stream) {
    XP_TRY(xp_event_wait(s->taken, stream));
    return xp_stream_sync(stream);
}

/* The provider's collective on host memory. */
static xp_status run_on_host(staged_backend *s, const xp_comm_call *call, xp_stream *stream) {
    XP_TRY(wait(s, stream));
    return s->base.comm->provider->run(s->base.comm, call);
}

/* Elements of each of n_parts parts that fit at a time. */
static int64_t elements_at_a_time(const staged_backend *s, int64_t size, int n_parts) {
    const int64_t n = s->n_bytes / n_parts / size;
    return n > 0 ? n : 1;
}

/* Part r of a vector of parts `stride` bytes apart; pieces lie without gaps in the area. */
static xp_status to_host(staged_backend *s, const xp_comm_call *call, int64_t stride, int n_parts,
                         int64_t at, int64_t n_bytes, xp_stream *stream) {
    for (int r = 0; r < n_parts; r++)
        XP_TRY(xp_copy(stream, s->out + r * n_bytes, (const char *)call->send + r * stride + at,
                       (size_t)n_bytes));
    return XP_OK;
}

static xp_status from_host(staged_backend *s, const xp_comm_call *call, int64_t stride, int n_parts,
                           int64_t at, int64_t n_bytes, xp_stream *stream) {
    for (int r = 0; r < n_parts; r++)
        XP_TRY(xp_copy(stream, (char *)call->recv + r * stride + at, s->in + r * n_bytes,
                       (size_t)n_bytes));
    return xp_event_record(s->taken, stream);
}

/* All collectives whose ranks have parts of the same length: in_parts of them are sent, out_parts
 * are received. */
static xp_status run_even(staged_backend *s, const xp_comm_call *call, int in_parts, int out_parts,
                          xp_stream *stream) {
    const int64_t size = (int64_t)xp_dtype_bytes(call->dtype), stride = call->n * size;
    const int64_t each = elements_at_a_time(s, size, in_parts > out_parts ? in_parts : out_parts);
    for (int64_t at = 0; at < call->n; at += each) {
        xp_comm_call piece = *call;
        piece.n = smaller(each, call->n - at);
        piece.send = s->out;
        piece.recv = s->in;
        XP_TRY(to_host(s, call, stride, in_parts, at * size, piece.n * size, stream));
        XP_TRY(run_on_host(s, &piece, stream));
        XP_TRY(from_host(s, call, stride, out_parts, at * size, piece.n * size, stream));
    }
    return XP_OK;
}

/* The provider broadcasts in place. */
static xp_status run_broadcast(staged_backend *s, const xp_comm_call *call, xp_stream *stream) {
    const bool root = s->base.comm->rank == call->root;
    for (int64_t at = 0; at < call->n; at += s->n_bytes) {
        xp_comm_call piece = *call;
        piece.n = smaller(s->n_bytes, call->n - at);
        piece.send = piece.recv = s->in;
        XP_TRY(wait(s, stream));
        if (root) {
            XP_TRY(xp_copy(stream, s->in, (const char *)call->send + at, (size_t)piece.n));
            XP_TRY(xp_stream_sync(stream));
        }
        XP_TRY(s->base.comm->provider->run(s->base.comm, &piece));
        if (!root)
            XP_TRY(from_host(s, call, 0, 1, at, piece.n, stream));
    }
    return XP_OK;
}

/* How many pieces the longest part of any two ranks takes: all must go through as many. */
static xp_status count_pieces(staged_backend *s, const xp_comm_call *call, int64_t each,
                              int64_t *n_pieces) {
    int64_t longest = 0;
    for (int r = 0; r < s->base.comm->size; r++) {
        longest = call->v.send_bytes[r] > longest ? call->v.send_bytes[r] : longest;
        longest = call->v.recv_bytes[r] > longest ? call->v.recv_bytes[r] : longest;
    }
    const xp_comm_call agree = {.kind = XP_COMM_ALL_REDUCE,
                                .op = XP_MAX,
                                .dtype = XP_I64,
                                .n = 1,
                                .send = &longest,
                                .recv = &longest,
                                .phase = call->phase};
    XP_TRY(s->base.comm->provider->run(s->base.comm, &agree));
    *n_pieces = (longest + each - 1) / each;
    return XP_OK;
}

static int64_t left_of(int64_t n_bytes, int64_t at, int64_t each) {
    return n_bytes > at ? smaller(each, n_bytes - at) : 0;
}

static xp_status run_all_to_allv(staged_backend *s, const xp_comm_call *call, xp_stream *stream) {
    const int n_ranks = s->base.comm->size;
    const int64_t each = elements_at_a_time(s, 1, n_ranks);
    int64_t n_pieces = 0;
    XP_TRY(count_pieces(s, call, each, &n_pieces));
    for (int64_t i = 0; i < n_pieces; i++) {
        const int64_t at = i * each;
        xp_comm_call piece = *call;
        piece.v = (xp_alltoallv_args){s->out, s->counts[0], s->counts[1],
                                      s->in,  s->counts[2], s->counts[3]};
        for (int r = 0; r < n_ranks; r++) {
            s->counts[0][r] = left_of(call->v.send_bytes[r], at, each);
            s->counts[2][r] = left_of(call->v.recv_bytes[r], at, each);
            s->counts[1][r] = s->counts[3][r] = r * each;
            XP_TRY(xp_copy(stream, s->out + r * each,
                           (const char *)call->v.send + call->v.send_offsets[r] + at,
                           (size_t)s->counts[0][r]));
        }
        XP_TRY(run_on_host(s, &piece, stream));
        for (int r = 0; r < n_ranks; r++)
            XP_TRY(xp_copy(stream, (char *)call->v.recv + call->v.recv_offsets[r] + at,
                           s->in + r * each, (size_t)s->counts[2][r]));
        XP_TRY(xp_event_record(s->taken, stream));
    }
    return XP_OK;
}

static xp_status run(xp_comm_backend *backend, const xp_comm_call *call, xp_stream *stream) {
    staged_backend *s = (staged_backend *)backend;
    const int n_ranks = backend->comm->size;
    switch (call->kind) {
    case XP_COMM_ALL_REDUCE:
        return run_even(s, call, 1, 1, stream);
    case XP_COMM_REDUCE_SCATTER:
        return run_even(s, call, n_ranks, 1, stream);
    case XP_COMM_ALL_GATHER:
        return run_even(s, call, 1, n_ranks, stream);
    case XP_COMM_ALL_TO_ALL:
        return run_even(s, call, n_ranks, n_ranks, stream);
    case XP_COMM_ALL_TO_ALLV:
        return run_all_to_allv(s, call, stream);
    case XP_COMM_BROADCAST:
        return run_broadcast(s, call, stream);
    default:
        return run_on_host(s, call, stream);
    }
}

/* Copies that are still under way read `in`. */
static void wait_until_taken(staged_backend *s) {
    bool taken = false;
    const double deadline = xp_time_s() + 10;
    while (s->taken && !taken && xp_time_s() < deadline) {
        if (xp_event_query(s->taken, &taken) != XP_OK)
            return;
        if (!taken)
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
}

static void destroy(xp_comm_backend *backend) {
    staged_backend *s = (staged_backend *)backend;
    wait_until_taken(s);
    for (int i = 0; i < 4; i++)
        free(s->counts[i]);
    xp_event_destroy(s->taken);
    xp_host_free(backend->device, s->in);
    xp_host_free(backend->device, s->out);
    free(s);
}

static const xp_comm_backend_ops staged_ops = {
    .name = "host memory", .run = run, .destroy = destroy};

static xp_status reserve(staged_backend *s) {
    static const char tag[] = "communication";
    xp_device *device = s->base.device;
    void *data = NULL;
    XP_TRY(xp_event_create(device, &s->taken));
    XP_TRY(xp_host_alloc(device, (size_t)s->n_bytes, tag, &data));
    s->out = data;
    XP_TRY(xp_host_alloc(device, (size_t)s->n_bytes, tag, &data));
    s->in = data;
    for (int i = 0; i < 4; i++) {
        s->counts[i] = calloc((size_t)s->base.comm->size, sizeof *s->counts[i]);
        if (!s->counts[i])
            return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks",
                            s->base.comm->size);
    }
    return XP_OK;
}

xp_status xp_staged_backend_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                   xp_comm_backend **backend) {
    staged_backend *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks on %s", comm->size,
                        xp_device_name(device));
    const int64_t wanted = max_bytes > 0 ? (int64_t)max_bytes : MOST_BYTES;
    const int64_t least = LEAST_BYTES > 64 * comm->size ? LEAST_BYTES : 64 * comm->size;
    s->base = (xp_comm_backend){.ops = &staged_ops, .comm = comm, .device = device};
    s->n_bytes = wanted > MOST_BYTES ? MOST_BYTES : wanted < least ? least : wanted;
    const xp_status status = reserve(s);
    if (status != XP_OK) {
        destroy(&s->base);
        return status;
    }
    *backend = &s->base;
    return XP_OK;
}
