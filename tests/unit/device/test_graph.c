/* Work that is recorded once and launched again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "device/graph.h"

static xp_device *make(const char *caps) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1, .caps = caps};
    xp_device *device = NULL;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    return device;
}

/* A guarded CPU records what its stream is asked to do, as a GPU does. */
static void recorded_work_runs_at_each_launch(void **state) {
    (void)state;
    xp_device *plain = make(NULL), *device = make("test_protect");
    assert_false(xp_graph_is_supported(plain));
    assert_true(xp_graph_is_supported(device));
    xp_stream *stream = NULL;
    xp_graph *graph = NULL;
    void *data = NULL, *from = NULL, *to = NULL;
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_device_alloc(device, 4, "test", &data), XP_OK);
    assert_int_equal(xp_host_alloc(device, 4, "test", &from), XP_OK);
    assert_int_equal(xp_host_alloc(device, 4, "test", &to), XP_OK);
    assert_int_equal(xp_graph_end(stream, &graph), XP_EINVAL);
    assert_int_equal(xp_graph_begin(stream), XP_OK);
    assert_int_equal(xp_graph_begin(stream), XP_EINVAL);
    assert_int_equal(xp_graph_end(stream, &graph), XP_OK);
    assert_null(graph); /* nothing was queued */
    assert_int_equal(xp_graph_begin(stream), XP_OK);
    assert_int_equal(xp_copy(stream, data, from, 4), XP_OK);
    assert_int_equal(xp_copy(stream, to, data, 4), XP_OK);
    assert_int_equal(xp_graph_end(stream, &graph), XP_OK);
    assert_non_null(graph);
    for (int32_t i = 1; i < 4; i++) {
        const int32_t before = *(int32_t *)to;
        *(int32_t *)from = i;
        assert_int_equal(*(int32_t *)to, before);
        assert_int_equal(xp_graph_launch(graph, stream), XP_OK);
        assert_int_equal(xp_stream_sync(stream), XP_OK);
        assert_int_equal(*(int32_t *)to, i);
    }
    xp_graph_destroy(graph);
    xp_graph_destroy(NULL);
    xp_stream_destroy(stream);
    xp_device_destroy(plain);
    xp_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(recorded_work_runs_at_each_launch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
