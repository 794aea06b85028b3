/* What expar tune concludes from times, and the layer that it measures. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ops/gemm_choice.h"
#include "tune.h"
#include "tune_print.h"

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

/* ---- GEMM algorithms --------------------------------------------------------------------- */

static void test_gemm_choices(void **state) {
    static const char *const good[] = {"16384x5120x2048:nt:bf16:bf16:3", "1x2x3:nn:f32:f32+:0",
                                       "151936x2048x4096:tn:bf16:f32+:7"};
    static const char *const bad[] = {"",
                                      "16384x5120x2048",
                                      "16384x5120x2048:nt:bf16:bf16",
                                      "16384x5120x2048:nt:bf16:bf16:32",
                                      "16384x5120x2048:nt:bf16:bf16:-1",
                                      "16384x5120x2048:nt:bf16:bf16:3x",
                                      "16384x5120x2048:nt:f16:bf16:3",
                                      "16384x5120x2048:n:bf16:bf16:3",
                                      " 16384x5120x2048:nt:bf16:bf16:3",
                                      "0x5120x2048:nt:bf16:bf16:3",
                                      "016x5120x2048:nt:bf16:bf16:3"};
    xp_gemm_choice c;
    char text[XP_GEMM_CHOICE_TEXT];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(xp_gemm_choice_parse(good[i], &c), XP_OK);
        xp_gemm_choice_print(&c, text);
        assert_string_equal(text, good[i]);
    }
    assert_true(c.m == 151936 && c.n == 2048 && c.k == 4096 && c.trans_a && !c.trans_b && c.acc &&
                c.ab_dtype == XP_BF16 && c.c_dtype == XP_F32 && c.index == 7);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(xp_gemm_choice_parse(bad[i], &c), XP_ECONFIG);
    assert_int_equal(c.m, 151936); /* as it was */
}

/* ---- the search, with times made up ------------------------------------------------------ */

typedef struct script {
    double a2a, sms_22; /* time over the default's */
    double again;       /* what they are when measured again; 0: the same */
    bool other_bits;
    int n_calls;
} script;
static script play; /* the tests of a process come one after the other */

static double ratio_of(const xp_bench_setting *s) {
    const double r = s->num_sms == 22 ? play.sms_22 : s->transport == XP_EP_A2A ? play.a2a : 1;
    return r < 1 && play.again > 0 && play.n_calls > 9 ? play.again : r;
}

static xp_status made_up(const xp_bench_host *host, const xp_bench_layer_case *c,
                         xp_bench_layer_result *result) {
    (void)host;
    memset(result, 0, sizeof *result);
    play.n_calls++;
    result->same_bits = !(play.other_bits && c->settings[1].num_sms > 0);
    for (int i = 0; i < 32; i++) {
        const double noise = 1 + 0.002 * (i % 5 - 2);
        const double s[] = {ratio_of(&c->settings[0]), ratio_of(&c->settings[1]) * noise};
        for (int k = 0; k < 2; k++)
            xp_bench_samples_add(&result->s[k], s[k]);
        xp_bench_samples_add(&result->ratio, s[1] / s[0]);
    }
    return XP_OK;
}

static const char *search(script times, xp_tune_report *report) {
    static const xp_bench_host threads;
    static xp_config_set *set;
    xp_tune_facts facts;
    play = times;
    xp_config_destroy(set);
    set = NULL;
    assert_int_equal(xp_config_load(0, NULL, false, &set), XP_OK);
    assert_int_equal(xp_config_override(set, "model.flavor", "tiny_moe-deepep"), XP_OK);
    assert_int_equal(xp_config_override(set, "training.backend", "cpu"), XP_OK);
    assert_int_equal(xp_config_override(set, "parallelism.expert_parallel_degree", "2"), XP_OK);
    assert_int_equal(xp_tune_facts_of(xp_config_get(set), 2, true, 4, &facts), XP_OK);
    facts.n_sms = 132;
    const xp_tune_args args = {.config = xp_config_get(set),
                               .facts = &facts,
                               .host = &threads,
                               .n_ranks = 2,
                               .n_cores = 4,
                               .seconds = 1,
                               .layer = made_up};
    assert_int_equal(xp_tune_run(&args, report), XP_OK);
    return report->winner == XP_TUNE_DEFAULT ? "default" : report->candidates[report->winner].name;
}

static void test_search(void **state) {
    static xp_tune_report report;
    (void)state;
    assert_string_equal(search((script){.a2a = 1.1, .sms_22 = 0.9}, &report), "deepep.num_sms 22");
    assert_true(report.has_pair && fabs(report.pair.ratio - 0.9) < 0.01 &&
                report.pair.n_pairs == 64);
    assert_int_equal(report.n, 9); /* a2a, seven numbers of SMs, overlap */
    assert_string_equal(search((script){.a2a = 0.8, .sms_22 = 0.9}, &report),
                        "deepep.transport a2a");
    /* nothing is faster; faster by too little; ahead only the first time; with other bits */
    assert_string_equal(search((script){.a2a = 1.1, .sms_22 = 1.2}, &report), "default");
    assert_false(report.has_pair);
    assert_string_equal(search((script){.a2a = 0.995, .sms_22 = 1}, &report), "default");
    assert_false(report.has_pair);
    assert_string_equal(search((script){.a2a = 0.9, .sms_22 = 1, .again = 1}, &report), "default");
    assert_true(report.has_pair && report.best == 0);
    assert_string_equal(search((script){.a2a = 1, .sms_22 = 0.5, .other_bits = true}, &report),
                        "default");
    assert_string_equal(report.candidates[report.n - 1].why_not, "it changes the order of sums");
}

/* ---- GEMM algorithms of a step ----------------------------------------------------------- */

typedef struct made_up_steps {
    double ratio, noise, drift; /* of variant 1; of a turn; all steps become slower, a turn */
    double turn_s;
    int n_turns, n_first[2]; /* which variant begins a pair */
} made_up_steps;

static xp_status take_turn(void *context, int variant, double *step_s, double *spent_s) {
    made_up_steps *s = context;
    const double noise = 1 + s->noise * ((double)(s->n_turns * 7 % 16) / 8 - 1);
    s->n_first[variant] += s->n_turns % 2 == 0;
    *step_s = 0.1 * (variant == 1 ? s->ratio : 1) * noise * (1 + s->drift * s->n_turns);
    *spent_s = s->turn_s;
    s->n_turns++;
    return s->turn_s > 0 ? XP_OK : XP_ECOMM;
}

static xp_tune_verdict turns_of(made_up_steps *s, double seconds, xp_tune_pair *pair) {
    xp_tune_verdict verdict = XP_TUNE_NOT_MEASURED;
    const xp_tune_turns turns = {.turn = take_turn, .context = s, .seconds = seconds};
    assert_int_equal(xp_tune_take_turns(&turns, pair, &verdict), XP_OK);
    return verdict;
}

static void test_turns(void **state) {
    xp_tune_pair pair;
    made_up_steps s = {.ratio = 0.97, .noise = 0.002, .turn_s = 0.4};
    (void)state;
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_FASTER);
    assert_true(fabs(pair.ratio - 0.97) < 0.004 && fabs(pair.default_s - 0.1) < 0.001);
    assert_true(s.n_turns < 30 &&
                s.n_turns == 2 * pair.n_pairs); /* known before the time is over */
    assert_true(abs(s.n_first[0] - s.n_first[1]) <= 1);
    /* each GEMM faster alone and the step slower, as at a power limit; faster by too little */
    s = (made_up_steps){.ratio = 1.013, .noise = 0.002, .turn_s = 0.4};
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_SLOWER);
    s = (made_up_steps){.ratio = 0.995, .noise = 0.001, .turn_s = 0.4};
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_SAME);
    /* a GPU that becomes warm is no difference */
    s = (made_up_steps){.ratio = 1, .drift = 0.02, .turn_s = 0.4};
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_SAME);
    /* noise that hides it; no time for as many turns as a judgement needs */
    s = (made_up_steps){.ratio = 0.97, .noise = 0.2, .turn_s = 0.4};
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_SAME);
    assert_int_equal(s.n_turns, 76); /* the pair that is begun within 30 s is ended */
    s = (made_up_steps){.ratio = 0.5, .turn_s = 4};
    assert_int_equal(turns_of(&s, 30, &pair), XP_TUNE_UNCLEAR);
    /* a step that fails ends it */
    s = (made_up_steps){.ratio = 1};
    xp_tune_verdict verdict = XP_TUNE_NOT_MEASURED;
    const xp_tune_turns turns = {.turn = take_turn, .context = &s, .seconds = 30};
    assert_int_equal(xp_tune_take_turns(&turns, &pair, &verdict), XP_ECOMM);
    assert_int_equal(verdict, XP_TUNE_NOT_MEASURED);
}

/* What is written: only what won. */
static void test_gemms_won(void **state) {
    static xp_tune_gemms gemms;
    const tune_result result = {.gemms = &gemms, .gemm_for = "GPU X; cuBLASLt 13.1.0"};
    (void)state;
    gemms.n = 3;
    for (int i = 0; i < 3; i++)
        assert_int_equal(xp_gemm_choice_parse("64x32x16:nt:bf16:bf16:0", &gemms.shapes[i]), XP_OK);
    for (int verdict = XP_TUNE_NOT_MEASURED; verdict <= XP_TUNE_UNCLEAR; verdict++) {
        gemms.verdict = (xp_tune_verdict)verdict;
        gemms.shapes[1].index = 0;
        assert_false(xp_tune_gemms_won(&gemms)); /* the library's own choices everywhere */
        gemms.shapes[1].index = 4;
        assert_int_equal(xp_tune_gemms_n_other(&gemms), 1);
        assert_int_equal(xp_tune_gemms_won(&gemms), verdict == XP_TUNE_FASTER);
        xp_text toml = {0}, json = {0};
        tune_add_gemms_toml(&toml, &result);
        tune_add_gemms_json(&json, &result);
        const char *wanted = verdict == XP_TUNE_FASTER ? "\"written\": true" : "\"written\": false";
        assert_non_null(strstr(json.data, wanted));
        if (verdict == XP_TUNE_FASTER)
            assert_true(strstr(toml.data, "[gemm]\ntuned_for = \"GPU X; cuBLASLt 13.1.0\"\n") &&
                        strstr(toml.data, "    \"64x32x16:nt:bf16:bf16:4\", # ") &&
                        !strstr(toml.data, "bf16:0\""));
        else
            assert_int_equal(toml.length, 0);
        xp_text_free(&toml);
        xp_text_free(&json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts),  cmocka_unit_test(test_layer),
        cmocka_unit_test(test_tuned_for), cmocka_unit_test(test_gemm_choices),
        cmocka_unit_test(test_search),    cmocka_unit_test(test_turns),
        cmocka_unit_test(test_gemms_won),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
