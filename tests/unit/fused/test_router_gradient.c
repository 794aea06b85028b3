/* The router's backward is the derivative of weights, auxiliary loss and z-loss together; NaN
 * logits are survived. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>
#include "core/rng.h"
#include "ops/ops.h"

enum { T = 24, S = 8, E = 19, K = 4 };

typedef struct setting {
    xp_score_func score_func;
    bool route_norm, aux, z;
    const char *caps; /* left out */
} setting;

typedef struct run {
    const setting *s;
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
    float d_weight[T * K];
    int32_t targets[T], forced[T * K];
} run;

static const float loss_scale = 0.25F, aux_coeff = 3, z_coeff = 0.1F;

static void start(run *r, const setting *s) {
    r->s = s;
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 2, .caps = s->caps};
    assert_int_equal(xp_device_create(&args, &r->device), XP_OK);
    assert_int_equal(xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->stream), XP_OK);
    assert_int_equal(xp_ops_get(r->device, &r->ops), XP_OK);
    xp_rng_fill_normal(3, 1, 0, T * K, 1, r->d_weight);
    for (int t = 0; t < T; t++)
        r->targets[t] = t % 5 == 0 ? -1 : t;
}

static void stop(run *r) {
    xp_stream_destroy(r->stream);
    xp_device_destroy(r->device);
}

typedef struct routed {
    float scores[T * E], weight[T * K], lse[T], density[T / S * E];
    int32_t idx[T * K];
    double losses[2];
} routed;

static void route(const run *r, const float *logits, const int32_t *forced, routed *out) {
    memset(out, 0, sizeof *out);
    xp_router_args args = {.n_tokens = T,
                           .n_experts = E,
                           .top_k = K,
                           .score_func = r->s->score_func,
                           .route_norm = r->s->route_norm,
                           .route_scale = 2.5F,
                           .logits = logits,
                           .forced = forced,
                           .scores = out->scores,
                           .topk_idx = out->idx,
                           .topk_weight = out->weight,
                           .lse = out->lse};
    assert_int_equal(r->ops->router_forward(r->stream, &args), XP_OK);
    xp_router_losses_args losses = {.n_tokens = T,
                                    .seq_len = S,
                                    .n_experts = E,
                                    .top_k = K,
                                    .scores = out->scores,
                                    .topk_idx = out->idx,
                                    .targets = r->targets,
                                    .loss_scale = loss_scale,
                                    .aux_coeff = r->s->aux ? aux_coeff : 0,
                                    .z_coeff = r->s->z ? z_coeff : 0,
                                    .lse = out->lse,
                                    .aux_density = out->density,
                                    .losses = out->losses};
    assert_int_equal(r->ops->router_losses(r->stream, &losses), XP_OK);
}

static double total_loss(const run *r, const float *logits) {
    routed out;
    route(r, logits, r->forced, &out);
    double loss = out.losses[0] + out.losses[1];
    for (int i = 0; i < T * K; i++)
        loss += (double)r->d_weight[i] * (double)out.weight[i];
    return loss;
}

static void check_gradient(const setting *s) {
    run r;
    start(&r, s);
    float logits[T * E], direction[T * E], d_logits[T * E], side[T * E];
    xp_rng_fill_normal(3, 2, 0, T * E, 1.5F, logits);
    xp_rng_fill_normal(3, 3, 0, T * E, 1, direction);
    routed out;
    route(&r, logits, NULL, &out);
    memcpy(r.forced, out.idx, sizeof r.forced);
    xp_router_backward_args back = {.n_tokens = T,
                                    .n_experts = E,
                                    .top_k = K,
                                    .score_func = s->score_func,
                                    .route_norm = s->route_norm,
                                    .route_scale = 2.5F,
                                    .scores = out.scores,
                                    .topk_idx = out.idx,
                                    .d_topk_weight = r.d_weight,
                                    .seq_len = S,
                                    .aux_density = s->aux ? out.density : NULL,
                                    .lse = s->z ? out.lse : NULL,
                                    .z_scale = 2 * z_coeff * loss_scale,
                                    .dlogits = d_logits};
    assert_int_equal(r.ops->router_backward(r.stream, &back), XP_OK);

    const float step = 1e-3F;
    double sides[2];
    double want = 0;
    for (int plus = 0; plus < 2; plus++) {
        for (int i = 0; i < T * E; i++)
            side[i] = logits[i] + (plus ? step : -step) * direction[i];
        sides[plus] = total_loss(&r, side);
    }
    double size = 0;
    for (int i = 0; i < T * E; i++) {
        want += (double)d_logits[i] * (double)direction[i];
        size += (double)d_logits[i] * (double)d_logits[i];
    }
    double got = (sides[1] - sides[0]) / (2 * (double)step);
    if (!(fabs(got - want) < 1e-3 * sqrt(size) + 1e-3 * fabs(want)))
        fail_msg("%s norm %d aux %d z %d caps -%s: derivative %.8g, backward %.8g",
                 s->score_func == XP_SCORE_SOFTMAX ? "softmax" : "sigmoid", s->route_norm, s->aux,
                 s->z, s->caps ? s->caps : "", got, want);

    /* dlogits may be scores. */
    memcpy(side, out.scores, sizeof side);
    back.scores = side;
    back.dlogits = side;
    assert_int_equal(r.ops->router_backward(r.stream, &back), XP_OK);
    assert_memory_equal(side, d_logits, sizeof side);
    stop(&r);
}

static void test_gradient(void **state) {
    (void)state;
    const char *caps[] = {NULL, "avx512", "avx2"};
    for (int i = 0; i < 48; i++) {
        setting s = {.score_func = i % 2 ? XP_SCORE_SIGMOID : XP_SCORE_SOFTMAX,
                     .route_norm = (i / 2) % 2,
                     .aux = (i / 4) % 2,
                     .z = (i / 8) % 2,
                     .caps = caps[i / 16]};
        check_gradient(&s);
    }
}

/* Whatever the logits: K different experts in range, the same in every code, finite scores first.
 */
static void test_nan_logits(void **state) {
    (void)state;
    const char *caps[] = {NULL, "avx512", "avx2"};
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38F, -0.0F, 0};
    int32_t first[T * K];
    for (int c = 0; c < 3; c++) {
        setting s = {.score_func = XP_SCORE_SIGMOID, .caps = caps[c]};
        run r;
        start(&r, &s);
        float logits[T * E];
        xp_rng_fill_normal(4, 1, 0, T * E, 1, logits);
        for (int i = 0; i < T * E; i++)
            if (i / E > 0 && xp_rng_below(4, 2, (uint64_t)i, 3) == 0)
                logits[i] = odd[xp_rng_below(4, 3, (uint64_t)i, 6)];
        for (int i = 0; i < E; i++)
            logits[i] = NAN;
        routed out;
        for (int softmax = 0; softmax < 2; softmax++) {
            s.score_func = softmax ? XP_SCORE_SOFTMAX : XP_SCORE_SIGMOID;
            route(&r, logits, NULL, &out);
            for (int t = 0; t < T; t++) {
                uint32_t seen = 0;
                for (int k = 0; k < K; k++) {
                    int32_t e = out.idx[t * K + k];
                    assert_true(e >= 0 && e < E && (seen >> e & 1U) == 0);
                    seen |= 1U << e;
                }
            }
            for (int k = 0; k < K; k++) /* all NaN: the first experts */
                assert_int_equal(out.idx[k], k);
        }
        s.score_func = XP_SCORE_SIGMOID;
        route(&r, logits, NULL, &out);
        if (c == 0)
            memcpy(first, out.idx, sizeof first);
        assert_memory_equal(first, out.idx, sizeof first);
        stop(&r);
    }
}

static void test_ties_go_to_the_lower_expert(void **state) {
    (void)state;
    const char *caps[] = {NULL, "avx512", "avx2"};
    for (int c = 0; c < 3; c++) {
        setting s = {.score_func = XP_SCORE_SIGMOID, .caps = caps[c]};
        run r;
        start(&r, &s);
        float logits[T * E];
        for (int i = 0; i < T * E; i++)
            logits[i] = i % E == 7 || i % E == 11 ? 2 : i % 2 ? -0.0F : 0.0F;
        routed out;
        route(&r, logits, NULL, &out);
        const int32_t want[K] = {7, 11, 0, 1};
        for (int t = 0; t < T; t++)
            assert_memory_equal(out.idx + t * K, want, sizeof want);
        stop(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_nan_logits),
        cmocka_unit_test(test_ties_go_to_the_lower_expert),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
