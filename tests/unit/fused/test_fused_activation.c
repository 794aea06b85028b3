/* silu * gate * prob through its public door: both codes agree, gradients are derivatives, bad
 * calls are refused. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/rng.h"
#include "expar/fused_activation.h"

enum { N = 37, F = 83, LD = 2 * F + 3, MAX = N * LD };

typedef struct fixture {
    xp_device *fast, *plain;
    xp_stream *on_fast, *on_plain, *on_worker;
    float x[MAX], prob[N], dout[N * F];
} fixture;

static int setup(void **state) {
    static fixture f;
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 3};
    assert_int_equal(xp_device_create(&args, &f.fast), XP_OK);
    args.caps = "avx2,avx512";
    assert_int_equal(xp_device_create(&args, &f.plain), XP_OK);
    assert_int_equal(xp_stream_create(f.fast, XP_STREAM_COMPUTE, &f.on_fast), XP_OK);
    assert_int_equal(xp_stream_create(f.fast, XP_STREAM_WORKER, &f.on_worker), XP_OK);
    assert_int_equal(xp_stream_create(f.plain, XP_STREAM_COMPUTE, &f.on_plain), XP_OK);
    xp_rng_fill_normal(1, 1, 0, MAX, 2, f.x);
    xp_rng_fill_normal(1, 2, 0, N, 1, f.prob);
    xp_rng_fill_normal(1, 3, 0, N * F, 1, f.dout);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    xp_stream_destroy(f->on_fast);
    xp_stream_destroy(f->on_worker);
    xp_stream_destroy(f->on_plain);
    xp_device_destroy(f->fast);
    xp_device_destroy(f->plain);
    return 0;
}

static xp_silu_gate_prob_call call_on(const fixture *f, const float *x, float *out) {
    return (xp_silu_gate_prob_call){.n_rows = N,
                                    .dim = F,
                                    .dtype = XP_F32,
                                    .x1 = x,
                                    .x2 = x + F,
                                    .ld = LD,
                                    .prob = f->prob,
                                    .out = out};
}

static void assert_close(const float *got, const float *want, int64_t n, double relative) {
    for (int64_t i = 0; i < n; i++) {
        double limit = relative * (1 + fabs((double)want[i]));
        if (!(fabs((double)got[i] - (double)want[i]) <= limit))
            fail_msg("element %lld: %.9g, wanted %.9g", (long long)i, (double)got[i],
                     (double)want[i]);
    }
}

static void test_path_is_told(void **state) {
    fixture *f = *state;
    float out[N * F];
    xp_silu_gate_prob_call call = call_on(f, f->x, out);
    xp_activation_path path = XP_ACTIVATION_FUSED;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_plain, &path), XP_OK);
    assert_int_equal(path, XP_ACTIVATION_REFERENCE);
    assert_string_equal(xp_activation_path_name(path), "reference");
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, &path), XP_OK);
    assert_int_equal(path, xp_silu_gate_prob_path(f->fast));
    assert_int_equal(xp_fused_silu_gate_prob(&call, f->on_plain), XP_ENOTSUP);
    assert_non_null(strstr(xp_last_error(), "AVX2"));
}

static void test_values(void **state) {
    fixture *f = *state;
    float out[N * F];
    xp_silu_gate_prob_call call = call_on(f, f->x, out);
    assert_int_equal(xp_silu_gate_prob(&call, f->on_worker, NULL), XP_OK);
    assert_int_equal(xp_stream_sync(f->on_worker), XP_OK);
    for (int r = 0; r < N; r++) {
        for (int i = 0; i < F; i++) {
            double a = (double)f->x[r * LD + i];
            double b = (double)f->x[r * LD + F + i];
            float want = (float)(a / (1 + exp(-a)) * b * (double)f->prob[r]);
            assert_close(&out[r * F + i], &want, 1, 1e-6);
        }
    }
}

static void test_codes_agree(void **state) {
    fixture *f = *state;
    float want[N * F], got[N * F], want_dx[MAX], got_dx[MAX], want_dp[N], got_dp[N];
    xp_silu_gate_prob_backward_call call = {.forward = call_on(f, f->x, want),
                                            .dout = f->dout,
                                            .dx1 = want_dx,
                                            .dx2 = want_dx + F,
                                            .ld_grad = LD,
                                            .dprob = want_dp};
    memset(want_dx, 0, sizeof want_dx);
    assert_int_equal(xp_silu_gate_prob_reference_backward(&call, f->on_fast), XP_OK);

    /* In place: the gradients over x, the output over dout. */
    memcpy(got_dx, f->x, sizeof got_dx);
    memcpy(got, f->dout, sizeof got);
    call = (xp_silu_gate_prob_backward_call){.forward = call_on(f, got_dx, got),
                                             .dout = got,
                                             .dx1 = got_dx,
                                             .dx2 = got_dx + F,
                                             .ld_grad = LD,
                                             .dprob = got_dp};
    assert_int_equal(xp_silu_gate_prob_backward(&call, f->on_fast, NULL), XP_OK);
    assert_close(got, want, N * F, 1e-6);
    assert_close(got_dp, want_dp, N, 1e-5);
    for (int r = 0; r < N; r++) {
        assert_close(got_dx + r * LD, want_dx + r * LD, 2 * (int64_t)F, 2e-6);
        for (int i = 2 * F; i < LD; i++) /* between the rows nothing is touched */
            assert_true(got_dx[r * LD + i] == f->x[r * LD + i]);
    }
}

static double loss(fixture *f, const float *x, const float *prob) {
    float out[N * F];
    xp_silu_gate_prob_call call = call_on(f, x, out);
    call.prob = prob;
    assert_int_equal(xp_silu_gate_prob_reference(&call, f->on_fast), XP_OK);
    double sum = 0;
    for (int i = 0; i < N * F; i++)
        sum += (double)out[i] * (double)f->dout[i];
    return sum;
}

/* Along a random direction of x1, x2 and prob at once, and of prob alone: dropping dprob must fail
 * here. */
static void test_gradient(void **state) {
    fixture *f = *state;
    float dx[MAX], dp[N];
    memset(dx, 0, sizeof dx);
    xp_silu_gate_prob_backward_call call = {.forward = call_on(f, f->x, NULL),
                                            .dout = f->dout,
                                            .dx1 = dx,
                                            .dx2 = dx + F,
                                            .ld_grad = LD,
                                            .dprob = dp};
    assert_int_equal(xp_silu_gate_prob_backward(&call, f->on_fast, NULL), XP_OK);
    for (int with_x = 0; with_x < 2; with_x++) {
        float along_x[MAX], along_p[N], x[2][MAX], p[2][N];
        xp_rng_fill_normal(2, 1, 0, MAX, with_x ? 1 : 0, along_x);
        xp_rng_fill_normal(2, 2, 0, N, 1, along_p);
        double want = 0;
        for (int i = 0; i < MAX; i++)
            want += i % LD < 2 * F ? (double)along_x[i] * (double)dx[i] : 0;
        for (int r = 0; r < N; r++)
            want += (double)along_p[r] * (double)dp[r];
        const float step = 1e-3F;
        for (int side = 0; side < 2; side++) {
            for (int i = 0; i < MAX; i++)
                x[side][i] = f->x[i] + (side ? step : -step) * along_x[i];
            for (int r = 0; r < N; r++)
                p[side][r] = f->prob[r] + (side ? step : -step) * along_p[r];
        }
        double got = (loss(f, x[1], p[1]) - loss(f, x[0], p[0])) / (2 * (double)step);
        assert_true(fabs(want) > 1);
        assert_true(fabs(got - want) < 1e-3 * fabs(want));
    }
}

static void test_bf16(void **state) {
    fixture *f = *state;
    uint16_t x[MAX], got[N * F], want[N * F];
    for (int i = 0; i < MAX; i++)
        x[i] = xp_bf16_from_f32(f->x[i]);
    xp_silu_gate_prob_call call = {.n_rows = N,
                                   .dim = F,
                                   .dtype = XP_BF16,
                                   .x1 = x,
                                   .x2 = x + F,
                                   .ld = LD,
                                   .prob = f->prob,
                                   .out = got};
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_OK);
    call.out = want;
    assert_int_equal(xp_silu_gate_prob_reference(&call, f->on_fast), XP_OK);
    for (int i = 0; i < N * F; i++) /* at most one unit apart, where fp32 and fp64 straddle a tie */
        assert_true(abs((int)got[i] - (int)want[i]) <= 1);
}

static void test_rows_on_device(void **state) {
    fixture *f = *state;
    float out[N * F];
    int32_t n_valid = 5;
    for (int i = 0; i < N * F; i++)
        out[i] = -7;
    xp_silu_gate_prob_call call = call_on(f, f->x, out);
    call.n_rows_device = &n_valid;
    call.prob = NULL;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_OK);
    for (int i = 0; i < N * F; i++)
        assert_int_equal(out[i] == -7, i >= 5 * F);
}

static void test_bad_calls(void **state) {
    fixture *f = *state;
    float out[N * F], dx[MAX];
    memset(out, 0, sizeof out);
    xp_silu_gate_prob_call call = call_on(f, f->x, out);
    call.ld = F - 1;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_EINVAL);
    call = call_on(f, NULL, out);
    call.x1 = NULL;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_EINVAL);
    assert_int_equal(xp_silu_gate_prob_reference(&call, f->on_fast), XP_EINVAL);
    call = call_on(f, f->x, out);
    call.dtype = XP_I32;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_EINVAL);
    call = call_on(f, f->x, out);
    call.n_rows = 0;
    assert_int_equal(xp_silu_gate_prob(&call, f->on_fast, NULL), XP_OK);
    xp_silu_gate_prob_backward_call back = {.forward = call_on(f, dx, NULL),
                                            .dout = f->dout,
                                            .dx1 = dx,
                                            .dx2 = dx + F,
                                            .ld_grad = 2 * F};
    assert_int_equal(xp_silu_gate_prob_backward(&back, f->on_fast, NULL), XP_EINVAL);
    assert_non_null(strstr(xp_last_error(), "ld_grad"));
    for (int i = 0; i < N * F; i++)
        assert_true(out[i] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_path_is_told), cmocka_unit_test(test_values),
        cmocka_unit_test(test_codes_agree),  cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_bf16),         cmocka_unit_test(test_rows_on_device),
        cmocka_unit_test(test_bad_calls),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
