#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "device/recorder.h"
#include "train/trace.h"
#include "unit/device/fake_timed.h"

#define NEAR_US 1.0

static const json_t *find(const json_t *events, const char *name) {
    size_t i;
    const json_t *event;
    json_array_foreach(events, i, event) {
        if (strcmp(json_string_value(json_object_get(event, "name")), name) == 0)
            return event;
    }
    fail_msg("no event %s", name);
    return NULL;
}

static void check_span(const json_t *events, const char *name, int row, double at_least_us,
                       double length_us) {
    const json_t *event = find(events, name);
    const double length = json_number_value(json_object_get(event, "dur"));
    assert_int_equal(json_integer_value(json_object_get(event, "tid")), row);
    assert_true(json_number_value(json_object_get(event, "ts")) >= at_least_us - NEAR_US);
    assert_true(length > length_us - NEAR_US && length < length_us + NEAR_US);
}

static void check_row(const json_t *events, int row, const char *name) {
    size_t i;
    const json_t *event;
    json_array_foreach(events, i, event) {
        if (json_integer_value(json_object_get(event, "tid")) == row &&
            strcmp(json_string_value(json_object_get(event, "name")), "thread_name") == 0) {
            const json_t *args = json_object_get(event, "args");
            assert_string_equal(json_string_value(json_object_get(args, "name")), name);
            return;
        }
    }
    fail_msg("row %d has no name", row);
}

static void queue(xp_stream *stream, const char *name, double seconds) {
    const int64_t op = xp_recorder_begin_op(stream, name);
    fake_run(stream, seconds);
    assert_int_equal(xp_recorder_end_op(stream, op, XP_OK), XP_OK);
}

/* A device whose ops run later than they are queued: beside the host's phases stand its own times,
 * a row a stream. */
static void test_ops_with_timed_events(void **state) {
    (void)state;
    char folder[] = "/tmp/expar_trace.XXXXXX";
    char path[64];
    fake_device fake;
    xp_trace *trace = NULL;
    assert_non_null(mkdtemp(folder));
    fake_open(&fake);
    xp_stream *compute = fake_stream(&fake, XP_STREAM_COMPUTE, 0);
    xp_stream *comm = fake_stream(&fake, XP_STREAM_WORKER, 0.5);
    assert_int_equal(xp_trace_create(&fake.base, folder, 3, 2, &trace), XP_OK);
    const xp_trace_run_info info = {"[model]\nflavor = \"tiny\"\n", "Some GPU", 8, 2};
    assert_int_equal(xp_trace_describe(trace, &info), XP_OK);
    assert_int_equal(xp_trace_describe(trace, &info), XP_OK);
    assert_int_equal(xp_trace_describe(NULL, &info), XP_OK);
    for (int64_t step = 1; step <= 2; step++) {
        assert_int_equal(xp_trace_begin(trace, step), XP_OK);
        const double began = xp_time_s();
        xp_trace_layer_begins(trace, 5, true);
        queue(compute, step == 1 ? "not traced" : "gemm", 0.25);
        xp_trace_layer_ends(trace, 5, true);
        queue(comm, "all-gather", 2);
        xp_trace_phase(trace, "optimizer", began, began + 0.125);
        xp_trace_took(trace, 0.25 * (double)step);
        assert_int_equal(xp_trace_end(trace), XP_OK);
    }
    snprintf(path, sizeof path, "%s/step-1-rank-3.json", folder);
    assert_int_not_equal(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/step-2-rank-3.json", folder);
    json_t *root = json_load_file(path, 0, NULL);
    const json_t *events = json_object_get(root, "traceEvents");
    assert_non_null(events);
    check_row(events, 0, "step");
    check_row(events, 1, "layers");
    check_row(events, 2, "ops, compute stream");
    check_row(events, 3, "ops, communication stream");
    check_span(events, "optimizer", 0, 0, 125e3);
    assert_non_null(find(events, "layer 5 backward"));
    check_span(events, "gemm", 2, 250e3, 250e3); /* behind the step before */
    check_span(events, "all-gather", 3, 2500e3, 2000e3);
    const json_t *args =
        json_object_get(find(events, "gemm"), "args"); /* of the layer it was queued in */
    assert_int_equal(json_integer_value(json_object_get(args, "layer")), 5);
    assert_string_equal(json_string_value(json_object_get(args, "pass")), "backward");
    assert_null(json_object_get(find(events, "all-gather"), "args"));
    const json_t *about = json_object_get(root, "otherData");
    assert_int_equal(json_integer_value(json_object_get(about, "events_left_out")), 0);
    assert_string_equal(json_string_value(json_object_get(about, "config")), info.config);
    assert_string_equal(json_string_value(json_object_get(about, "device")), "Some GPU");
    assert_int_equal(json_integer_value(json_object_get(about, "ranks")), 8);
    assert_int_equal(json_integer_value(json_object_get(about, "nodes")), 2);
    assert_true(json_number_value(json_object_get(about, "step_us")) == 500e3);
    json_decref(root);

    /* A device that has failed costs the trace; the step goes on. */
    fake.fail_record = true;
    assert_int_equal(xp_trace_begin(trace, 4), XP_EDEVICE);
    xp_trace_phase(trace, "optimizer", 0, 1);
    assert_int_equal(xp_trace_end(trace), XP_OK);
    xp_trace_destroy(trace);
    assert_int_equal(fake.n_live_events, 0);
    xp_stream_destroy(compute);
    xp_stream_destroy(comm);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_with_timed_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
