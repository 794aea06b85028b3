/* Grouped GEMM through its public door: gather lists, experts without rows, accumulation, bad calls. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>
#include "core/rng.h"
#include "expar/grouped_gemm.h"

enum { L = 4, P = 23, SOURCE = 9, N = 11, K = 13 };
static const int32_t offsets[L + 1] = {0, 5, 5, 17,
                                       20}; /* expert 1 has no rows, 3 rows are unused */

typedef struct fixture {
    xp_device *device;
    xp_stream *stream;
    float x[SOURCE * K], dy[SOURCE * N], w[L * N * K];
    int32_t x_gather[P], dy_gather[P];
} fixture;

static int setup(void **state) {
    static fixture f;
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 3};
    assert_int_equal(xp_device_create(&args, &f.device), XP_OK);
    assert_int_equal(xp_stream_create(f.device, XP_STREAM_COMPUTE, &f.stream), XP_OK);
    xp_rng_fill_normal(1, 1, 0, SOURCE * K, 1, f.x);
    xp_rng_fill_normal(1, 2, 0, SOURCE * N, 1, f.dy);
    xp_rng_fill_normal(1, 3, 0, L * N * K, 1, f.w);
    for (int i = 0; i < P; i++) {
        f.x_gather[i] = (i * 7 + 3) % SOURCE;
        f.dy_gather[i] = (i * 5 + 1) % SOURCE;
    }
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    xp_stream_destroy(f->stream);
    xp_device_destroy(f->device);
    return 0;
}

static xp_grouped_gemm_call call_on(const fixture *f, float *out) {
    return (xp_grouped_gemm_call){.n_experts = L,
                                  .max_rows = P,
                                  .n = N,
                                  .k = K,
                                  .offsets = offsets,
                                  .x = f->x,
                                  .x_gather = f->x_gather,
                                  .w = f->w,
                                  .dy = f->dy,
                                  .dy_gather = f->dy_gather,
                                  .out = out};
}

static void assert_near(float got, double want) {
    if (!(fabs((double)got - want) <= 1e-5 * (1 + fabs(want))))
        fail_msg("%.9g, wanted %.9g", (double)got, want);
}

static void test_forward(void **state) {
    const fixture *f = *state;
    float out[P * N];
    for (int i = 0; i < P * N; i++)
        out[i] = -77;
    const xp_grouped_gemm_call call = call_on(f, out);
    assert_int_equal(xp_grouped_gemm_forward(&call, f->stream), XP_OK);
    for (int e = 0; e < L; e++)
        for (int r = offsets[e]; r < offsets[e + 1]; r++)
            for (int n = 0; n < N; n++) {
                double sum = 0;
                for (int k = 0; k < K; k++)
                    sum += (double)f->x[f->x_gather[r] * K + k] * (double)f->w[(e * N + n) * K + k];
                assert_near(out[r * N + n], sum);
            }
    for (int i = offsets[L] * N; i < P * N; i++) /* unused rows are left alone */
        assert_true(out[i] == -77);
}

static void test_dgrad(void **state) {
    const fixture *f = *state;
    float out[P * K];
    const xp_grouped_gemm_call call = call_on(f, out);
    assert_int_equal(xp_grouped_gemm_dgrad(&call, f->stream), XP_OK);
    for (int e = 0; e < L; e++)
        for (int r = offsets[e]; r < offsets[e + 1]; r++)
            for (int k = 0; k < K; k++) {
                double sum = 0;
                for (int n = 0; n < N; n++)
                    sum +=
                        (double)f->dy[f->dy_gather[r] * N + n] * (double)f->w[(e * N + n) * K + k];
                assert_near(out[r * K + k], sum);
            }
}

static double weight_gradient(const fixture *f, int e, int n, int k) {
    double sum = 0;
    for (int r = offsets[e]; r < offsets[e + 1]; r++)
        sum += (double)f->dy[f->dy_gather[r] * N + n] * (double)f->x[f->x_gather[r] * K + k];
    return sum;
}

static void test_wgrad(void **state) {
    const fixture *f = *state;
    float out[L * N * K];
    memset(out, 0xff, sizeof out); /* NaN: everything must be written */
    xp_grouped_gemm_call call = call_on(f, out);
    assert_int_equal(xp_grouped_gemm_wgrad(&call, f->stream), XP_OK);
    for (int i = 0; i < L * N * K; i++)
        assert_near(out[i], weight_gradient(f, i / (N * K), i / K % N, i % K));
    for (int i = N * K; i < 2 * N * K; i++)
        assert_true(out[i] == 0);
    call.accumulate = true;
    assert_int_equal(xp_grouped_gemm_wgrad(&call, f->stream), XP_OK);
    for (int i = 0; i < L * N * K; i++)
        assert_near(out[i], 2 * weight_gradient(f, i / (N * K), i / K % N, i % K));
}

static void test_rows_in_order(void **state) {
    const fixture *f = *state;
    float x[P * K], want[P * N], got[P * N];
    for (int i = 0; i < P; i++)
        memcpy(x + i * K, f->x + f->x_gather[i] * K, K * sizeof *x);
    xp_grouped_gemm_call call = call_on(f, want);
    assert_int_equal(xp_grouped_gemm_forward(&call, f->stream), XP_OK);
    call.x = x, call.x_gather = NULL, call.out = got;
    assert_int_equal(xp_grouped_gemm_forward(&call, f->stream), XP_OK);
    assert_memory_equal(got, want, (size_t)offsets[L] * N * sizeof *got);
}

static void test_sizes_of_zero(void **state) {
    const fixture *f = *state;
    xp_grouped_gemm_call call = {0};
    assert_int_equal(xp_grouped_gemm_forward(&call, f->stream), XP_OK);
    assert_int_equal(xp_grouped_gemm_wgrad(&call, f->stream), XP_OK);
    float out[L * N * K];
    memset(out, 0xff, sizeof out);
    static const int32_t none[L + 1];
    call = call_on(f, out);
    call.max_rows = 0, call.offsets = none, call.x = NULL, call.dy = NULL;
    assert_int_equal(xp_grouped_gemm_wgrad(&call, f->stream), XP_OK);
    for (int i = 0; i < L * N * K; i++)
        assert_true(out[i] == 0);
}

static void expect_refused(xp_status status, const char *part) {
    assert_int_equal(status, XP_EINVAL);
    if (strstr(xp_last_error(), part) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", xp_last_error(), part);
}

static void test_bad_calls(void **state) {
    const fixture *f = *state;
    float out[P * N] = {0};
    expect_refused(xp_grouped_gemm_forward(NULL, f->stream), "must not be NULL");
    xp_grouped_gemm_call call = call_on(f, out);
    expect_refused(xp_grouped_gemm_dgrad(&call, NULL), "xp_grouped_gemm_dgrad");
    call.w = NULL;
    expect_refused(xp_grouped_gemm_forward(&call, f->stream), "w is NULL");
    call = call_on(f, out), call.offsets = NULL;
    expect_refused(xp_grouped_gemm_forward(&call, f->stream), "offsets is NULL");
    call = call_on(f, out), call.dtype = XP_I32;
    expect_refused(xp_grouped_gemm_forward(&call, f->stream), "must be f32 or bf16");
    call = call_on(f, out), call.n = -1;
    expect_refused(xp_grouped_gemm_wgrad(&call, f->stream), "n = -1");
    for (int i = 0; i < P * N; i++)
        assert_true(out[i] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),       cmocka_unit_test(test_dgrad),
        cmocka_unit_test(test_wgrad),         cmocka_unit_test(test_rows_in_order),
        cmocka_unit_test(test_sizes_of_zero), cmocka_unit_test(test_bad_calls),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
