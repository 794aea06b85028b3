/* expar/moe.h: gradients against finite differences, ranks against one rank, balance, arguments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "expar/moe.h"
#include "harness.h"

enum { T = 10, D = 12, F = 5, E = 4, K = 2, MAX_RANKS = 4 };

static xp_moe_args layer_args(void) {
    return (xp_moe_args){.num_experts = E,
                         .top_k = K,
                         .dim = D,
                         .moe_dim = F,
                         .max_tokens = T,
                         .route_norm = true,
                         .use_deepep = true};
}

typedef struct layer {
    xp_device *device;
    xp_stream *stream;
    xp_moe *moe;
    float x[T * D], out[T * D], d_out[T * D], dx[T * D];
} layer;

static void layer_create(const xp_moe_args *args, xp_comm *comm, const char *data, layer *l) {
    xp_device_args device = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_test_must(xp_device_create(&device, &l->device));
    xp_test_must(xp_stream_create(l->device, XP_STREAM_COMPUTE, &l->stream));
    xp_test_must(xp_moe_create(args, comm, l->device, &l->moe));
    xp_test_must(xp_moe_init_params(l->moe, 3, 0.3F, 0.3F));
    for (int i = 0; i < T * D; i++) {
        l->x[i] = 2.0F * xp_test_uniform(data, i);
        l->d_out[i] = xp_test_uniform(data, T * D + i);
    }
}

static void layer_destroy(layer *l) {
    xp_moe_destroy(l->moe);
    xp_stream_destroy(l->stream);
    xp_device_destroy(l->device);
}

static void layer_forward(layer *l, int64_t n) {
    xp_tensor x = xp_tensor_2d(l->x, XP_F32, n, D), out = xp_tensor_2d(l->out, XP_F32, n, D);
    xp_test_must(xp_moe_forward(l->moe, &x, &out, true, l->stream));
    xp_test_must(xp_stream_sync(l->stream));
}

static void layer_backward(layer *l, int64_t n, bool accumulate) {
    xp_tensor x = xp_tensor_2d(l->x, XP_F32, n, D), d_out = xp_tensor_2d(l->d_out, XP_F32, n, D);
    xp_tensor dx = xp_tensor_2d(l->dx, XP_F32, n, D);
    xp_test_must(xp_moe_backward(l->moe, &x, &d_out, &dx, accumulate, l->stream));
    xp_test_must(xp_stream_sync(l->stream));
}

/* sum(out * d_out) + extra losses: what backward differentiates. */
static double objective(layer *l) {
    double aux, z, sum = 0.0;
    layer_forward(l, T);
    xp_test_must(xp_moe_read_losses(l->moe, l->stream, &aux, &z));
    for (int i = 0; i < T * D; i++)
        sum += (double)l->out[i] * (double)l->d_out[i];
    return sum + aux + z;
}

/* The directional derivative along the gradient equals its norm. */
static void check_direction(layer *l, float *values, const float *gradient, int64_t n) {
    double norm = 0.0, sums[2], step = 1e-3;
    float *saved = malloc((size_t)n * sizeof(float));
    assert_non_null(saved);
    memcpy(saved, values, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        norm += (double)gradient[i] * (double)gradient[i];
    norm = sqrt(norm);
    assert_true(norm > 1e-3);
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < n; i++)
            values[i] = saved[i] + (float)((side ? -step : step) * (double)gradient[i] / norm);
        sums[side] = objective(l);
    }
    memcpy(values, saved, (size_t)n * sizeof(float));
    free(saved);
    double measured = (sums[0] - sums[1]) / (2.0 * step);
    if (fabs(measured - norm) > 0.02 * norm)
        fail_msg("derivative %.6g, gradient's norm %.6g", measured, norm);
}

static void check_gradients(xp_moe_args args) {
    layer l;
    layer_create(&args, NULL, "moe", &l);
    objective(&l);
    layer_backward(&l, T, false);
    float dx[T * D];
    memcpy(dx, l.dx, sizeof(dx));
    check_direction(&l, l.x, dx, T * D);
    for (int w = 0; w < XP_MOE_N_WEIGHTS; w++) {
        xp_tensor value = xp_moe_param(l.moe, (xp_moe_weight)w);
        xp_tensor gradient = xp_moe_grad(l.moe, (xp_moe_weight)w);
        check_direction(&l, value.data, gradient.data, xp_tensor_count(&value));
    }
    layer_destroy(&l);
}

static void test_gradients(void **state) {
    (void)state;
    xp_moe_args args = layer_args();
    check_gradients(args);
    args.recompute = true;
    args.route_norm = false;
    args.aux_loss_coeff = 0.5;
    args.z_loss_coeff = 0.1;
    args.seq_len = 5;
    check_gradients(args);
    args.score_func = "sigmoid";
    args.route_scale = 2.0;
    args.force_load_balance = "modulo";
    check_gradients(args);
}

/* Fewer rows than a balanced load needs: several rounds, the same result. */
static void test_rounds_change_nothing(void **state) {
    (void)state;
    layer whole, rounds;
    xp_moe_args args = layer_args();
    layer_create(&args, NULL, "moe", &whole);
    args.capacity_factor = 0.3;
    layer_create(&args, NULL, "moe", &rounds);
    layer_forward(&whole, T);
    layer_forward(&rounds, T);
    layer_backward(&whole, T, false);
    layer_backward(&rounds, T, false);
    assert_true(xp_test_distance(rounds.out, whole.out, T * D) < 1e-6);
    assert_true(xp_test_distance(rounds.dx, whole.dx, T * D) < 1e-6);
    for (int w = 0; w < XP_MOE_N_WEIGHTS; w++) {
        xp_tensor a = xp_moe_grad(rounds.moe, (xp_moe_weight)w);
        xp_tensor b = xp_moe_grad(whole.moe, (xp_moe_weight)w);
        assert_true(xp_test_distance(a.data, b.data, xp_tensor_count(&b)) < 1e-6);
    }
    xp_ep_stats stats;
    xp_ep_get_stats(xp_moe_ep_group(rounds.moe), &stats);
    assert_true(stats.n_combines >= 2);
    layer_destroy(&whole);
    layer_destroy(&rounds);
}

static void test_bias_balances(void **state) {
    (void)state;
    layer l;
    xp_moe_args args = layer_args();
    layer_create(&args, NULL, "moe", &l);
    int64_t first = 0, last = 0;
    for (int step = 0; step < 400; step++) {
        layer_forward(&l, T);
        const int64_t *counts = xp_moe_expert_counts(l.moe);
        int64_t sum = 0, max = 0;
        for (int e = 0; e < E; e++) {
            sum += counts[e];
            max = counts[e] > max ? counts[e] : max;
        }
        assert_int_equal(sum, T * K);
        first = step == 0 ? max : first;
        last = max;
        xp_test_must(xp_moe_update_bias(l.moe, 5e-3, NULL, l.stream));
        assert_int_equal(counts[0], 0);
    }
    double total = 0.0;
    for (int e = 0; e < E; e++)
        total += (double)xp_moe_expert_bias(l.moe)[e];
    assert_true(fabs(total) < 1e-4);
    assert_true(last <= first && last <= T * K / E + 2);
    layer_destroy(&l);
}

/* ---- ranks ----------------------------------------------------------------------------------- */

typedef struct rank_job {
    xp_thread_world *world;
    int rank, n_ranks;
    xp_moe_args args;
    bool skewed;
    int64_t first, n; /* of the T tokens */
    float *out, *dx;  /* [T, D] shared */
    float *d_gate;    /* [n_ranks, E, D] */
    float *d_w13;     /* [E, 2F, D] */
    bool ok;
} rank_job;

/* Every token selects experts 0 and 1: one rank gets all rows, more than a balanced load saves. */
static void skew(layer *l) {
    xp_moe_expert_bias(l->moe)[0] = 10.0F;
    xp_moe_expert_bias(l->moe)[1] = 10.0F;
}

static void *rank_main(void *arg) {
    rank_job *job = arg;
    xp_comm *comm = NULL;
    layer l, tokens;
    xp_test_must(xp_thread_world_comm(job->world, job->rank, &comm));
    layer_create(&job->args, comm, "moe", &l);
    if (job->skewed)
        skew(&l);
    memcpy(&tokens, &l, sizeof(l));
    memcpy(l.x, tokens.x + job->first * D, (size_t)(job->n * D) * sizeof(float));
    memcpy(l.d_out, tokens.d_out + job->first * D, (size_t)(job->n * D) * sizeof(float));
    layer_forward(&l, job->n);
    layer_backward(&l, job->n, false);
    memcpy(job->out + job->first * D, l.out, (size_t)(job->n * D) * sizeof(float));
    memcpy(job->dx + job->first * D, l.dx, (size_t)(job->n * D) * sizeof(float));
    xp_tensor gate = xp_moe_grad(l.moe, XP_MOE_GATE), w13 = xp_moe_grad(l.moe, XP_MOE_W13);
    memcpy(job->d_gate + job->rank * E * D, gate.data, E * D * sizeof(float));
    memcpy(job->d_w13 + job->rank * xp_tensor_count(&w13), w13.data,
           (size_t)xp_tensor_count(&w13) * sizeof(float));
    layer_destroy(&l);
    xp_comm_destroy(comm);
    job->ok = true;
    return NULL;
}

static void run_ranks(int n_ranks, xp_moe_args args, bool skewed, float *out, float *dx,
                      float *d_gate, float *d_w13) {
    xp_thread_world *world = NULL;
    xp_test_must(xp_thread_world_create(n_ranks, 20.0, &world));
    rank_job jobs[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    float gates[MAX_RANKS * E * D] = {0};
    for (int r = 0; r < n_ranks; r++) {
        /* Uneven: the last rank has what is left, maybe nothing. */
        int64_t each = (T + n_ranks - 2) / (n_ranks - 1), first = r * each < T ? r * each : T;
        jobs[r] = (rank_job){.world = world,
                             .rank = r,
                             .n_ranks = n_ranks,
                             .args = args,
                             .skewed = skewed,
                             .first = first,
                             .n = T - first < each ? T - first : each,
                             .out = out,
                             .dx = dx,
                             .d_gate = gates,
                             .d_w13 = d_w13};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &jobs[r]), 0);
    }
    memset(d_gate, 0, E * D * sizeof(float));
    for (int r = 0; r < n_ranks; r++) {
        pthread_join(threads[r], NULL);
        assert_true(jobs[r].ok);
        for (int i = 0; i < E * D; i++)
            d_gate[i] += gates[r * E * D + i];
    }
    xp_thread_world_destroy(world);
}

static void check_ranks(int n_ranks, xp_moe_args args, bool skewed) {
    layer one;
    xp_moe_args alone = layer_args();
    layer_create(&alone, NULL, "moe", &one);
    if (skewed)
        skew(&one);
    layer_forward(&one, T);
    layer_backward(&one, T, false);
    float out[T * D], dx[T * D], d_gate[E * D], d_w13[E * 2 * F * D];
    run_ranks(n_ranks, args, skewed, out, dx, d_gate, d_w13);
    assert_true(xp_test_distance(out, one.out, T * D) < 1e-5);
    assert_true(xp_test_distance(dx, one.dx, T * D) < 1e-5);
    assert_true(xp_test_distance(d_gate, xp_moe_grad(one.moe, XP_MOE_GATE).data, E * D) < 1e-5);
    assert_true(xp_test_distance(d_w13, xp_moe_grad(one.moe, XP_MOE_W13).data, E * 2 * F * D) <
                1e-5);
    layer_destroy(&one);
}

static void test_ranks_equal_one(void **state) {
    (void)state;
    for (int n_ranks = 2; n_ranks <= 4; n_ranks += 2) {
        xp_moe_args args = layer_args();
        check_ranks(n_ranks, args, false);
        args.recompute = true;
        check_ranks(n_ranks, args, false);
        args.capacity_factor = 0.3;
        check_ranks(n_ranks, args, false);
        args = layer_args();
        args.use_deepep = false;
        check_ranks(n_ranks, args, false);
        args.use_deepep = true;
        args.overlap = true;
        check_ranks(n_ranks, args, false);
        args.capacity_factor = 0.3;
        check_ranks(n_ranks, args, false);
    }
}

static void test_skewed_load(void **state) {
    (void)state;
    for (int n_ranks = 2; n_ranks <= 4; n_ranks += 2) {
        for (int i = 0; i < 8; i++) {
            xp_moe_args args = layer_args();
            args.capacity_factor = (i & 1) ? 8.0 : 1.0; /* one round, several */
            args.overlap = (i & 2) != 0;
            args.use_deepep = (i & 4) != 0;
            check_ranks(n_ranks, args, true);
        }
    }
}

static void refused(xp_moe_args args, const char *word) {
    xp_device_args device = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *made = NULL;
    xp_moe *moe = NULL;
    xp_test_must(xp_device_create(&device, &made));
    assert_int_equal(xp_moe_create(&args, NULL, made, &moe), XP_EINVAL);
    assert_null(moe);
    if (!strstr(xp_last_error(), word))
        fail_msg("'%s' not in: %s", word, xp_last_error());
    xp_device_destroy(made);
}

static void test_arguments(void **state) {
    (void)state;
    xp_moe_args args = layer_args();
    args.top_k = E + 1;
    refused(args, "top_k");
    args = layer_args();
    args.num_experts = 0;
    refused(args, "num_experts");
    args = layer_args();
    args.score_func = "tanh";
    refused(args, "score_func");
    args = layer_args();
    args.force_load_balance = "yes";
    refused(args, "force_load_balance");
    args = layer_args();
    args.grad_dtype = XP_BF16;
    refused(args, "bf16 gradients");
    args = layer_args();
    layer l;
    layer_create(&args, NULL, "moe", &l);
    xp_tensor x = xp_tensor_2d(l.x, XP_F32, T, D - 1), out = xp_tensor_2d(l.out, XP_F32, T, D);
    assert_int_equal(xp_moe_forward(l.moe, &x, &out, false, l.stream), XP_EINVAL);
    x.shape[0] = T + 1;
    assert_int_equal(xp_moe_forward(l.moe, &x, &out, false, l.stream), XP_EINVAL);
    xp_tensor good = xp_tensor_2d(l.x, XP_F32, T, D), dx = xp_tensor_2d(l.dx, XP_F32, T, D);
    assert_int_equal(xp_moe_backward(l.moe, &good, &out, &dx, false, l.stream), XP_EINVAL);
    layer_destroy(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),     cmocka_unit_test(test_rounds_change_nothing),
        cmocka_unit_test(test_bias_balances), cmocka_unit_test(test_ranks_equal_one),
        cmocka_unit_test(test_skewed_load),   cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
