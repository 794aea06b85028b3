/* How failures of the NCCL engine end: on every rank, in time, with the communicator aborted once
 * and the stream free. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"
#include "nccl_rig.h"

/* The wall clock is a day ahead of the one that waits of the library started with: no time limit
 * may depend on it. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    const int code = (int)syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += 86400;
    return code;
}

/* Every rank must have an error that contains `text`, one abort for each communicator made, and
 * no other end of it. */
static void expect_failure(rank_job *jobs, int n_ranks, const char *text, int without_comm) {
    for (int r = 0; r < n_ranks; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
        if (!strstr(jobs[r].error, text))
            fail_msg("rank %d says \"%s\", not \"%s\"", r, jobs[r].error, text);
        assert_int_equal(jobs[r].status, XP_ECOMM);
        assert_true(jobs[r].seconds < 8);
        assert_int_equal(fake_count(r, FAKE_ABORT), r == without_comm ? 0 : 1);
        assert_int_equal(fake_count(r, FAKE_FINALIZE) + fake_count(r, FAKE_DESTROY), 0);
    }
    free(jobs);
}

static void keep_error(rank_job *job, xp_status status) {
    job->status = status;
    snprintf(job->error, sizeof job->error, "%s", xp_last_error());
}

static void init_fails_body(rank_job *job) {
    rig r;
    const double began = xp_time_s();
    if (job->rank != 1)
        fake_set_mode(FAKE_NEVER_TAKEN); /* they wait for rank 1 */
    rig_build(job, job->comm, &r, XP_STREAM_COMPUTE, 0);
    keep_error(job, job->status);
    job->seconds = xp_time_s() - began;
    rig_tear_down(job, &r);
}

static void test_init_fails(void **state) {
    (void)state;
    fake_reset();
    fake_fail_init(1);
    expect_failure(run_ranks(4, 5, NULL, init_fails_body), 4, "made to fail", 1);
}

static fake_mode late_mode;

/* Everybody is ready; then rank 2 does not come to the next collective, whose calls the others'
 * NCCL does not take, or takes and never ends. */
static void late_body(rank_job *job) {
    rig r;
    char data[256] = {0};
    if (!rig_build(job, job->comm, &r, XP_STREAM_WORKER, 0))
        job->n_wrong++;
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    fake_set_mode(late_mode);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    const double began = xp_time_s();
    xp_comm_call call = {.kind = XP_COMM_ALL_GATHER, .dtype = XP_U8, .n = 16, .phase = "late"};
    call.send = data;
    call.recv = data + 64;
    xp_status status = XP_OK;
    if (job->rank != 2)
        status = r.backend->ops->run(r.backend, &call, r.stream);
    if (status == XP_OK && job->rank != 2)
        status = xp_stream_sync(r.stream);
    while (status == XP_OK && xp_time_s() - began < 10)
        status = xp_comm_async_error(job->comm);
    keep_error(job, status);
    job->seconds = xp_time_s() - began;
    rig_tear_down(job, &r);
}

static void run_late(fake_mode mode) {
    fake_reset();
    late_mode = mode;
    expect_failure(run_ranks(4, 1.5, NULL, late_body), 4, "in all-gather (late) on cpu for rank 2",
                   -1);
}

/* Ranks 0 and 1 cannot see ranks 2 and 3: they must not blame rank 3, which is as healthy as they.
 * */
static void test_other_node(void **state) {
    (void)state;
    const int nodes[] = {0, 0, 1, 1};
    fake_reset();
    late_mode = FAKE_HANGS;
    rank_job *jobs = run_ranks(4, 1.5, nodes, late_body);
    for (int r = 0; r < 4; r++)
        if (strstr(jobs[r].error, "rank 3 waited") == NULL || strstr(jobs[r].error, ", rank 3"))
            fail_msg("rank %d says \"%s\"", r, jobs[r].error);
    expect_failure(jobs, 4, "in all-gather (late) on cpu for rank 2", -1);
}

static void test_never_taken(void **state) {
    (void)state;
    run_late(FAKE_NEVER_TAKEN);
}

static void test_hangs(void **state) {
    (void)state;
    run_late(FAKE_HANGS);
}

/* A rank gives up while the others wait on their GPUs: they end long before the timeout. */
static void gives_up_body(rank_job *job) {
    rig r;
    if (!rig_build(job, job->comm, &r, XP_STREAM_WORKER, 0))
        job->n_wrong++;
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    fake_set_mode(FAKE_HANGS);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    const double began = xp_time_s();
    const xp_comm_call call = {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = "test"};
    if (job->rank == 3) {
        while (xp_time_s() - began < 0.3) {
        }
        xp_comm_abort(job->comm, "made to give up");
    } else if (r.backend->ops->run(r.backend, &call, r.stream) == XP_OK) {
        RANK_CHECK(job, xp_stream_sync(r.stream) == XP_OK);
    }
    keep_error(job, xp_comm_async_error(job->comm));
    job->seconds = xp_time_s() - began;
    rig_tear_down(job, &r);
}

static void test_gives_up(void **state) {
    (void)state;
    fake_reset();
    expect_failure(run_ranks(4, 60, NULL, gives_up_body), 4, "made to give up", -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init_fails), cmocka_unit_test(test_never_taken),
        cmocka_unit_test(test_hangs),      cmocka_unit_test(test_other_node),
        cmocka_unit_test(test_gives_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
