/* The exchange beside GEMMs, of one layer over rank threads: the same bits as without, for ranks without
 * tokens, ranks without rows of their own, and several rounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "model/moe_core_internal.h"

enum { T = 12, D = 8, F = 6, E = 6, K = 2, MAX_RANKS = 3, N_STEPS = 2 };

typedef struct setting {
    int64_t n_tokens[MAX_RANKS];
    const float *bias; /* [E] */
    double capacity_factor;
    xp_ep_transport transport;
    bool saves, inference;
} setting;

/* All that a rank computes in its last step. */
typedef struct results {
    float out[T * D], dx[T * D], d_gate[E * D], d_w13[E * 2 * F * D], d_w2[E * D * F];
} results;

typedef struct rank_job {
    xp_thread_world *world;
    int rank, n_ranks;
    const setting *setting;
    xp_overlap overlap;
    results results;
} rank_job;

/* A fast GEMM of a CPU sums a row in an order that may depend on how many rows there are. */
static xp_status forward_row_by_row(xp_stream *stream, const xp_grouped_args *args) {
    return xp_ops_reference()->grouped_forward(stream, args);
}

static void fill(float *values, int64_t n, int64_t seed) {
    for (int64_t i = 0; i < n; i++)
        values[i] = xp_test_uniform("moe core", (int)(seed * 1000 + i));
}

typedef struct layer {
    float x[T * D], d_out[T * D], gate[E * D], w13[E * 2 * F * D], w2[E * D * F];
    float scores[T * E], topk_weight[T * K];
    int32_t topk_idx[T * K];
} layer;

static void run_steps(xp_moe_core *core, rank_job *job, layer *l, xp_stream *stream) {
    results *r = &job->results;
    xp_moe_saved saved = {
        .scores = l->scores, .topk_idx = l->topk_idx, .topk_weight = l->topk_weight};
    const xp_moe_weights weights = {.gate = l->gate,
                                    .w13 = l->w13,
                                    .w2 = l->w2,
                                    .d_gate = r->d_gate,
                                    .d_w13 = r->d_w13,
                                    .d_w2 = r->d_w2,
                                    .bias = job->setting->bias};
    const int64_t n = job->setting->n_tokens[job->rank];
    const xp_moe_pass pass = {.n_tokens = n,
                              .seq_len = 1,
                              .weights = &weights,
                              .saved = &saved,
                              .x = n > 0 ? l->x : NULL,
                              .out = r->out,
                              .d_out = l->d_out,
                              .dx = r->dx,
                              .loss_scale = 1,
                              .defer = true};
    xp_test_must(xp_moe_core_layer_create(core, &saved));
    for (int i = 0; i < N_STEPS; i++) {
        xp_moe_core_begin(core);
        xp_test_must(xp_moe_core_forward(core, &pass, stream));
        if (job->setting->inference)
            continue;
        xp_test_must(xp_moe_core_backward(core, &pass, stream));
        xp_test_must(xp_moe_core_backward_end(core, stream));
    }
    xp_test_must(xp_stream_sync(stream));
    xp_moe_core_layer_destroy(&saved);
}

static void *rank_main(void *arg) {
    rank_job *job = arg;
    const setting *s = job->setting;
    const xp_device_args device_args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_stream *stream;
    xp_comm *comm;
    xp_moe_core *core;
    layer *l = calloc(1, sizeof *l);
    xp_test_must(xp_thread_world_comm(job->world, job->rank, &comm));
    xp_test_must(xp_device_create(&device_args, &device));
    xp_test_must(xp_stream_create(device, XP_STREAM_COMPUTE, &stream));
    const xp_moe_core_args args = {
        .max_tokens = T,
        .dim = D,
        .moe_dim = F,
        .n_experts = E,
        .top_k = K,
        .n_layers = 1,
        .route_norm = true,
        .route_scale = 1,
        .dtype = XP_F32,
        .grad_dtype = XP_F32,
        .inference = s->inference,
        .save_gate_up = s->saves,
        .save_recv = s->saves,
        .overlap = job->overlap,
        .ep = {.transport = s->transport, .capacity_factor = s->capacity_factor},
        .comm = comm,
        .n_ranks = job->n_ranks,
        .device = device};
    xp_test_must(xp_moe_core_create(&args, &core));
    xp_ops ops = *core->ops;
    ops.grouped_forward = forward_row_by_row;
    core->ops = &ops;
    fill(l->x, T * D, job->rank);
    fill(l->d_out, T * D, 10 + job->rank);
    fill(l->gate, E * D, 20);
    fill(l->w13, E * 2 * F * D, 21 + job->rank);
    fill(l->w2, E * D * F, 31 + job->rank);
    run_steps(core, job, l, stream);
    xp_moe_core_destroy(core);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    xp_comm_destroy(comm);
    free(l);
    return NULL;
}

static void run_ranks(int n_ranks, const setting *s, xp_overlap overlap, rank_job *jobs) {
    xp_thread_world *world = NULL;
    pthread_t threads[MAX_RANKS];
    xp_test_must(xp_thread_world_create(n_ranks, 20.0, &world));
    for (int r = 0; r < n_ranks; r++) {
        jobs[r] = (rank_job){
            .world = world, .rank = r, .n_ranks = n_ranks, .setting = s, .overlap = overlap};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &jobs[r]), 0);
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(threads[r], NULL);
    xp_thread_world_destroy(world);
}

static void same_bits(int n_ranks, const setting *s) {
    static rank_job plain[MAX_RANKS], beside[MAX_RANKS];
    run_ranks(n_ranks, s, XP_OVERLAP_NONE, plain);
    run_ranks(n_ranks, s, XP_OVERLAP_GEMMS, beside);
    for (int r = 0; r < n_ranks; r++) {
        assert_memory_equal(&plain[r].results, &beside[r].results, sizeof plain[r].results);
        assert_true(s->n_tokens[r] == 0 || plain[r].results.out[0] != 0);
    }
}

static void test_same_bits(void **state) {
    (void)state;
    /* As the scores say; all to the first rank's experts; all to the last one's. */
    static const float biases[3][E] = {{0}, {50, 50, 0}, {0, 0, 0, 0, 50, 50}};
    static const int64_t tokens[4][MAX_RANKS] = {{T, T, T}, {T, 0, 5}, {0, T, 1}, {0, 0, 0}};
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks++)
        for (int i = 0; i < 3 * 4 * 8; i++) {
            setting s = {.bias = biases[i % 3],
                         .capacity_factor = i / 12 % 2 ? 0.3 : 8.0, /* several rounds, one */
                         .transport = i / 24 % 2 ? XP_EP_A2A : XP_EP_P2P,
                         .saves = i / 48 % 2 != 0};
            memcpy(s.n_tokens, tokens[i / 3 % 4], sizeof s.n_tokens);
            same_bits(n_ranks, &s);
            s.inference = true;
            same_bits(n_ranks, &s);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
