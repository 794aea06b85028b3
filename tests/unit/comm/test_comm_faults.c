/* A rank that is late, gives up or makes another call: every rank learns of it in time, by name. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include <time.h>
#include <stdatomic.h>
#include <unistd.h>
#include "comm/on_failure.h"
#include "comm/provider.h"
#include "core/error.h"
#include "ranks.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void keep_error(rank_job *job, xp_status status, double started) {
    job->status = status;
    job->seconds = now() - started;
    snprintf(job->error, sizeof job->error, "%s", xp_last_error());
    RANK_CHECK(job, xp_comm_get_failure(job->comm, &job->failure) == (status == XP_ECOMM));
}

/* The last rank does not come to the second all-reduce. */
static void late_body(rank_job *job) {
    float x = 1;
    xp_comm_set_phase(job->comm, "gradients");
    RANK_CHECK(job, xp_comm_all_reduce(job->comm, &x, &x, 1, XP_F32, XP_SUM, NULL) == XP_OK);
    double started = now();
    if (job->rank == job->n_ranks - 1)
        usleep(2000000);
    keep_error(job, xp_comm_all_reduce(job->comm, &x, &x, 1, XP_F32, XP_SUM, NULL), started);
    RANK_CHECK(job, xp_comm_async_error(job->comm) == XP_ECOMM);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_ECOMM); /* it stays */
}

static void expect_record(const rank_job *job, xp_failure_reason reason, int culprit,
                          const char *phase) {
    assert_string_equal(xp_failure_reason_name(job->failure.reason),
                        xp_failure_reason_name(reason));
    assert_int_equal(job->failure.culprit, culprit);
    assert_string_equal(job->failure.phase, phase);
    assert_string_equal(job->failure.text, job->error);
}

static void test_late(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(5, 0.3, NULL, late_body);
    for (int r = 0; r < 5; r++) {
        assert_int_equal(jobs[r].n_wrong, 0);
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_non_null(strstr(jobs[r].error, "rank 4"));
        assert_non_null(strstr(jobs[r].error, "gradients"));
        assert_null(strstr(jobs[r].error, "rank 3 (")); /* who came is not blamed */
        expect_record(&jobs[r], XP_FAILURE_TIMEOUT, 4, "gradients");
        assert_in_range(jobs[r].failure.reporter, 0, 3);
        if (r < 4)
            assert_true(jobs[r].seconds < 1.8); /* it does not wait for rank 4 */
    }
    free(jobs);
}

/* Rank 0 waits for rank 1, which waits for rank 3 in another communicator: rank 3 is to blame. */
static void chain_body(rank_job *job) {
    xp_comm *pair;
    RANK_CHECK(job, xp_comm_split(job->comm, job->rank / 2, &pair) == XP_OK);
    double started = now();
    if (job->rank == 3)
        usleep(1500000);
    else if (job->rank == 0 || job->rank == 2)
        keep_error(job, xp_comm_barrier(pair, NULL), started);
    else
        keep_error(job, xp_comm_barrier(job->comm, NULL), started);
    xp_comm_destroy(pair);
}

static void test_chain(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(4, 0.3, NULL, chain_body);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_non_null(strstr(jobs[r].error, "for rank 3"));
        assert_int_equal(jobs[r].failure.culprit, 3);
    }
    free(jobs);
}

static void abort_body(rank_job *job) {
    double started = now();
    if (job->rank == 1) {
        usleep(50000);
        xp_comm_set_phase(job->comm, "checkpoint");
        xp_comm_abort(job->comm, "the disk is full");
        keep_error(job, xp_comm_async_error(job->comm), started);
        return;
    }
    keep_error(job, xp_comm_barrier(job->comm, NULL), started);
    xp_comm_abort(job->comm, "a later reason"); /* the first one stays */
    RANK_CHECK(job, xp_comm_async_error(job->comm) == XP_ECOMM);
    RANK_CHECK(job, strstr(xp_last_error(), "the disk is full"));
}

static void test_abort(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(4, 30, NULL, abort_body);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(jobs[r].n_wrong, 0);
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_string_equal(jobs[r].error, "rank 1 gave up in checkpoint: the disk is full");
        expect_record(&jobs[r], XP_FAILURE_ABORT, 1, "checkpoint");
        assert_int_equal(jobs[r].failure.reporter, 1);
        assert_true(jobs[r].seconds < 5);
    }
    free(jobs);
}

/* A failure that all ranks have agreed on stays its rank's, whichever rank aborts first; a reason
 * that only looks like the last error is the caller's own. */
static void agreed_body(rank_job *job) {
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    if (job->rank == 0) {
        xp_error(XP_EIO, "rank 2: the disk is full");
        xp_error_set_rank(2);
        xp_comm_abort(job->comm, NULL);
        RANK_CHECK(job, strcmp(xp_last_error(), "rank 2: the disk is full") == 0);
    }
    while (xp_comm_async_error(job->comm) == XP_OK)
        usleep(1000);
    keep_error(job, xp_comm_async_error(job->comm), now());
}

static void test_agreed(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(3, 30, NULL, agreed_body);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(jobs[r].n_wrong, 0);
        assert_string_equal(jobs[r].error, "rank 2 gave up in the run: the disk is full");
        expect_record(&jobs[r], XP_FAILURE_ABORT, 2, "");
        assert_int_equal(jobs[r].failure.reporter, 0);
    }
    free(jobs);
}

static void mismatch_body(rank_job *job) {
    float x[8] = {0};
    keep_error(job,
               xp_comm_all_reduce(job->comm, x, x, job->rank == 2 ? 7 : 8, XP_F32, XP_SUM, NULL),
               now());
}

static void test_mismatch(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(3, 30, NULL, mismatch_body);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_non_null(strstr(jobs[r].error, "do not make the same call"));
        expect_record(&jobs[r], XP_FAILURE_MISMATCH, -1, "");
    }
    free(jobs);
}

/* Aborts at random moments of a storm of collectives: buffers are freed at once, no rank hangs or
 * touches them (ASan, TSan). */
static void storm_body(rank_job *job) {
    xp_status status = XP_OK;
    for (int i = 0; status == XP_OK && i < 100000; i++) {
        int64_t n = 1 + (i * 37) % 5000;
        float *x = calloc((size_t)n, sizeof *x), *y = calloc((size_t)n, sizeof *y);
        status = xp_comm_all_reduce(job->comm, x, y, n, XP_F32, XP_SUM, NULL);
        free(x);
        free(y);
        if (job->rank == 0 && i == 40)
            xp_comm_abort(job->comm, "enough");
    }
    job->status = status;
}

static void test_storm(void **state) {
    (void)state;
    for (int i = 0; i < 10; i++) {
        rank_job *jobs = run_ranks(6, 30, NULL, storm_body);
        for (int r = 0; r < 6; r++)
            assert_int_equal(jobs[r].status, XP_ECOMM);
        free(jobs);
    }
}

static void queued_body(rank_job *job) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_stream *stream;
    float x = 1;
    RANK_CHECK(job, xp_device_create(&args, &device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(device, XP_STREAM_WORKER, &stream) == XP_OK);
    if (job->rank == 0)
        xp_comm_abort(job->comm, "nothing works");
    xp_status queued = xp_comm_all_reduce(job->comm, &x, &x, 1, XP_F32, XP_SUM, stream);
    keep_error(job, queued == XP_OK ? xp_stream_sync(stream) : queued, now());
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

/* The failure of queued work comes out of the stream's sync, with its text. */
static void test_queued(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(2, 30, NULL, queued_body);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(jobs[r].n_wrong, 0);
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_non_null(strstr(jobs[r].error, "nothing works"));
    }
    free(jobs);
}

#define WINDOW_BYTES ((size_t)8 << 20) /* the C library gives so much back to the system at once */

static xp_window *make_window(rank_job *job, xp_device **device) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_window *window = NULL;
    RANK_CHECK(job, xp_device_create(&args, device) == XP_OK);
    RANK_CHECK(job,
               xp_comm_window_create(job->comm, *device, WINDOW_BYTES, "test", &window) == XP_OK);
    return window;
}

/* Rank 0 fails and frees its window while rank 1 is still in a long copy into it: the memory must
 * stay (the process would crash; TSan and ASan see more). */
static void long_copy_body(rank_job *job) {
    xp_device *device = NULL;
    xp_window *window = make_window(job, &device);
    char *theirs = xp_window_peer(window, 0);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    const double started = now();
    if (job->rank == 0)
        xp_comm_abort(job->comm, "made to give up");
    while (job->rank == 1 && now() - started < 2.5)
        for (size_t i = 0; i < WINDOW_BYTES; i += 4096)
            theirs[i] = (char)(i >> 12);
    for (size_t i = 0; i < WINDOW_BYTES && job->rank == 1; i += 4096)
        RANK_CHECK(job, theirs[i] == (char)(i >> 12));
    xp_comm_window_destroy(window);
    job->seconds = now() - started;
    RANK_CHECK(job, xp_device_bytes(device, NULL) == 0);
    xp_device_destroy(device);
}

/* Healthy ranks part in whatever order they like: each window's end is its own. */
static void two_windows_body(rank_job *job) {
    xp_device *devices[2] = {NULL, NULL};
    xp_window *windows[2];
    for (int i = 0; i < 2; i++)
        windows[i] = make_window(job, &devices[i]);
    char *theirs = xp_window_peer(windows[0], 1 - job->rank);
    for (int i = 0; i < 100 && job->rank == 0; i++) {
        for (size_t k = 0; k < WINDOW_BYTES; k += 4096)
            theirs[k] = 1;
        usleep(1000);
    }
    for (int i = 0; i < 2; i++)
        xp_comm_window_destroy(windows[i]);
    for (int i = 0; i < 2; i++)
        xp_device_destroy(devices[i]);
}

static void test_window_lifetime(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(2, 30, NULL, long_copy_body);
    for (int r = 0; r < 2; r++)
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
    assert_true(jobs[0].seconds < 2); /* it does not wait for rank 1 either */
    free(jobs);
    expect_all(2, two_windows_body);
}

/* Rank 2 never gets as far as a communicator. */
static void absent_body(rank_job *job) {
    const double started = now();
    if (job->rank == 2) {
        usleep(50000);
        xp_thread_world_abort(job->world, 2, "its GPU is gone");
    }
    keep_error(job, xp_comm_barrier(job->comm, NULL), started);
}

static void test_absent(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(3, 30, NULL, absent_body);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(jobs[r].n_wrong, 0);
        assert_string_equal(jobs[r].error,
                            "rank 2 gave up before it had a communicator: its GPU is gone");
        expect_record(&jobs[r], XP_FAILURE_ABORT, 2, "");
        assert_true(jobs[r].seconds < 2);
    }
    free(jobs);
}

static void count_call(void *context) {
    atomic_fetch_add((_Atomic int *)context, 1);
}

/* Every rank's hook runs once, also where the rank waits for nothing of the communicator; a removed
 * one never does, one that comes after the failure does at once. */
static void hook_body(rank_job *job) {
    _Atomic int n = 0, n_removed = 0, n_late = 0;
    xp_failure_hook hook = {.call = count_call, .context = &n};
    xp_failure_hook removed = {.call = count_call, .context = &n_removed};
    xp_failure_hook late = {.call = count_call, .context = &n_late};
    xp_comm *pair;
    RANK_CHECK(job, xp_comm_split(job->comm, job->rank / 2, &pair) == XP_OK);
    xp_comm_on_failure(pair, &hook);
    xp_comm_on_failure(job->comm, &removed);
    xp_comm_remove_on_failure(job->comm, &removed);
    RANK_CHECK(job, atomic_load(&n) == 0);
    RANK_CHECK(job,
               xp_comm_barrier(job->comm, NULL) == XP_OK); /* after it rank 3 may fail any time */
    if (job->rank == 3)
        xp_comm_abort(job->comm, "made to give up");
    const double started = now();
    while (atomic_load(&n) == 0 && now() - started < 5)
        usleep(100);
    job->seconds = now() - started;
    xp_comm_on_failure(job->comm, &late);
    RANK_CHECK(job, atomic_load(&n_late) == 1);
    RANK_CHECK(job, atomic_load(&n) == 1);
    RANK_CHECK(job, atomic_load(&n_removed) == 0);
    RANK_CHECK(job, xp_comm_async_error(job->comm) == XP_ECOMM);
    xp_comm_remove_on_failure(pair, &hook);
    xp_comm_remove_on_failure(pair, &late);
    xp_comm_remove_on_failure(pair, &removed); /* not there: nothing happens */
    xp_comm_destroy(pair);
}

static void test_hooks(void **state) {
    (void)state;
    rank_job *jobs = run_ranks(4, 30, NULL, hook_body);
    for (int r = 0; r < 4; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
        assert_true(jobs[r].seconds < 2);
    }
    free(jobs);
}

static void test_arguments(void **state) {
    (void)state;
    xp_thread_world *world = NULL;
    xp_comm *comm = NULL;
    float x = 0;
    assert_int_equal(xp_thread_world_create(0, 1, &world), XP_EINVAL);
    assert_int_equal(xp_thread_world_create(2, 0, &world), XP_EINVAL);
    assert_int_equal(xp_thread_world_create(1, 1, &world), XP_OK);
    assert_int_equal(xp_thread_world_comm(world, 1, &comm), XP_EINVAL);
    assert_int_equal(xp_thread_world_comm(world, 0, &comm), XP_OK);
    assert_int_equal(xp_comm_all_reduce(comm, &x, &x, -1, XP_F32, XP_SUM, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_all_reduce(comm, NULL, &x, 1, XP_F32, XP_SUM, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_all_reduce(comm, &x, &x, 1, XP_U8, XP_SUM, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_all_reduce(comm, &x, &x, 1, XP_F32, (xp_reduce_op)9, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_broadcast(comm, &x, 4, 1, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_all_gather(comm, &x, &x, 1, XP_N_DTYPES, NULL), XP_EINVAL);
    assert_int_equal(xp_comm_async_error(comm), XP_OK);
    xp_comm_destroy(comm);
    xp_thread_world_destroy(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late),      cmocka_unit_test(test_chain),
        cmocka_unit_test(test_abort),     cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_storm),     cmocka_unit_test(test_queued),
        cmocka_unit_test(test_hooks),     cmocka_unit_test(test_agreed),
        cmocka_unit_test(test_absent),    cmocka_unit_test(test_window_lifetime),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
