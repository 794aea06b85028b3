#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device/cpu/cpu_device.h"

static xp_device *make(xp_device_kind kind, int n_threads, const char *caps) {
    xp_device *device;
    xp_device_args args = {.kind = kind, .n_threads = n_threads, .caps = caps};
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    return device;
}

static void test_bytes_are_accounted_by_tag_alike_on_every_device(void **state) {
    (void)state;
    xp_device_kind kinds[] = {XP_DEVICE_CPU, XP_DEVICE_NULL};
    for (int k = 0; k < 2; k++) {
        xp_device *device = make(kinds[k], 1, NULL);
        void *a, *b, *c;
        assert_int_equal(xp_device_alloc(device, 1000, "params", &a), XP_OK);
        assert_int_equal(xp_device_alloc(device, 1, "grads", &b), XP_OK);
        assert_int_equal(xp_device_alloc(device, 0, "params", &c), XP_OK);
        assert_ptr_not_equal(a, b);
        assert_int_equal((uintptr_t)a % 256, 0);
        assert_int_equal(xp_device_bytes(device, "params"), 1024 + 256);
        assert_int_equal(xp_device_bytes(device, NULL), 1024 + 512);
        xp_device_free(device, a);
        xp_device_free(device, NULL);
        assert_int_equal(xp_device_bytes(device, "params"), 256);
        assert_int_equal(xp_device_peak_bytes(device), 1024 + 512);
        assert_int_equal(xp_device_n_allocs(device), 3);
        assert_string_equal(xp_device_tag(device, 1), "grads");
        assert_null(xp_device_tag(device, 2));
        xp_device_destroy(device);
    }
}

static void test_capabilities_can_be_left_out(void **state) {
    (void)state;
    xp_device *all = make(XP_DEVICE_CPU, 1, NULL), *none = make(XP_DEVICE_CPU, 1, "avx2,avx512");
    assert_int_equal(xp_cpu_device_caps(none), 0);
    xp_device *some = make(XP_DEVICE_CPU, 1, "avx512");
    assert_int_equal(xp_cpu_device_caps(some), xp_cpu_device_caps(all) & XP_CPU_AVX2);
    xp_device_destroy(all);
    xp_device_destroy(none);
    xp_device_destroy(some);
    xp_device *device;
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1, .caps = "sse9"};
    assert_int_equal(xp_device_create(&args, &device), XP_EINVAL);
    assert_non_null(strstr(xp_last_error(), "sse9"));
}

static void test_copies_and_zeros(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 3, NULL);
    size_t n = (5 << 20) + 13;
    char *a = malloc(n), *b = malloc(n);
    for (size_t i = 0; i < n; i++)
        a[i] = (char)(i * 7);
    for (int kind = 0; kind < 2; kind++) {
        xp_stream *stream;
        assert_int_equal(xp_stream_create(device, (xp_stream_kind)kind, &stream), XP_OK);
        assert_null(xp_stream_native(stream));
        memset(b, 1, n);
        assert_int_equal(xp_copy(stream, b, a, n), XP_OK);
        assert_int_equal(xp_zero(stream, b + 5, 3), XP_OK);
        assert_int_equal(xp_stream_sync(stream), XP_OK);
        assert_memory_equal(b, a, 5);
        assert_int_equal(b[5] | b[6] | b[7], 0);
        assert_memory_equal(b + 8, a + 8, n - 8);
        xp_stream_destroy(stream);
    }
    free(a);
    free(b);
    xp_device_destroy(device);
}

typedef struct step {
    int *log, *n;
    int value, fail, sleep_us;
} step;

static xp_status run_step(xp_stream *stream, void *args) {
    (void)stream;
    step *s = args;
    usleep((useconds_t)s->sleep_us);
    if (s->fail)
        return xp_error(XP_ENUMERIC, "step %d failed", s->value);
    s->log[(*s->n)++] = s->value;
    return XP_OK;
}

static void test_worker_stream_keeps_order_and_first_error(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 1, NULL);
    xp_stream *stream;
    assert_int_equal(xp_stream_create(device, XP_STREAM_WORKER, &stream), XP_OK);
    int *log = calloc(1000, sizeof *log), n = 0;
    for (int i = 0; i < 1000; i++) {
        step s = {.log = log, .n = &n, .value = i};
        assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
    }
    assert_int_equal(xp_stream_sync(stream), XP_OK);
    assert_int_equal(n, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(log[i], i);
    n = 0;
    for (int i = 0; i < 4; i++) {
        step s = {.log = log, .n = &n, .value = i, .fail = i == 1 || i == 2};
        assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
    }
    assert_int_equal(xp_stream_sync(stream), XP_ENUMERIC);
    assert_string_equal(xp_last_error(), "step 1 failed");
    assert_int_equal(n, 1);
    free(log);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static void test_events_order_two_streams(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 1, NULL);
    xp_stream *worker, *compute;
    xp_event *event;
    assert_int_equal(xp_stream_create(device, XP_STREAM_WORKER, &worker), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &compute), XP_OK);
    assert_int_equal(xp_event_create(device, &event), XP_OK);
    int log[64], n = 0;
    for (int i = 0; i < 32; i++) {
        step slow = {.log = log, .n = &n, .value = 2 * i, .sleep_us = 300};
        assert_int_equal(xp_cpu_submit(worker, run_step, &slow, sizeof slow), XP_OK);
        assert_int_equal(xp_event_record(event, worker), XP_OK);
        assert_int_equal(xp_event_wait(event, compute), XP_OK);
        step quick = {.log = log, .n = &n, .value = 2 * i + 1};
        assert_int_equal(xp_cpu_submit(compute, run_step, &quick, sizeof quick), XP_OK);
    }
    for (int i = 0; i < 64; i++)
        assert_int_equal(log[i], i);
    xp_event_destroy(event);
    xp_stream_destroy(worker);
    xp_stream_destroy(compute);
    xp_device_destroy(device);
}

static void test_events_are_reached_behind_a_failure(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 1, NULL);
    xp_stream *worker, *compute;
    xp_event *event;
    assert_int_equal(xp_stream_create(device, XP_STREAM_WORKER, &worker), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &compute), XP_OK);
    assert_int_equal(xp_event_create(device, &event), XP_OK);
    step bad = {.value = 3, .fail = 1};
    assert_int_equal(xp_cpu_submit(worker, run_step, &bad, sizeof bad), XP_OK);
    assert_int_equal(xp_event_record(event, worker), XP_OK);
    assert_int_equal(xp_event_wait(event, compute), XP_OK); /* returns: no hang */
    assert_int_equal(xp_stream_sync(worker), XP_ENUMERIC);
    xp_event_destroy(event);
    xp_stream_destroy(worker);
    xp_stream_destroy(compute);
    xp_device_destroy(device);
}

static void test_scratch_is_kept_and_accounted(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 2, NULL);
    xp_stream *stream;
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    void *a = xp_cpu_stream_scratch(stream, 1, 5000);
    assert_ptr_equal(xp_cpu_stream_scratch(stream, 1, 4000), a);
    assert_ptr_not_equal(xp_cpu_stream_scratch(stream, 0, 4000), a);
    assert_int_equal(xp_device_bytes(device, "workspace"), 5120 + 4096);
    xp_stream_destroy(stream);
    assert_int_equal(xp_device_bytes(device, "workspace"), 0);
    xp_device_destroy(device);
}

static void test_staging_memory_has_its_own_account(void **state) {
    (void)state;
    xp_device_kind kinds[] = {XP_DEVICE_CPU, XP_DEVICE_NULL};
    for (int k = 0; k < 2; k++) {
        xp_device *device = make(kinds[k], 1, NULL);
        char *staging;
        assert_int_equal(xp_host_alloc(device, 1000, "tokens", (void **)&staging), XP_OK);
        for (int i = 0; i < 1000; i++)
            assert_int_equal(staging[i], 0);
        assert_int_equal(xp_host_bytes(device, "tokens"), 1024);
        assert_int_equal(xp_host_bytes(device, NULL), 1024);
        assert_int_equal(xp_device_bytes(device, NULL), 0);
        assert_int_equal(xp_device_n_allocs(device), 1);
        xp_host_free(device, staging);
        xp_host_free(device, NULL);
        assert_int_equal(xp_host_bytes(device, NULL), 0);
        xp_device_destroy(device);
    }
}

/* How a child process ends that touches `data`. */
static int touch(volatile char *data) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        /* cmocka's handler must not speak for the child. */
        signal(SIGSEGV, SIG_DFL);
        _exit(data[0] == 0 ? 0 : 3);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_guarded_memory_is_for_queued_work_only(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 2, "test_protect");
    assert_false(xp_device_host_accessible(device));
    xp_stream *stream;
    char *data, *staging, plain[64];
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_device_alloc(device, 5000, "params", (void **)&data), XP_OK);
    assert_int_equal(xp_host_alloc(device, 5000, "params", (void **)&staging), XP_OK);
    staging[7] = 7;
    assert_int_equal(xp_copy(stream, data, staging, 5000), XP_OK);
    memset(staging, 0, 5000);
    assert_int_equal(xp_copy(stream, staging, data, 5000), XP_OK);
    assert_int_equal(xp_stream_sync(stream), XP_OK);
    assert_int_equal(staging[7], 7);
    assert_int_equal(xp_cpu_device_n_pageable(device), 0);
    assert_int_equal(xp_copy(stream, plain, data, 64), XP_OK);
    assert_int_equal(xp_cpu_device_n_pageable(device), 1);
    assert_int_equal(touch(data), -SIGSEGV);
    assert_int_equal(touch(staging), 0);
    xp_host_free(device, staging);
    xp_device_free(device, data);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static void test_late_work_runs_when_somebody_waits(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 1, "test_protect,test_defer");
    xp_stream *stream;
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    int log[8], n = 0;
    for (int i = 0; i < 3; i++) {
        step s = {.log = log, .n = &n, .value = i};
        assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
    }
    assert_int_equal(n, 0);
    int64_t n_syncs = xp_device_n_syncs(device);
    assert_int_equal(xp_stream_sync(stream), XP_OK);
    assert_int_equal(xp_device_n_syncs(device), n_syncs + 1);
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(log[i], i);
    step bad = {.log = log, .n = &n, .value = 9, .fail = 1};
    assert_int_equal(xp_cpu_submit(stream, run_step, &bad, sizeof bad), XP_OK);
    assert_int_equal(xp_stream_sync(stream), XP_ENUMERIC);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1, .caps = "test_defer"};
    assert_int_equal(xp_device_create(&args, &device), XP_EINVAL);
}

/* What is queued behind the event stays queued. */
static void test_an_event_is_waited_for_alone(void **state) {
    (void)state;
    xp_device *device = make(XP_DEVICE_CPU, 1, "test_protect,test_defer");
    xp_stream *stream, *worker;
    xp_event *event;
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_WORKER, &worker), XP_OK);
    assert_int_equal(xp_event_create(device, &event), XP_OK);
    int log[8], n = 0;
    for (int turn = 0; turn < 2; turn++) {
        step s = {.log = log, .n = &n, .value = 2 * turn};
        assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
        assert_int_equal(xp_event_record(event, stream), XP_OK);
        s.value++;
        assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
        assert_int_equal(n, 2 * turn);
        int64_t n_syncs = xp_device_n_syncs(device);
        assert_int_equal(xp_event_sync(event, stream), XP_OK);
        assert_int_equal(xp_device_n_syncs(device), n_syncs + 1);
        assert_int_equal(n, 2 * turn + 1);
        assert_int_equal(xp_event_sync(event, stream), XP_OK); /* again: nothing to do */
        assert_int_equal(n, 2 * turn + 1);
        assert_int_equal(xp_stream_sync(stream), XP_OK);
        assert_int_equal(n, 2 * turn + 2);
    }
    /* A worker that waits makes late work run as far as it needs. */
    step s = {.log = log, .n = &n, .value = 4};
    assert_int_equal(xp_cpu_submit(stream, run_step, &s, sizeof s), XP_OK);
    assert_int_equal(xp_event_record(event, stream), XP_OK);
    assert_int_equal(xp_event_wait(event, worker), XP_OK);
    assert_int_equal(n, 5);
    step bad = {.log = log, .n = &n, .value = 5, .fail = 1};
    assert_int_equal(xp_cpu_submit(worker, run_step, &bad, sizeof bad), XP_OK);
    assert_int_equal(xp_event_record(event, worker), XP_OK);
    assert_int_equal(xp_event_sync(event, worker), XP_ENUMERIC);
    for (int i = 0; i < 5; i++)
        assert_int_equal(log[i], i);
    xp_event_destroy(event);
    xp_stream_destroy(worker);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

/* All zeros: a CPU that uses the cores which the process may use. */
static void test_zeroed_arguments_make_a_cpu(void **state) {
    (void)state;
    const xp_device_args args = {0};
    xp_device *device;
    xp_stream *stream;
    cpu_set_t cores;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_string_equal(xp_device_name(device), "cpu");
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(sched_getaffinity(0, sizeof cores, &cores), 0);
    assert_int_equal(xp_pool_n_threads(xp_cpu_stream_pool(stream)), CPU_COUNT(&cores));
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    const xp_device_args negative = {.n_threads = -1};
    assert_int_equal(xp_device_create(&negative, &device), XP_EINVAL);
}

static void test_native_streams(void **state) {
    (void)state;
    xp_device_kind kinds[] = {XP_DEVICE_CPU, XP_DEVICE_NULL};
    for (int k = 0; k < 2; k++) {
        xp_device *device = make(kinds[k], 1, NULL);
        xp_stream *stream = NULL;
        int out = 0, in = 42;
        assert_int_equal(xp_stream_from_native(device, NULL, &stream), XP_OK);
        assert_ptr_equal(xp_stream_device(stream), device);
        assert_null(xp_stream_native(stream));
        assert_int_equal(xp_copy(stream, &out, &in, sizeof in), XP_OK);
        if (kinds[k] == XP_DEVICE_CPU) {
            assert_int_equal(out, 42); /* inline: no sync is needed */
            assert_int_equal(xp_stream_from_native(device, &in, &stream), XP_EINVAL);
        }
        assert_int_equal(xp_stream_sync(stream), XP_OK);
        xp_stream_destroy(stream);
        assert_int_equal(xp_stream_from_native(NULL, NULL, &stream), XP_EINVAL);
        assert_int_equal(xp_stream_from_native(device, NULL, NULL), XP_EINVAL);
        xp_device_destroy(device);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zeroed_arguments_make_a_cpu),
        cmocka_unit_test(test_native_streams),
        cmocka_unit_test(test_bytes_are_accounted_by_tag_alike_on_every_device),
        cmocka_unit_test(test_capabilities_can_be_left_out),
        cmocka_unit_test(test_copies_and_zeros),
        cmocka_unit_test(test_worker_stream_keeps_order_and_first_error),
        cmocka_unit_test(test_events_order_two_streams),
        cmocka_unit_test(test_events_are_reached_behind_a_failure),
        cmocka_unit_test(test_scratch_is_kept_and_accounted),
        cmocka_unit_test(test_staging_memory_has_its_own_account),
        cmocka_unit_test(test_guarded_memory_is_for_queued_work_only),
        cmocka_unit_test(test_late_work_runs_when_somebody_waits),
        cmocka_unit_test(test_an_event_is_waited_for_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
