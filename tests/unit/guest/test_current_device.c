/* The calling thread's current accelerator is the program's: every public call that may reach a
 * device makes that one current while it runs, and the program's again. On a CPU whose table says
 * that threads have a current device. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "device/device_internal.h"
#include "expar/expar.h"

#define THEIRS 3
#define OURS   7

static _Thread_local int current = THEIRS;
static _Thread_local int n_entered;

static int enter(xp_device *device) {
    const int before = current;
    (void)device;
    n_entered++;
    current = OURS;
    return before == OURS ? -1 : before;
}

static void leave(int before) {
    current = before;
}

/* What a call does on a GPU: it runs with the device current. */
static const xp_device_vtable *plain;

static xp_status checked_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    assert_int_equal(current, OURS);
    return plain->copy(stream, dst, src, n_bytes);
}

static xp_status checked_alloc(xp_device *device, size_t n_bytes, void **data) {
    assert_int_equal(current, OURS);
    return plain->alloc(device, n_bytes, data);
}

static xp_device_vtable vtable;

static xp_device *make_device(void) {
    const xp_device_args args = {.n_threads = 1};
    xp_device *device = NULL;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    plain = device->vtable;
    vtable = *plain;
    vtable.enter = enter;
    vtable.leave = leave;
    vtable.copy = checked_copy;
    vtable.alloc = checked_alloc;
    device->vtable = &vtable;
    return device;
}

/* The call has been to the device and back. */
#define GOES_THERE(call)                                                                           \
    do {                                                                                           \
        n_entered = 0;                                                                             \
        call;                                                                                      \
        assert_int_equal(current, THEIRS);                                                         \
        assert_true(n_entered > 0);                                                                \
    } while (0)
#define RETURNS_OK(call) GOES_THERE(if ((call) != XP_OK) fail_msg("%s", xp_last_error()))

static void test_device_calls(void **state) {
    (void)state;
    xp_device *device = make_device();
    xp_stream *stream = NULL;
    xp_event *event = NULL;
    void *data = NULL, *host = NULL;
    RETURNS_OK(xp_stream_create(device, XP_STREAM_WORKER, &stream));
    RETURNS_OK(xp_event_create(device, &event));
    RETURNS_OK(xp_device_alloc(device, 64, "test", &data));
    RETURNS_OK(xp_host_alloc(device, 64, "test", &host));
    RETURNS_OK(xp_zero(stream, data, 64));
    RETURNS_OK(xp_copy(stream, host, data, 64));
    RETURNS_OK(xp_event_record(event, stream));
    RETURNS_OK(xp_event_wait(event, stream));
    RETURNS_OK(xp_event_sync(event, stream));
    RETURNS_OK(xp_stream_sync(stream));
    GOES_THERE(xp_host_free(device, host));
    GOES_THERE(xp_device_free(device, data));
    GOES_THERE(xp_event_destroy(event));
    GOES_THERE(xp_stream_destroy(stream));
    GOES_THERE(xp_device_destroy(device));
}

static void test_comm_calls(void **state) {
    (void)state;
    const xp_comm_callbacks alone = {.size = 1};
    const int64_t four = 4, zero = 0;
    xp_device *device = make_device();
    xp_stream *stream = NULL;
    xp_comm *comm = NULL;
    xp_window *window = NULL;
    float x = 1, y = 0;
    const xp_alltoallv_args v = {&x, &four, &zero, &y, &four, &zero};
    assert_int_equal(xp_stream_from_native(device, NULL, &stream), XP_OK);
    assert_int_equal(xp_comm_from_callbacks(&alone, &comm), XP_OK);
    RETURNS_OK(xp_comm_prepare(comm, device, 0));
    RETURNS_OK(xp_comm_all_reduce(comm, &x, &y, 1, XP_F32, XP_SUM, stream));
    RETURNS_OK(xp_comm_reduce_scatter(comm, &x, &y, 1, XP_F32, stream));
    RETURNS_OK(xp_comm_all_gather(comm, &x, &y, 1, XP_F32, stream));
    RETURNS_OK(xp_comm_all_to_all(comm, &x, &y, 4, stream));
    RETURNS_OK(xp_comm_all_to_allv(comm, &v, stream));
    RETURNS_OK(xp_comm_broadcast(comm, &x, 4, 0, stream));
    RETURNS_OK(xp_comm_barrier(comm, stream));
    RETURNS_OK(xp_comm_window_create(comm, device, 64, "test", &window));
    xp_comm_window_destroy(window);
    xp_comm_destroy(comm);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    assert_int_equal(current, THEIRS);
}

enum { N_TOKENS = 4, DIM = 8 };

static void run_ep(xp_device *device, xp_stream *stream) {
    const xp_ep_config config = {.max_tokens = N_TOKENS,
                                 .dim = DIM,
                                 .top_k = 1,
                                 .n_experts = 2,
                                 .dtype = XP_F32,
                                 .capacity_factor = 1};
    int32_t ids[N_TOKENS] = {0, 1, 0, 1};
    float weights[N_TOKENS] = {1, 1, 1, 1}, d_weight[64] = {0}, d_topk[N_TOKENS];
    static float x[N_TOKENS * DIM], y[64 * DIM], recv[64 * DIM];
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    xp_ep_counts counts;
    RETURNS_OK(xp_ep_group_create(NULL, device, &config, &group));
    RETURNS_OK(xp_ep_plan_create(group, &plan));
    assert_true(xp_ep_group_sizes(group).assignment_capacity <= 64);
    xp_tensor xt = xp_tensor_2d(x, XP_F32, N_TOKENS, DIM);
    xp_tensor rt = xp_tensor_2d(recv, XP_F32, 64, DIM), yt = xp_tensor_2d(y, XP_F32, 64, DIM);
    RETURNS_OK(xp_ep_plan_build(group, ids, weights, N_TOKENS, stream, plan));
    RETURNS_OK(xp_ep_plan_wait(plan, &counts));
    RETURNS_OK(xp_ep_dispatch(group, plan, 0, &xt, &rt, stream));
    RETURNS_OK(xp_ep_combine(group, plan, 0, &yt, &xt, stream));
    RETURNS_OK(xp_ep_combine_backward(group, plan, 0, &xt, &rt, stream));
    RETURNS_OK(xp_ep_dispatch_backward(group, plan, 0, &yt, d_weight, &xt, d_topk, stream));
    GOES_THERE(xp_ep_plan_destroy(plan));
    GOES_THERE(xp_ep_group_destroy(group));
}

static void run_moe(xp_device *device, xp_stream *stream) {
    const xp_moe_args args = {
        .num_experts = 2, .top_k = 1, .dim = DIM, .moe_dim = DIM, .max_tokens = N_TOKENS};
    static float x[N_TOKENS * DIM], out[N_TOKENS * DIM], dx[N_TOKENS * DIM];
    xp_tensor xt = xp_tensor_2d(x, XP_F32, N_TOKENS, DIM);
    xp_tensor ot = xp_tensor_2d(out, XP_F32, N_TOKENS, DIM);
    xp_tensor dt = xp_tensor_2d(dx, XP_F32, N_TOKENS, DIM);
    double aux = 0, z = 0;
    xp_moe *moe = NULL;
    RETURNS_OK(xp_moe_create(&args, NULL, device, &moe));
    RETURNS_OK(xp_moe_init_params(moe, 1, 0.1F, 0.1F));
    RETURNS_OK(xp_moe_forward(moe, &xt, &ot, true, stream));
    RETURNS_OK(xp_moe_backward(moe, &xt, &ot, &dt, false, stream));
    RETURNS_OK(xp_moe_read_losses(moe, stream, &aux, &z));
    RETURNS_OK(xp_moe_update_bias(moe, 0.1, NULL, stream));
    GOES_THERE(xp_moe_destroy(moe));
}

static void test_layers(void **state) {
    (void)state;
    xp_device *device = make_device();
    xp_stream *stream = NULL;
    assert_int_equal(xp_stream_from_native(device, NULL, &stream), XP_OK);
    run_ep(device, stream);
    run_moe(device, stream);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static void test_kernels(void **state) {
    (void)state;
    xp_device *device = make_device();
    xp_stream *stream = NULL;
    assert_int_equal(xp_stream_from_native(device, NULL, &stream), XP_OK);
    GOES_THERE((void)!xp_fused_silu_gate_prob(&(xp_silu_gate_prob_call){0}, stream));
    GOES_THERE(
        (void)!xp_fused_silu_gate_prob_backward(&(xp_silu_gate_prob_backward_call){0}, stream));
    GOES_THERE((void)!xp_silu_gate_prob_reference(&(xp_silu_gate_prob_call){0}, stream));
    GOES_THERE(
        (void)!xp_silu_gate_prob_reference_backward(&(xp_silu_gate_prob_backward_call){0}, stream));
    GOES_THERE((void)!xp_grouped_gemm_forward(&(xp_grouped_gemm_call){0}, stream));
    GOES_THERE((void)!xp_grouped_gemm_dgrad(&(xp_grouped_gemm_call){0}, stream));
    GOES_THERE((void)!xp_grouped_gemm_wgrad(&(xp_grouped_gemm_call){0}, stream));
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_calls),
        cmocka_unit_test(test_comm_calls),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
