#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>
#include "core/file.h"
#include "device/cpu/cpu_device.h"
#include "device/recorder.h"
#include "fake_timed.h"

#define NEAR 1e-6 /* seconds; rounding of sums with a long uptime */

typedef struct rig {
    fake_device fake;
    xp_recorder *recorder;
    xp_stream *compute, *comm;
    double before_s, after_s; /* around the start */
} rig;

static void open_rig(rig *r, int64_t max_ops) {
    *r = (rig){.recorder = NULL};
    fake_open(&r->fake);
    r->compute = fake_stream(&r->fake, XP_STREAM_COMPUTE, 0);
    r->comm = fake_stream(&r->fake, XP_STREAM_WORKER, 0);
    assert_int_equal(xp_recorder_create(&r->fake.base, max_ops, &r->recorder), XP_OK);
}

static void close_rig(rig *r) {
    xp_recorder_destroy(r->recorder);
    assert_int_equal(r->fake.n_live_events, 0);
    xp_stream_destroy(r->compute);
    xp_stream_destroy(r->comm);
}

static void start(rig *r) {
    r->before_s = xp_time_s();
    assert_int_equal(xp_recorder_start(r->recorder), XP_OK);
    r->after_s = xp_time_s();
}

static xp_recording stop(rig *r) {
    xp_recording recording;
    assert_int_equal(xp_recorder_stop(r->recorder, &recording), XP_OK);
    return recording;
}

static void queue(xp_stream *stream, const char *name, double seconds) {
    const int64_t op = xp_recorder_begin_op(stream, name);
    fake_run(stream, seconds);
    assert_int_equal(xp_recorder_end_op(stream, op, XP_OK), XP_OK);
}

static void check_op(const rig *r, const xp_recording *recording, int64_t i, const char *name,
                     int row, double began_s, double length_s) {
    const xp_recorded_op *op = &recording->ops[i];
    assert_true(i < recording->n_ops);
    assert_string_equal(op->name, name);
    assert_int_equal(op->row, row);
    assert_true(op->began_s >= r->before_s + began_s - NEAR);
    assert_true(op->began_s <= r->after_s + began_s + NEAR);
    const double length = op->ended_s - op->began_s;
    assert_true(length >= length_s - NEAR && length <= length_s + NEAR);
}

/* Names, a row a stream, and the device's times on the host's clock. */
static void test_ops_are_timed_on_their_streams(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 100);
    queue(r.compute, "before", 7);
    start(&r);
    assert_int_equal(r.fake.n_waits, 1); /* for the reference, not for the stream's work */
    queue(r.compute, "gemm", 2);
    fake_run(r.compute, 0.5);
    queue(r.comm, "all-gather", 20);
    assert_int_equal(xp_copy(r.compute, NULL, NULL, 3), XP_OK);
    assert_int_equal(xp_zero(r.compute, NULL, 4), XP_OK);
    assert_int_equal(xp_zero(r.compute, NULL, 0), XP_OK);
    const xp_recording recording = stop(&r);
    queue(r.compute, "after", 1);
    assert_int_equal(recording.n_ops, 4);
    assert_int_equal(recording.n_lost, 0);
    check_op(&r, &recording, 0, "gemm", 0, 7, 2);
    check_op(&r, &recording, 1, "all-gather", 1, 0, 20);
    check_op(&r, &recording, 2, "copy", 0, 9.5, 3);
    check_op(&r, &recording, 3, "copy", 0, 12.5, 4);
    assert_int_equal(recording.n_rows, 2);
    assert_string_equal(recording.rows[0], "compute stream");
    assert_string_equal(recording.rows[1], "communication stream");
    assert_int_equal(r.fake.n_waits, 3); /* one more for each stream */
    assert_int_equal(xp_device_n_syncs(&r.fake.base), 0);
    close_rig(&r);
}

/* What a collective is made of is part of it: on its own stream only. */
static void test_inner_ops_belong_to_the_outer_one(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 100);
    start(&r);
    const int64_t op = xp_recorder_begin_op(r.comm, "all-reduce");
    assert_int_equal(xp_copy(r.comm, NULL, NULL, 3), XP_OK);
    queue(r.comm, "sum", 1);
    queue(r.compute, "gemm", 1);
    assert_int_equal(xp_recorder_end_op(r.comm, op, XP_OK), XP_OK);
    queue(r.comm, "barrier", 1);
    const xp_recording recording = stop(&r);
    assert_int_equal(recording.n_ops, 3);
    check_op(&r, &recording, 0, "all-reduce", 0, 0, 4);
    check_op(&r, &recording, 1, "gemm", 1, 0, 1);
    check_op(&r, &recording, 2, "barrier", 0, 4, 1);
    close_rig(&r);
}

/* Ops of a stream follow each other, though times since the reference are coarse. */
static void test_rounded_times_stay_in_order(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 100);
    r.fake.coarse_s = 1;
    start(&r);
    fake_run(r.compute, 10.6);
    queue(r.compute, "first", 0.6); /* from 11, as it seems */
    queue(r.compute, "second", 0.1);
    const xp_recording recording = stop(&r);
    check_op(&r, &recording, 0, "first", 0, 11, 0.6);
    check_op(&r, &recording, 1, "second", 0, 11.6, 0.1);
    close_rig(&r);
}

static void test_what_has_no_room_is_counted(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 2);
    const int n_created = r.fake.n_created;
    for (int again = 0; again < 2; again++) {
        start(&r);
        queue(r.compute, "one", 1);
        queue(r.comm, "two", 1);
        const int64_t op = xp_recorder_begin_op(r.compute, "three");
        assert_int_equal(xp_copy(r.compute, NULL, NULL, 1), XP_OK);
        assert_int_equal(xp_recorder_end_op(r.compute, op, XP_OK), XP_OK);
        queue(r.compute, "four", 1);
        const xp_recording recording = stop(&r);
        assert_int_equal(recording.n_ops, 2);
        assert_int_equal(recording.n_lost, 2);
        assert_string_equal(recording.ops[1].name, "two");
    }
    start(&r);
    assert_int_equal(stop(&r).n_lost, 0);
    assert_int_equal(r.fake.n_created, n_created);
    close_rig(&r);
    open_rig(&r, 10 * XP_RECORDER_MAX_TIMED);
    assert_int_equal(r.fake.n_live_events, 2 * XP_RECORDER_MAX_TIMED + 1);
    close_rig(&r);
}

static void test_streams_without_a_row_are_counted(void **state) {
    (void)state;
    rig r;
    xp_stream *streams[XP_RECORDER_MAX_ROWS + 2];
    open_rig(&r, 100);
    start(&r);
    for (int i = 0; i < XP_RECORDER_MAX_ROWS + 2; i++) {
        streams[i] = fake_stream(&r.fake, XP_STREAM_WORKER, 0);
        queue(streams[i], "op", 1);
    }
    const xp_recording recording = stop(&r);
    assert_int_equal(recording.n_ops, XP_RECORDER_MAX_ROWS);
    assert_int_equal(recording.n_rows, XP_RECORDER_MAX_ROWS);
    assert_int_equal(recording.n_lost, 2);
    assert_string_equal(recording.rows[0], "communication stream");
    assert_string_equal(recording.rows[2], "communication stream 3");
    for (int i = 0; i < XP_RECORDER_MAX_ROWS + 2; i++)
        xp_stream_destroy(streams[i]);
    close_rig(&r);
}

/* The op's own outcome is what its caller hears, whatever becomes of the events. */
static void test_failures(void **state) {
    (void)state;
    rig r;
    xp_recording recording;
    open_rig(&r, 100);
    start(&r);
    int64_t op = xp_recorder_begin_op(r.compute, "fails");
    assert_int_equal(xp_recorder_end_op(r.compute, op, XP_EINVAL), XP_EINVAL);
    r.fake.fail_record = true;
    queue(r.compute, "no event before", 1);
    r.fake.fail_record = false;
    op = xp_recorder_begin_op(r.compute, "no event after");
    r.fake.fail_record = true;
    assert_int_equal(xp_recorder_end_op(r.compute, op, XP_OK), XP_OK);
    r.fake.fail_record = false;
    queue(r.compute, "fine", 1);
    recording = stop(&r);
    assert_int_equal(recording.n_ops, 1);
    assert_string_equal(recording.ops[0].name, "fine");
    assert_int_equal(recording.n_lost, 2);
    r.fake.fail_record = true;
    assert_int_equal(xp_recorder_start(r.recorder), XP_EDEVICE);
    assert_int_equal(xp_recorder_begin_op(r.compute, "not heard"), -1);
    r.fake.fail_record = false;
    start(&r);
    queue(r.compute, "gemm", 1);
    r.fake.fail_elapsed = true;
    assert_int_equal(xp_recorder_stop(r.recorder, &recording), XP_EDEVICE);
    close_rig(&r);
}

static void test_create_leaves_nothing_behind(void **state) {
    (void)state;
    for (int at = 1; at <= 7; at++) { /* six events and the reference */
        xp_recorder *recorder = NULL;
        fake_device fake;
        fake_open(&fake);
        fake.fail_create_at = at;
        assert_int_equal(xp_recorder_create(&fake.base, 3, &recorder), XP_ENOMEM);
        assert_null(recorder);
        assert_int_equal(fake.n_live_events, 0);
    }
}

/* Another thread may be in the middle of one. */
static void test_an_op_that_outlives_its_recording(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 100);
    start(&r);
    const int64_t op = xp_recorder_begin_op(r.comm, "late");
    assert_int_equal(stop(&r).n_ops, 0);
    start(&r);
    queue(r.compute, "gemm", 1);
    assert_int_equal(xp_recorder_end_op(r.comm, op, XP_OK), XP_OK);
    queue(r.comm, "barrier", 1);
    const xp_recording recording = stop(&r);
    assert_int_equal(recording.n_ops, 2);
    assert_string_equal(recording.ops[0].name, "gemm");
    assert_string_equal(recording.ops[1].name, "barrier");
    close_rig(&r);
}

/* A step that fails is not stopped first. */
static void test_destroy_while_recording(void **state) {
    (void)state;
    rig r;
    open_rig(&r, 100);
    start(&r);
    queue(r.compute, "gemm", 1);
    xp_recorder_destroy(r.recorder);
    r.recorder = NULL;
    queue(r.compute, "gemm", 1);
    close_rig(&r);
}

static xp_status nothing(xp_stream *stream, void *args) {
    (void)stream;
    (void)args;
    return XP_OK;
}

static void submit(xp_stream *stream, const char *name) {
    const int args = 0;
    assert_int_equal(xp_cpu_submit_named(stream, name, nothing, &args, sizeof args), XP_OK);
    assert_int_equal(xp_stream_sync(stream), XP_OK);
}

/* On a CPU those who run ops say when: the same recording. */
static void test_cpu(void **state) {
    (void)state;
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    rig r = {.recorder = NULL};
    xp_device *device = NULL;
    xp_stream *compute = NULL, *worker = NULL;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_int_equal(xp_recorder_create(device, 3, &r.recorder), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &compute), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_WORKER, &worker), XP_OK);
    submit(compute, "before");
    start(&r);
    submit(compute, "gemm");
    submit(worker, "all-gather");
    submit(compute, "sum");
    submit(compute, "too many");
    const double ended = xp_time_s();
    const xp_recording recording = stop(&r);
    submit(compute, "after");
    assert_int_equal(recording.n_ops, 3);
    assert_int_equal(recording.n_lost, 1);
    const char *const names[] = {"gemm", "all-gather", "sum"};
    for (int i = 0; i < 3; i++) {
        const xp_recorded_op *op = &recording.ops[i];
        assert_string_equal(op->name, names[i]);
        assert_int_equal(op->row, i == 1);
        assert_true(r.before_s <= op->began_s && op->began_s <= op->ended_s &&
                    op->ended_s <= ended);
    }
    assert_int_equal(recording.n_rows, 2);
    assert_string_equal(recording.rows[0], "compute stream");
    assert_string_equal(recording.rows[1], "communication stream");
    xp_stream_destroy(worker);
    xp_stream_destroy(compute);
    xp_recorder_destroy(r.recorder);
    xp_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_are_timed_on_their_streams),
        cmocka_unit_test(test_inner_ops_belong_to_the_outer_one),
        cmocka_unit_test(test_rounded_times_stay_in_order),
        cmocka_unit_test(test_what_has_no_room_is_counted),
        cmocka_unit_test(test_streams_without_a_row_are_counted),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_create_leaves_nothing_behind),
        cmocka_unit_test(test_an_op_that_outlives_its_recording),
        cmocka_unit_test(test_destroy_while_recording),
        cmocka_unit_test(test_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
