/*
 * How a waiting barrier hears of a failure, without a GPU: the kernel's wait loop compiled for the host,
 * the words that peers and the host write, and the thread that watches the communicator.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "../comm/ranks.h"
#include "comm/provider.h"
#include "core/file.h"
#include "ep/p2p/abort_watch.h"

#define XP_EP_WAIT_FN static inline

static uint32_t load_acquire(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static void pause_poll(void) {
    sched_yield();
}

#include "ep/p2p/barrier_wait.h"

/* One rank's words. */
typedef struct words {
    uint32_t flag, failed, host_abort;
} words;

static void store(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static xp_ep_wait_args args_of(const words *w, uint32_t epoch, double timeout_s) {
    return (xp_ep_wait_args){.flag = &w->flag,
                             .epoch = epoch,
                             .failed = &w->failed,
                             .host_abort = &w->host_abort,
                             .timeout_ns = (uint64_t)(timeout_s * 1e9)};
}

static xp_ep_wait_result wait_on(const words *w, uint32_t epoch, double timeout_s,
                                 uint32_t *report) {
    const xp_ep_wait_args args = args_of(w, epoch, timeout_s);
    return xp_ep_wait_for_flag(&args, report);
}

typedef struct later {
    uint32_t *word, value;
    pthread_t thread;
} later;

static void *store_later(void *context) {
    const later *l = context;
    usleep(50000);
    store(l->word, l->value);
    return NULL;
}

/* The result of a wait during which somebody stores `value`; it must end soon after. */
static xp_ep_wait_result wait_while(words *w, uint32_t epoch, uint32_t *word, uint32_t value,
                                    uint32_t *report) {
    later l = {.word = word, .value = value};
    const double began = xp_time_s();
    assert_int_equal(pthread_create(&l.thread, NULL, store_later, &l), 0);
    const xp_ep_wait_result result = wait_on(w, epoch, 60, report);
    assert_true(xp_time_s() - began < 2);
    pthread_join(l.thread, NULL);
    return result;
}

static void test_reached(void **state) {
    (void)state;
    words w = {.flag = 7};
    uint32_t report = 0;
    assert_int_equal(wait_on(&w, 7, 60, &report), XP_EP_WAIT_REACHED);
    assert_int_equal(wait_on(&w, 6, 60, &report), XP_EP_WAIT_REACHED);
    assert_int_equal(wait_while(&w, 8, &w.flag, 8, &report), XP_EP_WAIT_REACHED);
    w.flag = 0xffffffffU; /* epochs wrap around */
    assert_int_equal(wait_while(&w, 1, &w.flag, 1, &report), XP_EP_WAIT_REACHED);
    /* A barrier that everybody has reached holds, whatever has happened since. */
    w.failed = w.host_abort = 1;
    assert_int_equal(wait_on(&w, 1, 60, &report), XP_EP_WAIT_REACHED);
}

/* A word that no call has written since 2^31 calls has not come, and none that is ahead either. */
static void test_exact(void **state) {
    (void)state;
    words w = {.flag = 7};
    uint32_t report = 0;
    const uint32_t epochs[] = {7, 8, 6, 7 + 0x7fffffffU, 7 + 0x80000000U, 7 + 0x80000001U, 0};
    for (size_t i = 0; i < sizeof epochs / sizeof epochs[0]; i++) {
        xp_ep_wait_args args = args_of(&w, epochs[i], 0.01);
        args.exact = true;
        assert_int_equal(xp_ep_wait_for_flag(&args, &report),
                         i == 0 ? XP_EP_WAIT_REACHED : XP_EP_WAIT_TIMED_OUT);
    }
}

static void test_reported(void **state) {
    (void)state;
    words w = {0};
    uint32_t report = 0;
    assert_int_equal(wait_while(&w, 1, &w.failed, 0x80020100U, &report), XP_EP_WAIT_REPORTED);
    assert_int_equal(report, 0x80020100U);
}

static void test_host_abort(void **state) {
    (void)state;
    words w = {0};
    uint32_t report = 0;
    assert_int_equal(wait_while(&w, 1, &w.host_abort, 1, &report), XP_EP_WAIT_HOST_ABORT);
}

static void test_timed_out(void **state) {
    (void)state;
    words w = {0};
    uint32_t report = 0;
    const double began = xp_time_s();
    assert_int_equal(wait_on(&w, 1, 0.1, &report), XP_EP_WAIT_TIMED_OUT);
    assert_true(xp_time_s() - began >= 0.1);
}

static xp_status no_kernel_error(const void *context) {
    (void)context; /* there is no kernel */
    return XP_OK;
}

static xp_status start_watch(xp_comm *comm, uint32_t *flag, xp_ep_abort_watch **watch) {
    const xp_ep_abort_watch_args args = {
        .comm = comm, .flag = flag, .kernel_error = no_kernel_error};
    return xp_ep_abort_watch_start(&args, watch);
}

/* Ranks 0 and 1 wait for rank 2, which gives up: both hear of it long before their time is up. */
static void wait_for_aborting(rank_job *job) {
    words w = {0};
    uint32_t report = 0;
    xp_ep_abort_watch *watch = NULL;
    RANK_CHECK(job, start_watch(job->comm, &w.host_abort, &watch) == XP_OK);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    const double began = xp_time_s();
    if (job->rank == 2) {
        usleep(100000);
        xp_comm_abort(job->comm, "out of memory on purpose");
    } else {
        RANK_CHECK(job, wait_on(&w, 1, 60, &report) == XP_EP_WAIT_HOST_ABORT);
        RANK_CHECK(job, xp_time_s() - began < 2);
        RANK_CHECK(job, xp_comm_async_error(job->comm) == XP_ECOMM);
    }
    xp_ep_abort_watch_stop(watch);
}

static void test_watch(void **state) {
    (void)state;
    expect_all(3, wait_for_aborting);
}

/* A healthy group's watch ends at once and has set nothing. */
static void stop_healthy(rank_job *job) {
    uint32_t flag = 0;
    xp_ep_abort_watch *watch = NULL;
    RANK_CHECK(job, start_watch(job->comm, &flag, &watch) == XP_OK);
    usleep(60000);
    const double began = xp_time_s();
    xp_ep_abort_watch_stop(watch);
    RANK_CHECK(job, xp_time_s() - began < 1);
    RANK_CHECK(job, flag == 0);
}

static void test_healthy(void **state) {
    (void)state;
    expect_all(2, stop_healthy);
}

/* The device of a rank: its kernel waits, and a word says that its time was up, as a barrier's does. */
typedef struct waiting_kernel {
    xp_comm *comm;
    uint32_t timed_out;
} waiting_kernel;

static xp_status report_timeout(const void *context) {
    const waiting_kernel *k = context;
    return load_acquire(&k->timed_out) == 0
               ? XP_OK
               : xp_comm_fail_timeout(k->comm, 2, "rank 0 waited 2 s in dispatch for rank 2");
}

/* Rank 0's kernel gives up waiting for rank 2, while no host thread looks: every rank hears at once, in
 * rank 0's words, and rank 1's kernel ends long before its own time is up. */
static void hear_of_kernel(rank_job *job) {
    words w = {0};
    uint32_t report = 0;
    waiting_kernel kernel = {.comm = job->comm};
    const xp_ep_abort_watch_args args = {.comm = job->comm,
                                         .flag = &w.host_abort,
                                         .kernel_error = report_timeout,
                                         .context = &kernel};
    xp_ep_abort_watch *watch = NULL;
    RANK_CHECK(job, xp_ep_abort_watch_start(&args, &watch) == XP_OK);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    const double began = xp_time_s();
    if (job->rank == 0)
        store(&kernel.timed_out, 1);
    RANK_CHECK(job, wait_on(&w, 1, 60, &report) == XP_EP_WAIT_HOST_ABORT);
    RANK_CHECK(job, xp_time_s() - began < 2);
    RANK_CHECK(job, xp_comm_async_error(job->comm) == XP_ECOMM);
    RANK_CHECK(job, strstr(xp_last_error(), "in dispatch for rank 2") != NULL);
    xp_ep_abort_watch_stop(watch);
}

static void test_kernel_error(void **state) {
    (void)state;
    expect_all(3, hear_of_kernel);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reached),   cmocka_unit_test(test_exact),
        cmocka_unit_test(test_reported),  cmocka_unit_test(test_host_abort),
        cmocka_unit_test(test_timed_out), cmocka_unit_test(test_watch),
        cmocka_unit_test(test_healthy),   cmocka_unit_test(test_kernel_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
