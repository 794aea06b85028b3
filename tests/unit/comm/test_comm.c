/* Collectives against a computation of what each rank must get: over rank threads, and with another
 * ranks.c over callback communicators (ranks_callbacks.c) and over MPI processes (tests/dist).
 * Windows only where all ranks are on one node. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "ranks.h"

/* ThreadSanitizer makes many ranks slow and sees nothing new in them. */
#ifdef __SANITIZE_THREAD__
static const int worlds[] = {1, 2, 3, 4, 7};
#else
static const int worlds[] = {1, 2, 3, 4, 7, 8, 16};
#endif
static const int64_t sizes[] = {0, 1, 2, 63, 64, 65, 1000, 4097};
#define N_SIZES (int)(sizeof sizes / sizeof sizes[0])

static void over_worlds(void (*body)(rank_job *job)) {
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++)
        expect_all(worlds[i], body);
}

/* Element i of rank r: fractions whose sum depends on the order, so that a wrong order shows. */
static double element(int rank, int64_t i) {
    uint32_t h = (uint32_t)rank * 2654435761U ^ (uint32_t)i * 40503U;
    h ^= h >> 13;
    h *= 0x5bd1e995U;
    return ((double)(h >> 8) / 16777216.0 - 0.5) * (1.0 + rank);
}

static void store(xp_dtype dtype, void *data, int64_t i, double value) {
    switch (dtype) {
    case XP_F32:
        ((float *)data)[i] = (float)value;
        break;
    case XP_BF16:
        ((uint16_t *)data)[i] = xp_bf16_from_f32((float)value);
        break;
    case XP_F64:
        ((double *)data)[i] = value;
        break;
    case XP_I32:
        ((int32_t *)data)[i] = (int32_t)(value * 1000);
        break;
    default:
        ((int64_t *)data)[i] = (int64_t)(value * 1e12);
    }
}

/* What the reduction of element i over ranks must be, in the type's own arithmetic, ascending. */
static void reduced(xp_dtype dtype, xp_reduce_op op, int n_ranks, int64_t i, void *out) {
    float f = 0;
    double d = 0;
    int64_t n = 0;
    for (int r = 0; r < n_ranks; r++) {
        char raw[8];
        store(dtype, raw, 0, element(r, i));
        float xf = 0;
        double xd = 0;
        int64_t xn = 0;
        if (dtype == XP_F32)
            memcpy(&xf, raw, 4);
        if (dtype == XP_BF16)
            xf = xp_bf16_to_f32(*(uint16_t *)(void *)raw);
        if (dtype == XP_F64)
            memcpy(&xd, raw, 8);
        if (dtype == XP_I32)
            xn = *(int32_t *)(void *)raw;
        if (dtype == XP_I64)
            memcpy(&xn, raw, 8);
        bool better = op == XP_MAX ? xf > f || xd > d || xn > n : xf < f || xd < d || xn < n;
        if (r == 0 || (op != XP_SUM && better)) {
            f = xf;
            d = xd;
            n = xn;
        } else if (op == XP_SUM) {
            f += xf;
            d += xd;
            n += xn;
        }
    }
    if (dtype == XP_F32)
        memcpy(out, &f, 4);
    if (dtype == XP_BF16)
        *(uint16_t *)out = xp_bf16_from_f32(f);
    if (dtype == XP_F64)
        memcpy(out, &d, 8);
    if (dtype == XP_I32)
        *(int32_t *)out = (int32_t)n;
    if (dtype == XP_I64)
        memcpy(out, &n, 8);
}

static bool equals(xp_dtype dtype, xp_reduce_op op, int n_ranks, int64_t i, const char *at) {
    int64_t expected = 0;
    reduced(dtype, op, n_ranks, i, &expected);
    return memcmp(&expected, at, xp_dtype_bytes(dtype)) == 0;
}

static void all_reduce_body(rank_job *job) {
    const xp_dtype dtypes[] = {XP_F32, XP_BF16, XP_F64, XP_I32, XP_I64};
    for (int t = 0; t < 5; t++) {
        size_t size = xp_dtype_bytes(dtypes[t]);
        for (int s = 0; s < N_SIZES; s++) {
            char *send = malloc((size_t)sizes[s] * size + 1),
                 *recv = malloc((size_t)sizes[s] * size + 1);
            for (int op = XP_SUM; op <= XP_MIN; op++) {
                for (int64_t i = 0; i < sizes[s]; i++)
                    store(dtypes[t], send, i, element(job->rank, i));
                recv[(size_t)sizes[s] * size] = 42;
                RANK_CHECK(job, xp_comm_all_reduce(job->comm, send, recv, sizes[s], dtypes[t],
                                                   (xp_reduce_op)op, NULL) == XP_OK);
                RANK_CHECK(job, xp_comm_all_reduce(job->comm, send, send, sizes[s], dtypes[t],
                                                   (xp_reduce_op)op, NULL) == XP_OK);
                for (int64_t i = 0; i < sizes[s]; i++)
                    RANK_CHECK(job, equals(dtypes[t], (xp_reduce_op)op, job->n_ranks, i,
                                           recv + (size_t)i * size));
                RANK_CHECK(job, memcmp(send, recv, (size_t)sizes[s] * size) == 0);
                RANK_CHECK(job, recv[(size_t)sizes[s] * size] == 42);
            }
            free(send);
            free(recv);
        }
    }
}

static void reduce_scatter_body(rank_job *job) {
    const xp_dtype dtypes[] = {XP_F32, XP_BF16};
    for (int t = 0; t < 2; t++) {
        size_t size = xp_dtype_bytes(dtypes[t]);
        for (int s = 0; s < N_SIZES; s++) {
            int64_t n = sizes[s], all = n * job->n_ranks;
            char *send = malloc((size_t)all * size + 1), *recv = malloc((size_t)n * size + 1);
            for (int64_t i = 0; i < all; i++)
                store(dtypes[t], send, i, element(job->rank, i));
            RANK_CHECK(job,
                       xp_comm_reduce_scatter(job->comm, send, recv, n, dtypes[t], NULL) == XP_OK);
            for (int64_t i = 0; i < n; i++)
                RANK_CHECK(job, equals(dtypes[t], XP_SUM, job->n_ranks, n * job->rank + i,
                                       recv + (size_t)i * size));
            /* In place, into this rank's own part. */
            char *mine = send + (size_t)(n * job->rank) * size;
            RANK_CHECK(job,
                       xp_comm_reduce_scatter(job->comm, send, mine, n, dtypes[t], NULL) == XP_OK);
            RANK_CHECK(job, memcmp(mine, recv, (size_t)n * size) == 0);
            free(send);
            free(recv);
        }
    }
}

static void gather_body(rank_job *job) {
    for (int s = 0; s < N_SIZES; s++) {
        int64_t n = sizes[s];
        float *mine = malloc((size_t)n * 4 + 4), *all = malloc((size_t)(n * job->n_ranks) * 4 + 4);
        for (int64_t i = 0; i < n; i++)
            mine[i] = (float)element(job->rank, i);
        for (int in_place = 0; in_place < 2; in_place++) {
            memset(all, 0, (size_t)(n * job->n_ranks) * 4);
            float *send = in_place ? all + n * job->rank : mine;
            memmove(send, mine, (size_t)n * 4);
            RANK_CHECK(job, xp_comm_all_gather(job->comm, send, all, n, XP_F32, NULL) == XP_OK);
            for (int64_t i = 0; i < n * job->n_ranks; i++)
                RANK_CHECK(job, all[i] == (float)element((int)(i / n), i % n));
        }
        free(mine);
        free(all);
    }
}

static unsigned char byte_of(int from, int to, int64_t i) {
    return (unsigned char)(from * 31 + to * 7 + i);
}

static void all_to_all_body(rank_job *job) {
    for (int s = 0; s < N_SIZES; s++) {
        int64_t n = sizes[s];
        unsigned char *send = malloc((size_t)(n * job->n_ranks) + 1),
                      *recv = malloc((size_t)(n * job->n_ranks) + 1);
        for (int64_t i = 0; i < n * job->n_ranks; i++)
            send[i] = byte_of(job->rank, (int)(i / n), i % n);
        RANK_CHECK(job, xp_comm_all_to_all(job->comm, send, recv, n, NULL) == XP_OK);
        for (int64_t i = 0; i < n * job->n_ranks; i++)
            RANK_CHECK(job, recv[i] == byte_of((int)(i / n), job->rank, i % n));
        free(send);
        free(recv);
    }
}

/* Uneven counts, zeros among them, with gaps between the parts. */
static int64_t part(int from, int to) {
    return (from * 5 + to * 3) % 11 == 0 ? 0 : (from * 131 + to * 17) % 300;
}

static void all_to_allv_body(rank_job *job) {
    int64_t counts[4][16], n_send = 0, n_recv = 0;
    for (int r = 0; r < job->n_ranks; r++) {
        counts[0][r] = part(job->rank, r);
        counts[1][r] = n_send;
        counts[2][r] = part(r, job->rank);
        counts[3][r] = n_recv;
        n_send += counts[0][r] + 3;
        n_recv += counts[2][r] + 5;
    }
    unsigned char *send = malloc((size_t)n_send), *recv = calloc(1, (size_t)n_recv);
    for (int r = 0; r < job->n_ranks; r++) {
        for (int64_t i = 0; i < counts[0][r]; i++)
            send[counts[1][r] + i] = byte_of(job->rank, r, i);
    }
    xp_alltoallv_args args = {send, counts[0], counts[1], recv, counts[2], counts[3]};
    RANK_CHECK(job, xp_comm_all_to_allv(job->comm, &args, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++) {
        for (int64_t i = 0; i < counts[2][r]; i++)
            RANK_CHECK(job, recv[counts[3][r] + i] == byte_of(r, job->rank, i));
        for (int64_t i = 0; i < 5; i++)
            RANK_CHECK(job, recv[counts[3][r] + counts[2][r] + i] == 0);
    }
    free(send);
    free(recv);
}

static void broadcast_body(rank_job *job) {
    for (int root = 0; root < job->n_ranks; root++) {
        unsigned char data[777];
        for (int i = 0; i < 777; i++)
            data[i] = byte_of(job->rank, 1, i);
        RANK_CHECK(job, xp_comm_broadcast(job->comm, data, 777, root, NULL) == XP_OK);
        for (int i = 0; i < 777; i++)
            RANK_CHECK(job, data[i] == byte_of(root, 1, i));
    }
}

/* After barrier k every rank has set its k-th mark, in memory that also processes share. */
static void barrier_body(rank_job *job) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_window *window;
    if (!xp_comm_is_one_node(job->comm))
        return;
    RANK_CHECK(job, xp_device_create(&args, &device) == XP_OK);
    RANK_CHECK(job, xp_comm_window_create(job->comm, device, 64, "ep", &window) == XP_OK);
    _Atomic int *marks = xp_window_peer(window, 0);
    for (int k = 1; k <= 50; k++) {
        ++*marks;
        RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
        RANK_CHECK(job, *marks >= k * job->n_ranks);
        RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    }
    xp_comm_window_destroy(window);
    xp_device_destroy(device);
}

static void split_body(rank_job *job) {
    xp_comm *sub = NULL, *subsub = NULL;
    int color = job->rank % 3;
    RANK_CHECK(job, xp_comm_split(job->comm, color == 2 ? -1 : color, &sub) == XP_OK);
    RANK_CHECK(job, (sub == NULL) == (color == 2));
    if (!sub)
        return;
    RANK_CHECK(job, xp_comm_rank(sub) == job->rank / 3);
    RANK_CHECK(job, xp_comm_size(sub) == (job->n_ranks - color + 2) / 3);
    int64_t sum = job->rank, expected = 0;
    for (int r = color; r < job->n_ranks; r += 3)
        expected += r;
    RANK_CHECK(job, xp_comm_all_reduce(sub, &sum, &sum, 1, XP_I64, XP_SUM, NULL) == XP_OK);
    RANK_CHECK(job, sum == expected);
    RANK_CHECK(job, xp_comm_split(sub, xp_comm_rank(sub) / 2, &subsub) == XP_OK);
    RANK_CHECK(job, xp_comm_rank(subsub) == xp_comm_rank(sub) % 2);
    RANK_CHECK(job, xp_comm_barrier(subsub, NULL) == XP_OK);
    xp_comm_destroy(subsub);
    xp_comm_destroy(sub);
}

/* One communicator on a worker stream, a second over the same ranks on this thread, at the same
 * time. */
static void streams_body(rank_job *job) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_stream *stream;
    xp_comm *other;
    RANK_CHECK(job, xp_device_create(&args, &device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(device, XP_STREAM_WORKER, &stream) == XP_OK);
    RANK_CHECK(job, xp_comm_split(job->comm, 0, &other) == XP_OK);
    int64_t queued[100], direct[100];
    for (int i = 0; i < 100; i++) {
        queued[i] = direct[i] = job->rank + i;
        RANK_CHECK(job, xp_comm_all_reduce(other, &queued[i], &queued[i], 1, XP_I64, XP_SUM,
                                           stream) == XP_OK);
        RANK_CHECK(job, xp_comm_all_reduce(job->comm, &direct[i], &direct[i], 1, XP_I64, XP_MAX,
                                           NULL) == XP_OK);
    }
    RANK_CHECK(job, xp_stream_sync(stream) == XP_OK);
    for (int i = 0; i < 100; i++) {
        RANK_CHECK(job,
                   queued[i] == job->n_ranks * (job->n_ranks - 1) / 2 + (int64_t)i * job->n_ranks);
        RANK_CHECK(job, direct[i] == job->n_ranks - 1 + i);
    }
    xp_comm_destroy(other);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static void window_body(rank_job *job) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_window *window;
    if (!xp_comm_is_one_node(job->comm))
        return;
    RANK_CHECK(job, xp_device_create(&args, &device) == XP_OK);
    RANK_CHECK(job,
               xp_comm_window_create(job->comm, device, 64 * sizeof(int), "ep", &window) == XP_OK);
    RANK_CHECK(job, xp_device_bytes(device, "ep") >= (int64_t)(64 * sizeof(int)));
    int *mine = xp_window_peer(window, job->rank);
    for (int i = 0; i < 64; i++)
        RANK_CHECK(job, mine[i] == 0);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++)
        ((int *)xp_window_peer(window, r))[job->rank] = job->rank + 100;
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++)
        RANK_CHECK(job, mine[r] == r + 100);
    RANK_CHECK(job, xp_window_peer(window, job->n_ranks) == NULL);
    xp_comm_window_destroy(window);
    RANK_CHECK(job, xp_device_bytes(device, NULL) == 0);
    xp_device_destroy(device);
}

static void nodes_body(rank_job *job) {
    const int expected[] = {0, 1, 0, 2};
    RANK_CHECK(job, xp_comm_n_nodes(job->comm) == 3 && !xp_comm_is_one_node(job->comm));
    for (int r = 0; r < 4; r++)
        RANK_CHECK(job, xp_comm_node(job->comm, r) == expected[r]);
    xp_comm *node;
    RANK_CHECK(job, xp_comm_split(job->comm, expected[job->rank], &node) == XP_OK);
    RANK_CHECK(job, xp_comm_n_nodes(node) == 1 && xp_comm_is_one_node(node));
    RANK_CHECK(job, xp_comm_size(node) == (expected[job->rank] == 0 ? 2 : 1));
    xp_comm_destroy(node);
}

static void test_nodes(void **state) {
    (void)state;
    const int nodes[] = {7, 3, 7, 9};
    rank_job *jobs = run_ranks(4, 60, nodes, nodes_body);
    for (int r = 0; r < 4; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
    }
    free(jobs);
}

#define OVER_WORLDS(name)                                                                          \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        over_worlds(name##_body);                                                                  \
    }
OVER_WORLDS(all_reduce)
OVER_WORLDS(reduce_scatter)
OVER_WORLDS(gather)
OVER_WORLDS(all_to_all)
OVER_WORLDS(all_to_allv)
OVER_WORLDS(broadcast)
OVER_WORLDS(barrier)
OVER_WORLDS(split)
OVER_WORLDS(streams)
OVER_WORLDS(window)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_reduce),  cmocka_unit_test(test_reduce_scatter),
        cmocka_unit_test(test_gather),      cmocka_unit_test(test_all_to_all),
        cmocka_unit_test(test_all_to_allv), cmocka_unit_test(test_broadcast),
        cmocka_unit_test(test_barrier),     cmocka_unit_test(test_split),
        cmocka_unit_test(test_streams),     cmocka_unit_test(test_window),
        cmocka_unit_test(test_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
