/* The benches' own arithmetic, and the self tests of expar doctor. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include <unistd.h>
#include "ep.h"
#include "phases.h"
#include "samples.h"
#include "self_test.h"
#include "ops/ops.h"

static void test_samples(void **state) {
    (void)state;
    xp_bench_samples s = {0};
    assert_true(xp_bench_samples_median(&s) == 0);
    assert_true(xp_bench_samples_mean(&s) == 0);
    const double values[] = {5, 1, 4, 2, 3};
    for (int i = 0; i < 5; i++)
        xp_bench_samples_add(&s, values[i]);
    assert_true(xp_bench_samples_median(&s) == 3);
    assert_true(xp_bench_samples_min(&s) == 1);
    assert_true(xp_bench_samples_mean(&s) == 3);
    assert_true(xp_bench_samples_quantile(&s, 1) == 5);
    for (int i = 0; i < 2 * XP_BENCH_MAX_SAMPLES; i++)
        xp_bench_samples_add(&s, 0);
    assert_int_equal(s.n, XP_BENCH_MAX_SAMPLES);
}

/* T = 4, K = 2, E = 4, R = 2, modulo: tokens 0 and 2 select experts 0, 1 (rank 0), tokens 1 and 3
 * experts 2, 3. */
static void test_ep_bytes(void **state) {
    (void)state;
    const xp_bench_host threads = {0};
    const double row = 8 * sizeof(float);
    xp_bench_ep_row rows[2];
    xp_bench_ep_case c = {.n_ranks = 2,
                          .n_tokens = 4,
                          .dim = 8,
                          .top_k = 2,
                          .n_experts = 4,
                          .dtype = XP_F32,
                          .routing = XP_BENCH_MODULO,
                          .capacity_factor = 2,
                          .n_transports = 2,
                          .transports = {XP_EP_P2P, XP_EP_A2A},
                          .seconds = 0.001,
                          .backward = true};
    assert_int_equal(xp_bench_ep(&threads, &c, rows), XP_OK);
    for (int i = 0; i < 2; i++) {
        /* Each of 8 tokens is delivered once and combined once. With one round threads store no
         * sum for each other. */
        assert_false(rows[i].failed);
        assert_true(rows[i].moved_bytes == 16 * row);
        assert_true(rows[i].dispatch_bytes == 16 * row);
        assert_true(rows[i].combine_bytes == (16 + 8) * row);
        for (int op = 0; op < XP_BENCH_EP_N_OPS; op++)
            assert_true(rows[i].op_s[op] > 0);
        /* Two tokens leave each rank and two come: a row each, or one for each of two assignments. */
        assert_true(rows[i].link_bytes == (i == 0 ? 2 : 4) * row);
        assert_true(rows[i].link_both_bytes_per_s > 0 && rows[i].link_one_bytes_per_s > 0);
        assert_true(rows[i].memcpy_bytes_per_s > 0);
        assert_int_equal(rows[i].n_rounds, 1);
    }
    /* Too little room for one round: sums are stored and read again for the 4 tokens that leave
     * their rank. */
    c.capacity_factor = 0.6;
    c.backward = false;
    assert_int_equal(xp_bench_ep(&threads, &c, rows), XP_OK);
    for (int i = 0; i < 2; i++) {
        assert_true(rows[i].n_rounds > 1);
        assert_true(rows[i].op_s[XP_BENCH_EP_COMBINE] > 0);
        assert_true(rows[i].op_s[XP_BENCH_EP_DISPATCH_BACKWARD] == 0);
        assert_true(rows[i].combine_bytes == (16 + 2 * 4 + 8) * row);
    }
    c.n_experts = 3; /* not divisible by 2 ranks: an error on every row, no hang */
    assert_int_not_equal(xp_bench_ep(&threads, &c, rows), XP_OK);
    assert_true(rows[0].failed && rows[1].failed && rows[0].error[0]);
}

/* The observer hears of a GEMM, with its FLOPs, in the phase that its shape says. */
static void test_phases(void **state) {
    (void)state;
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    const xp_ops *ops = NULL;
    void *memory = NULL;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_ops_get(device, &ops), XP_OK);
    assert_int_equal(xp_device_alloc(device, 4096, "test", &memory), XP_OK);
    memset(memory, 0, 4096);
    float *m = memory;
    const xp_arch arch = {.vocab_size = 10, .n_experts = 6};
    const int64_t widths[] = {10, 6, 4};
    const xp_bench_phase wanted[] = {XP_BENCH_HEAD_GEMM, XP_BENCH_ROUTER, XP_BENCH_DENSE_GEMM};
    xp_bench_phases phases;
    xp_bench_phases_start(&phases, device, &arch);
    for (int i = 0; i < 3; i++) {
        const int64_t n = widths[i];
        const xp_gemm_args gemm = {.m = 3,
                                   .n = n,
                                   .k = 8,
                                   .a = m,
                                   .b = m + 64,
                                   .c = m + 256,
                                   .lda = 8,
                                   .ldb = n,
                                   .ldc = n,
                                   .alpha = 1};
        xp_bench_phase_total totals[XP_BENCH_N_PHASES];
        assert_int_equal(ops->gemm(stream, &gemm), XP_OK);
        xp_bench_phases_take(&phases, totals);
        for (int p = 0; p < XP_BENCH_N_PHASES; p++)
            assert_int_equal(totals[p].n_calls, p == (int)wanted[i]);
        assert_true(totals[wanted[i]].flops == 2.0 * 3 * (double)n * 8);
    }
    xp_bench_phases_stop(&phases, device);
    xp_device_free(device, memory);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static xp_status wrong_gemm(xp_stream *stream, const xp_gemm_args *args) {
    XP_TRY(xp_ops_reference()->gemm(stream, args));
    ((uint16_t *)args->c)[1000] = xp_bf16_from_f32(100);
    ((uint16_t *)args->c)[2000] = xp_bf16_from_f32(400);
    return XP_OK;
}

static xp_status nan_gemm(xp_stream *stream, const xp_gemm_args *args) {
    XP_TRY(wrong_gemm(stream, args));
    ((uint16_t *)args->c)[3000] = 0x7fc0;
    return XP_OK;
}

static void test_wrong_op(void **state) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    char text[256];
    xp_ops ops = *xp_ops_reference();
    (void)state;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_int_equal(xp_self_test_table(device, &ops, XP_BF16, text, sizeof text), XP_OK);
    ops.gemm = wrong_gemm;
    assert_int_equal(xp_self_test_table(device, &ops, XP_BF16, text, sizeof text), XP_EINTERNAL);
    assert_non_null(strstr(xp_last_error(), "GEMM is wrong: the largest difference"));
    assert_non_null(strstr(xp_last_error(), "at element 2000 (400 instead of "));
    ops.gemm = nan_gemm;
    assert_int_equal(xp_self_test_table(device, &ops, XP_BF16, text, sizeof text), XP_EINTERNAL);
    assert_non_null(strstr(xp_last_error(), "is inf, at element 3000 (nan instead of "));
    xp_device_destroy(device);
}

static void test_self_tests(void **state) {
    (void)state;
    char text[256] = "";
    assert_int_equal(xp_self_test_ops(text, sizeof text), XP_OK);
    assert_non_null(strstr(text, "agrees"));
    assert_int_equal(xp_self_test_all_reduce(text, sizeof text), XP_OK);
    assert_int_equal(xp_self_test_ep(text, sizeof text), XP_OK);
    assert_int_equal(xp_self_test_folder("/tmp", text, sizeof text), XP_OK);
    assert_int_equal(xp_self_test_folder("/nowhere", text, sizeof text), XP_EIO);
    assert_non_null(strstr(xp_last_error(), "/nowhere"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),  cmocka_unit_test(test_ep_bytes),
        cmocka_unit_test(test_phases),   cmocka_unit_test(test_self_tests),
        cmocka_unit_test(test_wrong_op),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
