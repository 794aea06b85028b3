/*
 * The NCCL engine's host half, on a table of calls that records them and moves data on the host:
 * what is called, in which order, with which counts, types, peers and streams; that results are the
 * provider's bit for bit.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "comm/device/choose.h"
#include "comm/device/staged.h"
#include "comm/nccl/collectives.h"
#include "nccl_rig.h"

/* ThreadSanitizer makes many ranks slow and sees nothing new in them. */
#ifdef __SANITIZE_THREAD__
static const int worlds[] = {2, 3, 4};
#else
static const int worlds[] = {2, 3, 4, 8, 16};
#endif

static void over_worlds(void (*body)(rank_job *job)) {
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++) {
        fake_reset();
        expect_all(worlds[i], body);
        assert_int_equal(fake_n_left(), 0);
    }
}

/* ---- results ------------------------------------------------------------------------------ */

static void fill(char *data, int64_t n, xp_dtype dtype, int rank) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = (uint32_t)rank * 2654435761U ^ (uint32_t)i * 40503U;
        h = (h ^ h >> 13) * 0x5bd1e995U;
        const float x = ((float)(h >> 8) / 16777216.0F - 0.5F) * (1.0F + (float)rank);
        const double d = x;
        const uint16_t b = xp_bf16_from_f32(x);
        const void *from = dtype == XP_F32 ? (const void *)&x : dtype == XP_F64 ? &d : (void *)&b;
        memcpy(data + (size_t)i * xp_dtype_bytes(dtype), from, xp_dtype_bytes(dtype));
    }
}

/* The same call by the provider and by the engine, into two buffers. */
static void compare(rank_job *job, rig *r, xp_comm_call call, int64_t n_send, int64_t n_recv) {
    const size_t size = xp_dtype_bytes(call.dtype);
    char *send = malloc((size_t)n_send * size + 8), *one = calloc(1, (size_t)n_recv * size + 8),
         *two = calloc(1, (size_t)n_recv * size + 8);
    const bool bytes = call.dtype == XP_U8; /* of an even number */
    fill(send, bytes ? n_send / 2 : n_send, bytes ? XP_BF16 : call.dtype, job->rank);
    call.send = send;
    call.recv = one;
    if (call.kind == XP_COMM_BROADCAST) {
        memcpy(one, send, (size_t)n_send * size);
        memcpy(two, send, (size_t)n_send * size);
        call.send = one;
    }
    RANK_CHECK(job, job->comm->provider->run(job->comm, &call) == XP_OK);
    call.recv = two;
    call.send = call.kind == XP_COMM_BROADCAST ? two : send;
    RANK_CHECK(job, r->backend->ops->run(r->backend, &call, r->stream) == XP_OK);
    RANK_CHECK(job, xp_stream_sync(r->stream) == XP_OK);
    RANK_CHECK(job, memcmp(one, two, (size_t)n_recv * size + 8) == 0);
    if (call.kind == XP_COMM_ALL_REDUCE) { /* in place */
        call.recv = send;
        RANK_CHECK(job, r->backend->ops->run(r->backend, &call, r->stream) == XP_OK);
        RANK_CHECK(job, memcmp(one, send, (size_t)n_recv * size) == 0);
    }
    if (call.kind == XP_COMM_REDUCE_SCATTER) {
        call.recv = send + (size_t)(call.n * job->rank) * size;
        RANK_CHECK(job, r->backend->ops->run(r->backend, &call, r->stream) == XP_OK);
        RANK_CHECK(job, memcmp(one, call.recv, (size_t)n_recv * size) == 0);
    }
    free(send);
    free(one);
    free(two);
}

static void compare_all(rank_job *job, rig *r) {
    /* The last takes several pieces of the scratch. */
    const int64_t sizes[] = {0, 1, 63, 64, 1000, 40000};
    const xp_dtype dtypes[] = {XP_F32, XP_BF16, XP_F64};
    const int n = job->n_ranks;
    for (int s = 0; s < 6; s++) {
        for (int t = 0; t < 3; t++) {
            xp_comm_call call = {.n = sizes[s], .dtype = dtypes[t], .phase = "test"};
            call.kind = XP_COMM_REDUCE_SCATTER;
            compare(job, r, call, sizes[s] * n, sizes[s]);
            call.kind = XP_COMM_ALL_GATHER;
            compare(job, r, call, sizes[s], sizes[s] * n);
            call.kind = XP_COMM_ALL_REDUCE;
            for (int op = XP_SUM; op <= XP_MIN; op++) {
                call.op = (xp_reduce_op)op;
                compare(job, r, call, sizes[s], sizes[s]);
            }
        }
        xp_comm_call call = {.n = sizes[s] / 2 * 2, .dtype = XP_U8, .phase = "test"};
        call.kind = XP_COMM_ALL_TO_ALL;
        compare(job, r, call, call.n * n, call.n * n);
        call.kind = XP_COMM_BROADCAST;
        call.root = n - 1;
        compare(job, r, call, call.n, call.n);
    }
    const xp_comm_call barrier = {.kind = XP_COMM_BARRIER, .dtype = XP_U8};
    RANK_CHECK(job, r->backend->ops->run(r->backend, &barrier, r->stream) == XP_OK);
}

static void compare_uneven(rank_job *job, rig *r) {
    int64_t counts[4][FAKE_MAX_RANKS], n_send = 0, n_recv = 0;
    char send[FAKE_MAX_RANKS * 64], one[FAKE_MAX_RANKS * 64], two[FAKE_MAX_RANKS * 64];
    for (int i = 0; i < job->n_ranks; i++) {
        counts[0][i] = (job->rank * 7 + i * 3) % 5 * 11;
        counts[1][i] = n_send;
        counts[2][i] = (i * 7 + job->rank * 3) % 5 * 11;
        counts[3][i] = n_recv;
        n_send += counts[0][i];
        n_recv += counts[2][i] + 2;
    }
    memset(one, 0, sizeof one);
    memset(two, 0, sizeof two);
    fill(send, sizeof send / 4, XP_F32, job->rank);
    xp_comm_call call = {.kind = XP_COMM_ALL_TO_ALLV, .dtype = XP_U8, .phase = "test"};
    call.v = (xp_alltoallv_args){send, counts[0], counts[1], one, counts[2], counts[3]};
    RANK_CHECK(job, job->comm->provider->run(job->comm, &call) == XP_OK);
    call.v.recv = two;
    RANK_CHECK(job, r->backend->ops->run(r->backend, &call, r->stream) == XP_OK);
    RANK_CHECK(job, xp_stream_sync(r->stream) == XP_OK);
    RANK_CHECK(job, memcmp(one, two, sizeof one) == 0);
}

static void results_body(rank_job *job) {
    rig r;
    if (!rig_build(job, job->comm, &r, XP_STREAM_COMPUTE, 4096))
        job->n_wrong++;
    else {
        compare_all(job, &r);
        compare_uneven(job, &r);
    }
    rig_tear_down(job, &r);
}

static void test_results(void **state) {
    (void)state;
    over_worlds(results_body);
}

/* On several nodes NCCL adds, except bf16. */
static void test_results_nodes(void **state) {
    (void)state;
    const int nodes[] = {0, 1, 0, 1};
    fake_reset();
    rank_job *jobs = run_ranks(4, 60, nodes, results_body);
    for (int r = 0; r < 4; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
        assert_true(fake_count(r, FAKE_REDUCE_SCATTER) > 0);
        for (int i = 0; i < fake_n_calls(r); i++) {
            const fake_call *c = &fake_calls(r)[i];
            if (c->fn == FAKE_REDUCE_SCATTER || c->fn == FAKE_ALL_REDUCE)
                assert_int_not_equal(c->dtype, XP_BF16);
        }
    }
    free(jobs);
}

/* The other way for GPUs, through host memory, on the CPU's. */
static void staged_body(rank_job *job) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    rig r = {0};
    RANK_CHECK(job, xp_device_create(&args, &r.device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(r.device, XP_STREAM_COMPUTE, &r.stream) == XP_OK);
    RANK_CHECK(job, xp_staged_backend_create(job->comm, r.device, 4096, &r.backend) == XP_OK);
    compare_all(job, &r);
    compare_uneven(job, &r);
    rig_tear_down(job, &r);
}

static void test_staged(void **state) {
    (void)state;
    over_worlds(staged_body);
}

/* ---- sequences ---------------------------------------------------------------------------- */

#define NEXT(job, at, want) RANK_CHECK(job, fake_calls((job)->rank)[(*(at))++].fn == (want))

/* A group of one send and one receive for each peer, starting after this rank. */
static void expect_exchange(rank_job *job, int *at, void *nccl, int64_t n_bytes,
                            const xp_stream *stream) {
    NEXT(job, at, FAKE_GROUP_START);
    for (int i = 1; i < job->n_ranks; i++)
        for (int k = 0; k < 2; k++) {
            const fake_call *c = &fake_calls(job->rank)[(*at)++];
            RANK_CHECK(job, c->fn == (k == 0 ? FAKE_SEND : FAKE_RECV));
            RANK_CHECK(job, c->peer == (job->rank + i) % job->n_ranks);
            RANK_CHECK(job, c->nccl == nccl && c->n == n_bytes);
            RANK_CHECK(job, stream == NULL || c->stream == stream);
        }
    NEXT(job, at, FAKE_GROUP_END);
}

static void *expect_start(rank_job *job, int *at, int id) {
    if (job->rank == 0)
        NEXT(job, at, FAKE_GET_ID);
    const fake_call *init = &fake_calls(job->rank)[(*at)++];
    RANK_CHECK(job, init->fn == FAKE_INIT && init->n_ranks == job->n_ranks && init->max_ctas == 0);
    RANK_CHECK(job, init->rank == job->rank && init->id == id);
    NEXT(job, at, FAKE_ALL_REDUCE);
    const int64_t n = xp_nccl_scratch_bytes(job->n_ranks, 0) / 2 / job->n_ranks;
    expect_exchange(job, at, init->nccl, n, NULL);
    NEXT(job, at, FAKE_ALL_GATHER);
    NEXT(job, at, FAKE_BROADCAST);
    return init->nccl;
}

static void sequence_body(rank_job *job) {
    rig r;
    int at = 0;
    char *data = calloc(2 * FAKE_MAX_RANKS, 4096);
    if (!rig_build(job, job->comm, &r, XP_STREAM_COMPUTE, 0))
        job->n_wrong++;
    void *nccl = expect_start(job, &at, 0);
    xp_comm_call call = {.kind = XP_COMM_ALL_TO_ALL, .dtype = XP_U8, .n = 1000, .phase = "test"};
    call.send = data;
    call.recv = data + FAKE_MAX_RANKS * 4096;
    RANK_CHECK(job, r.backend->ops->run(r.backend, &call, r.stream) == XP_OK);
    expect_exchange(job, &at, nccl, 1000, r.stream);
    call.kind = XP_COMM_REDUCE_SCATTER;
    call.dtype = XP_BF16;
    RANK_CHECK(job, r.backend->ops->run(r.backend, &call, r.stream) == XP_OK);
    expect_exchange(job, &at, nccl, 2000, r.stream);
    call.kind = XP_COMM_BROADCAST;
    call.dtype = XP_U8;
    call.root = 1;
    call.send = call.recv;
    RANK_CHECK(job, r.backend->ops->run(r.backend, &call, r.stream) == XP_OK);
    const fake_call *c = &fake_calls(job->rank)[at++];
    RANK_CHECK(job, c->fn == FAKE_BROADCAST && c->peer == 1 && c->n == 1000);
    RANK_CHECK(job, c->stream == r.stream);
    rig_tear_down(job, &r);
    NEXT(job, &at, FAKE_FINALIZE);
    NEXT(job, &at, FAKE_DESTROY);
    RANK_CHECK(job, fake_n_calls(job->rank) == at);
    free(data);
}

static void test_sequence(void **state) {
    (void)state;
    over_worlds(sequence_body);
    for (int r = 1; r < 16; r++)
        assert_int_equal(fake_count(r, FAKE_GET_ID), 0);
}

/* Parts of the world have communicators, and ids, of their own. */
static void split_body(rank_job *job) {
    rig r;
    xp_comm *half;
    RANK_CHECK(job, xp_comm_split(job->comm, job->rank % 2, &half) == XP_OK);
    half->max_ctas = 3;
    if (!rig_build(job, half, &r, XP_STREAM_COMPUTE, 0))
        job->n_wrong++;
    const int n = fake_n_calls(job->rank);
    for (int i = 0; i < n && i < 2; i++) {
        const fake_call *c = &fake_calls(job->rank)[i];
        RANK_CHECK(job, c->fn != FAKE_INIT || (c->n_ranks == xp_comm_size(half) &&
                                               c->rank == xp_comm_rank(half) && c->max_ctas == 3));
    }
    xp_comm_backend_destroy(r.backend);
    r.backend = NULL;
    xp_comm_destroy(half);
    rig_tear_down(job, &r);
}

static void test_split(void **state) {
    (void)state;
    fake_reset();
    expect_all(8, split_body);
    assert_int_equal(fake_count(0, FAKE_GET_ID), 1);
    assert_int_equal(fake_count(1, FAKE_GET_ID), 1);
    assert_int_equal(fake_count(2, FAKE_GET_ID), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results), cmocka_unit_test(test_results_nodes),
        cmocka_unit_test(test_staged),  cmocka_unit_test(test_sequence),
        cmocka_unit_test(test_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
