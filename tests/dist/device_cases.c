/* Collectives and windows on device memory against brute force. */
#include "device_cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD     64 /* bytes behind a result that must stay */
#define N_REPEATS 20

void check(worker *r, bool ok, const char *what, int64_t n) {
    r->n_checks++;
    if (ok || r->n_failed++ > 3)
        return;
    fprintf(stderr, "FAILED rank %d of %d: %s, n = %lld [%s]\n", r->me, r->n, what, (long long)n,
            xp_last_error());
}

/* ---- memory ------------------------------------------------------------------------------- */

void *reserve(worker *r, size_t n_bytes) {
    void *data = NULL;
    check(r, xp_device_alloc(r->device, n_bytes + GUARD, "test", &data) == XP_OK, "alloc", 0);
    return data;
}

/* Drivers may make cudaMalloc and cudaFree wait for what runs on other GPUs of the process: nobody
 * is in a collective before all are done with those. */
static void meet(worker *r) {
    check(r, xp_comm_barrier(r->comm, NULL) == XP_OK, "barrier on the host", 0);
}

static void move(worker *r, void *to, const void *from, size_t n_bytes) {
    check(r, xp_copy(r->stream, to, from, n_bytes) == XP_OK, "copy", (int64_t)n_bytes);
    check(r, xp_stream_sync(r->stream) == XP_OK, "sync", (int64_t)n_bytes);
}

/* ---- values ------------------------------------------------------------------------------- */

/* Sums depend on the order, so that a wrong one shows. */
static double element(int rank, int64_t i) {
    uint32_t h = (uint32_t)rank * 2654435761U ^ (uint32_t)i * 40503U;
    h = (h ^ h >> 13) * 0x5bd1e995U;
    return ((double)(h >> 8) / 16777216.0 - 0.5) * (1.0 + rank);
}

static void store(xp_dtype dtype, void *data, int64_t i, double value) {
    if (dtype == XP_F32)
        ((float *)data)[i] = (float)value;
    else if (dtype == XP_BF16)
        ((uint16_t *)data)[i] = xp_bf16_from_f32((float)value);
    else if (dtype == XP_F64)
        ((double *)data)[i] = value;
    else if (dtype == XP_I32)
        ((int32_t *)data)[i] = (int32_t)(value * 1000);
    else
        ((int64_t *)data)[i] = (int64_t)(value * 1e12);
}

static double load(xp_dtype dtype, const void *data, int64_t i) {
    if (dtype == XP_F32)
        return ((const float *)data)[i];
    if (dtype == XP_BF16)
        return xp_bf16_to_f32(((const uint16_t *)data)[i]);
    if (dtype == XP_F64)
        return ((const double *)data)[i];
    return dtype == XP_I32 ? ((const int32_t *)data)[i] : (double)((const int64_t *)data)[i];
}

/* What ranks have in memory when they store an element. */
static double stored(xp_dtype dtype, int rank, int64_t i) {
    int64_t raw = 0;
    store(dtype, &raw, 0, element(rank, i));
    return load(dtype, &raw, 0);
}

static double combine(xp_dtype dtype, xp_reduce_op op, double acc, double x) {
    if (op != XP_SUM)
        return (op == XP_MAX ? x > acc : x < acc) ? x : acc;
    return dtype == XP_F32 || dtype == XP_BF16 ? (double)((float)acc + (float)x) : acc + x;
}

/* Elements [first, first + n) over all ranks, ascending, in the arithmetic of the type: [n], to be
 * freed. */
static double *reduced(xp_dtype dtype, xp_reduce_op op, int n_ranks, int64_t first, int64_t n) {
    double *all = malloc((size_t)n * sizeof *all + 1);
    if (!all)
        abort();
    for (int64_t i = 0; i < n; i++) {
        double acc = stored(dtype, 0, first + i);
        for (int k = 1; k < n_ranks; k++)
            acc = combine(dtype, op, acc, stored(dtype, k, first + i));
        all[i] = dtype == XP_BF16 ? (double)xp_bf16_to_f32(xp_bf16_from_f32((float)acc)) : acc;
    }
    return all;
}

static bool sums_are_right(const worker *r, xp_dtype dtype, xp_reduce_op op, const void *got,
                           const double *want, int64_t n) {
    const bool exact =
        r->o->n_nodes < 2 || dtype == XP_BF16 || dtype == XP_I32 || dtype == XP_I64 || op != XP_SUM;
    for (int64_t i = 0; i < n; i++) {
        const double have = load(dtype, got, i);
        if (exact ? want[i] != have : fabs(want[i] - have) > 1e-5 * (1 + r->n))
            return false;
    }
    return true;
}

/* ---- collectives -------------------------------------------------------------------------- */

static const int64_t sizes[] = {0, 1, 63, 64, 1000, 4097, 1500001};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };
static const xp_dtype dtypes[] = {XP_F32, XP_BF16, XP_F64, XP_I32, XP_I64};

static void reductions(worker *r, int64_t n, xp_dtype dtype, bool scatter, xp_reduce_op op) {
    const size_t size = xp_dtype_bytes(dtype);
    const int64_t all = scatter ? n * r->n : n;
    const size_t n_send = (size_t)all * size, n_recv = (size_t)n * size;
    char *host = malloc(n_send + GUARD), *back = malloc(n_recv + GUARD);
    char *send = reserve(r, n_send), *recv = reserve(r, n_recv);
    double *want = reduced(dtype, op, r->n, scatter ? n * r->me : 0, n);
    meet(r);
    for (int64_t i = 0; i < all; i++)
        store(dtype, host, i, element(r->me, i));
    memset(host + n_send, 42, GUARD);
    for (int in_place = 0; in_place < 2; in_place++) {
        move(r, send, host, n_send + GUARD);
        move(r, recv, host + n_send, GUARD);
        char *to = !in_place ? recv : scatter ? send + (size_t)r->me * n_recv : send;
        if (!in_place)
            move(r, to + n_recv, host + n_send, GUARD);
        const xp_status status =
            scatter ? xp_comm_reduce_scatter(r->comm, send, to, n, dtype, r->stream)
                    : xp_comm_all_reduce(r->comm, send, to, n, dtype, op, r->stream);
        check(r, status == XP_OK, scatter ? "reduce-scatter" : "all-reduce", n);
        move(r, back, to, n_recv + (in_place ? 0 : GUARD));
        check(r, sums_are_right(r, dtype, op, back, want, n),
              scatter ? "sums of reduce-scatter" : "sums of all-reduce", n);
        check(r, in_place || memcmp(back + n_recv, host + n_send, GUARD) == 0, "written past", n);
    }
    xp_device_free(r->device, send);
    xp_device_free(r->device, recv);
    free(want);
    free(host);
    free(back);
}

static unsigned char byte_of(int from, int to, int64_t i) {
    return (unsigned char)(from * 31 + to * 7 + i);
}

/* Parts of n bytes: gather, all-to-all, broadcast. */
static void movements(worker *r, int64_t n) {
    const size_t all = (size_t)(n * r->n);
    unsigned char *host = malloc(all + 1), *back = malloc(all + 1);
    char *send = reserve(r, all), *recv = reserve(r, all);
    bool right = true;
    meet(r);
    for (int64_t i = 0; i < n * r->n; i++)
        host[i] = byte_of(r->me, (int)(i / n), i % n);
    move(r, send, host, all);
    check(r, xp_comm_all_to_all(r->comm, send, recv, n, r->stream) == XP_OK, "all-to-all", n);
    move(r, back, recv, all);
    for (int64_t i = 0; i < n * r->n; i++)
        right = right && back[i] == byte_of((int)(i / n), r->me, i % n);
    check(r, right, "bytes of all-to-all", n);
    check(r, xp_comm_all_gather(r->comm, send, recv, n, XP_U8, r->stream) == XP_OK, "all-gather",
          n);
    move(r, back, recv, all);
    for (int64_t i = 0; i < n * r->n; i++)
        right = right && back[i] == byte_of((int)(i / n), 0, i % n);
    check(r, right, "bytes of all-gather", n);
    for (int root = 0; root < r->n; root++) {
        move(r, send, host, (size_t)n);
        check(r, xp_comm_broadcast(r->comm, send, n, root, r->stream) == XP_OK, "broadcast", n);
        move(r, back, send, (size_t)n);
        for (int64_t i = 0; i < n; i++)
            right = right && back[i] == byte_of(root, 0, i);
        check(r, right, "bytes of broadcast", n);
    }
    xp_device_free(r->device, send);
    xp_device_free(r->device, recv);
    free(host);
    free(back);
}

static int64_t part(int from, int to, int64_t unit) {
    return (from * 5 + to * 3) % 11 == 0 ? 0 : (from * 131 + to * 17) % 300 * unit + 1;
}

static void uneven(worker *r, int64_t unit) {
    int64_t counts[4][MAX_RANKS], n_send = 0, n_recv = 0;
    for (int k = 0; k < r->n; k++) {
        counts[0][k] = part(r->me, k, unit);
        counts[1][k] = n_send;
        counts[2][k] = part(k, r->me, unit);
        counts[3][k] = n_recv;
        n_send += counts[0][k] + 3;
        n_recv += counts[2][k] + 5;
    }
    unsigned char *host = malloc((size_t)n_send + 1), *back = calloc(1, (size_t)n_recv + 1);
    char *send = reserve(r, (size_t)n_send), *recv = reserve(r, (size_t)n_recv);
    bool right = true;
    meet(r);
    for (int k = 0; k < r->n; k++)
        for (int64_t i = 0; i < counts[0][k]; i++)
            host[counts[1][k] + i] = byte_of(r->me, k, i);
    move(r, send, host, (size_t)n_send);
    move(r, recv, back, (size_t)n_recv);
    const xp_alltoallv_args args = {send, counts[0], counts[1], recv, counts[2], counts[3]};
    check(r, xp_comm_all_to_allv(r->comm, &args, r->stream) == XP_OK, "all-to-allv", unit);
    move(r, back, recv, (size_t)n_recv);
    for (int k = 0; k < r->n; k++) {
        for (int64_t i = 0; i < counts[2][k]; i++)
            right = right && back[counts[3][k] + i] == byte_of(k, r->me, i);
        for (int i = 0; i < 5; i++)
            right = right && back[counts[3][k] + counts[2][k] + i] == 0;
    }
    check(r, right, "bytes of all-to-allv", unit);
    xp_device_free(r->device, send);
    xp_device_free(r->device, recv);
    free(host);
    free(back);
}

/* Queued back to back, without a wait in between; twice the same bits. */
static void repeats(worker *r) {
    const int64_t n = 100000;
    char *sums = reserve(r, (size_t)n * 4), *host = malloc((size_t)n * 4), *first = NULL;
    meet(r);
    for (int turn = 0; turn < 2; turn++) {
        for (int64_t i = 0; i < n; i++)
            store(XP_F32, host, i, element(r->me, i) / 1e3);
        move(r, sums, host, (size_t)n * 4);
        for (int k = 0; k < N_REPEATS; k++)
            check(r,
                  xp_comm_all_reduce(r->comm, sums, sums, n, XP_F32, k % 2 ? XP_MAX : XP_SUM,
                                     r->stream) == XP_OK &&
                      xp_comm_barrier(r->comm, r->stream) == XP_OK,
                  "queued all-reduces", n);
        move(r, host, sums, (size_t)n * 4);
        if (turn == 0) {
            first = malloc((size_t)n * 4);
            memcpy(first, host, (size_t)n * 4);
        }
    }
    check(r, memcmp(first, host, (size_t)n * 4) == 0, "the same bits twice", n);
    free(first);
    free(host);
    xp_device_free(r->device, sums);
}

/* ---- windows ------------------------------------------------------------------------------ */

void windows(worker *r) {
    const size_t each = 300000 * sizeof(int);
    xp_window *window = NULL;
    if (!xp_comm_is_one_node(r->comm))
        return;
    const xp_status made =
        xp_comm_window_create(r->comm, r->device, each * (size_t)r->n, "ep", &window);
    check(r, made == XP_OK, "window", (int64_t)each);
    if (made != XP_OK)
        return;
    int *host = malloc(each * (size_t)r->n);
    move(r, host, xp_window_peer(window, r->me), each * (size_t)r->n);
    bool right = true;
    for (size_t i = 0; i < each / 4 * (size_t)r->n; i++)
        right = right && host[i] == 0;
    check(r, right, "a new window is zero", (int64_t)each);
    check(r, xp_comm_barrier(r->comm, r->stream) == XP_OK, "barrier", 0);
    for (int k = 0; k < r->n; k++) { /* into place `me` of everybody's memory */
        for (size_t i = 0; i < each / 4; i++)
            host[i] = r->me * 1000003 + k * 101 + (int)i;
        move(r, (char *)xp_window_peer(window, k) + each * (size_t)r->me, host, each);
    }
    check(r, xp_comm_barrier(r->comm, r->stream) == XP_OK, "barrier", 0);
    move(r, host, xp_window_peer(window, r->me), each * (size_t)r->n);
    for (size_t i = 0; i < each / 4 * (size_t)r->n; i++) {
        const int from = (int)(i / (each / 4)), at = (int)(i % (each / 4));
        right = right && host[i] == from * 1000003 + r->me * 101 + at;
    }
    check(r, right, "what peers wrote into the window", (int64_t)each);
    xp_comm_window_destroy(window);
    free(host);
}

/* ---- the ranks ---------------------------------------------------------------------------- */

void all_cases(worker *r) {
    for (int s = 0; s < N_SIZES; s++) {
        for (int t = 0; t < 5; t++) {
            for (int op = XP_SUM; op <= XP_MIN; op++)
                if (op == XP_SUM || sizes[s] < 10000)
                    reductions(r, sizes[s], dtypes[t], false, (xp_reduce_op)op);
            reductions(r, sizes[s], dtypes[t], true, XP_SUM);
        }
        movements(r, sizes[s]);
    }
    uneven(r, 1);
    uneven(r, 3001);
    repeats(r);
}

/* The same on a communicator of its own: half of the ranks. */
void halves(worker *r) {
    worker half = *r;
    half.n_failed = half.n_checks = 0;
    check(r, xp_comm_split(r->comm, r->me % 2, &half.comm) == XP_OK, "split", 0);
    half.me = xp_comm_rank(half.comm);
    half.n = xp_comm_size(half.comm);
    reductions(&half, 70000, XP_BF16, true, XP_SUM);
    movements(&half, 5000);
    windows(&half);
    xp_comm_destroy(half.comm);
    r->n_failed += half.n_failed;
    r->n_checks += half.n_checks;
}
