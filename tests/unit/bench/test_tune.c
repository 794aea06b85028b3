/* What expar tune concludes from times, and the layer that it measures. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "tune.h"

/* Pairs of 1 s by default and `ratio` s, plus and minus `spread`. */
static xp_tune_verdict judge(double ratio, double spread, int n, xp_tune_pair *pair) {
    static xp_bench_layer_result result;
    memset(&result, 0, sizeof result);
    for (int i = 0; i < n; i++) {
        const double other = ratio + spread * ((double)(i * 7 % n) / n - 0.5) * 2;
        xp_bench_samples_add(&result.s[0], 1);
        xp_bench_samples_add(&result.s[1], other);
        xp_bench_samples_add(&result.ratio, other);
    }
    return xp_tune_judge(&result, pair);
}

static void test_verdicts(void **state) {
    xp_tune_pair pair;
    (void)state;
    assert_int_equal(judge(0.9, 0.05, 40, &pair), XP_TUNE_FASTER);
    assert_true(pair.ratio > 0.88 && pair.ratio < 0.92 && pair.low < pair.ratio &&
                pair.ratio < pair.high && pair.n_pairs == 40);
    assert_int_equal(judge(1.1, 0.05, 40, &pair), XP_TUNE_SLOWER);
    assert_int_equal(judge(0.97, 0.5, 20, &pair), XP_TUNE_SAME);    /* within the noise */
    assert_int_equal(judge(0.995, 0.001, 40, &pair), XP_TUNE_SAME); /* known well, too little */
    assert_int_equal(judge(1.0, 0.0, 40, &pair), XP_TUNE_SAME);
    assert_int_equal(judge(0.5, 0.01, 7, &pair), XP_TUNE_UNCLEAR);
    assert_int_equal(judge(0.5, 0.01, 0, &pair), XP_TUNE_UNCLEAR);
}

static xp_bench_layer_case layer(int n_ranks, int ep_size) {
    return (xp_bench_layer_case){.n_ranks = n_ranks,
                                 .ep_size = ep_size,
                                 .n_tokens = 48,
                                 .seconds = 0.01,
                                 .precise = 1e-9,
                                 .model = {.dim = 32,
                                           .moe_dim = 24,
                                           .n_experts = 8,
                                           .top_k = 2,
                                           .route_norm = true,
                                           .route_scale = 1,
                                           .save_gate_up = true,
                                           .ep = {.capacity_factor = 2}},
                                 .settings = {{.save_recv = true}, {.save_recv = true}}};
}

/* Peer-to-peer and all-to-all are the same computation; overlap adds in another order. */
static void test_layer(void **state) {
    static const int ranks[][2] = {{2, 2}, {4, 2}, {4, 4}};
    static xp_bench_layer_result result;
    const xp_bench_host threads = {0};
    (void)state;
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        xp_bench_layer_case c = layer(ranks[i][0], ranks[i][1]);
        c.settings[1].transport = XP_EP_A2A;
        assert_int_equal(xp_bench_layer(&threads, &c, &result), XP_OK);
        assert_int_equal(result.transport[0], XP_EP_P2P);
        assert_int_equal(result.transport[1], XP_EP_A2A);
        assert_true(result.same_bits);
        assert_true(result.ratio.n > 0 && result.s[0].values[0] > 0 && result.s[1].values[0] > 0);
    }
    xp_bench_layer_case c = layer(2, 2);
    c.n_tokens = 47;
    c.settings[1].overlap = true;
    c.settings[1].overlap_split = 0.5;
    assert_int_equal(xp_bench_layer(&threads, &c, &result), XP_OK);
    c = layer(3, 3); /* 8 experts cannot be divided */
    assert_int_not_equal(xp_bench_layer(&threads, &c, &result), XP_OK);
    int64_t few = 0, many = 0;
    c = layer(2, 2);
    assert_int_equal(xp_bench_layer_bytes(&c, &few), XP_OK);
    c.n_tokens *= 16;
    assert_int_equal(xp_bench_layer_bytes(&c, &many), XP_OK);
    assert_true(few > 0 && many > 2 * few);
}

static void test_tuned_for(void **state) {
    char a[512], b[512], was[64], is[64];
    xp_tune_facts facts = {.hardware = "GPU X",
                           .n_ranks = 8,
                           .processes = true,
                           .deepep = true,
                           .dim = 2048,
                           .moe_dim = 768,
                           .tokens = 4096,
                           .n_experts = 128,
                           .top_k = 8,
                           .ep_size = 8,
                           .dtype = XP_BF16};
    (void)state;
    xp_tuned_for_print(&facts, a, sizeof a);
    xp_tuned_for_print(&facts, b, sizeof b);
    assert_true(xp_tuned_for_equal(a, b, was, is, sizeof was));
    for (const char *part = "GPU X;8 ranks (processes);deepep;D 2048, F 768, E 128, K 8;EP 8;"
                            "bf16 rows;4096 tokens";
         part;) {
        char one[64];
        const size_t n = strcspn(part, ";");
        snprintf(one, sizeof one, "%.*s", (int)n, part);
        assert_non_null(strstr(a, one));
        part = part[n] ? part + n + 1 : NULL;
    }
    facts.n_ranks = 4;
    xp_tuned_for_print(&facts, b, sizeof b);
    assert_false(xp_tuned_for_equal(a, b, was, is, sizeof was));
    assert_string_equal(was, "8 ranks (processes)");
    assert_string_equal(is, "4 ranks (processes)");
    assert_false(xp_tuned_for_equal("", b, was, is, sizeof was));
    assert_string_equal(was, "");
    assert_string_equal(is, "GPU X");
    assert_false(xp_tuned_for_equal("GPU X; more", "GPU X", was, is, sizeof was));
    assert_string_equal(was, "more");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_layer),
        cmocka_unit_test(test_tuned_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
