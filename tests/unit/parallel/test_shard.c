/*
 * The sharded optimizer against one rank that does everything: the same bits for any number of
 * ranks, replicas, EP degree and bucket size. Gradients are small multiples of 1/16, so that sums
 * are exact in any order.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/remainder.h"
#include "core/rng.h"
#include "parallel/shard.h"

#define MAX_RANKS      8
#define N_STEPS        3
#define N_TOKENS_RANKS 8 /* gradients are made of 8 parts, dealt to the ranks */

static xp_arch small_arch(void) {
    /* Sizes that do not divide: every group has padding at some rank count. */
    return (xp_arch){.flavor = "test",
                     .dim = 24,
                     .n_layers = 2,
                     .vocab_size = 50,
                     .n_heads = 2,
                     .n_kv_heads = 1,
                     .head_dim = 12,
                     .n_experts = 4,
                     .top_k = 2,
                     .moe_dim = 10,
                     .rope_theta = 1e4,
                     .norm_eps = 1e-6,
                     .qk_norm = true,
                     .route_scale = 1};
}

typedef struct layout {
    int n_ranks, replicate, ep;
    int64_t bucket_bytes;
    int nan_rank; /* this rank's first expert gradient is NaN; -1 = none */
    float decay;  /* 0: 0.1; below: none */
    bool matrices_only;
    bool bf16;    /* parameters; else fp32 */
    bool rounded; /* fp32 parameters start as those of a bf16 run do */
} layout;

/* What a rank leaves behind: parameters by Hugging Face tensor, in the order of the full model. */
typedef struct outcome {
    xp_status status;
    char error[256];
    double norms[N_STEPS];
    float *params;  /* [n] of the full model's flat buffer */
    float *masters; /* [n] likewise: this rank's chunks, bf16 only */
    int64_t optimizer_bytes;
    bool same_params; /* the last update changed nothing */
} outcome;

typedef struct rank_args {
    const layout *l;
    xp_thread_world *world;
    int rank;
    outcome *out;
} rank_args;

/* Part `part` of the gradient of one element of a tensor. */
static float gradient_part(const char *hf_name, int64_t i, int step, int part) {
    uint64_t stream = xp_rng_stream(hf_name);
    uint64_t index = (uint64_t)(i * N_STEPS + step) * N_TOKENS_RANKS + (uint64_t)part;
    return ((float)xp_rng_below(7, stream, index, 33) - 16) / 16;
}

/* The parts that reach rank `rank`: its own data's, and for experts those of its whole EP group. */
static bool takes_part(const xp_mesh *mesh, bool is_expert, int part) {
    int owner = part % mesh->n_ranks;
    if (!is_expert)
        return owner == mesh->rank;
    return owner / mesh->ep_size == mesh->rank / mesh->ep_size;
}

static void fill_gradients(const xp_param_table *table, const xp_mesh *mesh, int step,
                           float *grads) {
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        const xp_param *param = xp_param_table_param(table, p);
        bool is_expert = xp_param_table_group(table, param->group)->is_expert;
        for (int s = 0; s < param->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, s, &slice);
            for (int64_t i = 0; i < slice.n_elements; i++) {
                float sum = 0;
                for (int part = 0; part < N_TOKENS_RANKS; part++)
                    if (takes_part(mesh, is_expert, part))
                        sum += gradient_part(slice.hf_name, i, step, part);
                grads[slice.offset + i] = sum;
            }
        }
    }
}

static void poison(const xp_param_table *table, float *grads) {
    int p = xp_param_table_find(table, "layers.1.experts.w2");
    assert_true(p >= 0);
    grads[xp_param_table_param(table, p)->offset + 5] = NAN;
}

/* As a trainer does it: the update is queued before anybody looks at the norm. */
static xp_status update(const layout *l, xp_shard *shard, int step, double *norm,
                        xp_stream *stream) {
    XP_TRY(xp_shard_queue_norm(shard, stream));
    xp_adam_step args = {.lr = 0.01F,
                         .beta1 = 0.9F,
                         .beta2 = 0.95F,
                         .eps = 1e-8F,
                         .weight_decay = l->decay == 0 ? 0.1F : fmaxf(l->decay, 0),
                         .decay_matrices_only = l->matrices_only,
                         .step = step + 1,
                         .max_norm = 3};
    XP_TRY(xp_shard_update(shard, &args, stream));
    XP_TRY(xp_stream_sync(stream));
    return xp_shard_read_norm(shard, stream, norm);
}

static xp_status run_steps(const rank_args *a, const xp_mesh *mesh, const xp_param_table *table,
                           xp_shard *shard, void *params, float *grads, xp_stream *stream) {
    const size_t n_bytes =
        (size_t)xp_param_table_n_elements(table) * xp_dtype_bytes(a->l->bf16 ? XP_BF16 : XP_F32);
    void *before = malloc(n_bytes);
    xp_status status = xp_shard_adopt_params(shard, stream);
    for (int step = 0; step < N_STEPS && status == XP_OK; step++) {
        fill_gradients(table, mesh, step, grads);
        if (a->l->nan_rank == a->rank && step == 1)
            poison(table, grads);
        for (int g = xp_param_table_n_groups(table) - 1; g >= 0; g--)
            XP_TRY(xp_shard_group_ready(shard, g, stream));
        XP_TRY(xp_shard_finish_reduce(shard, stream));
        memcpy(before, params, n_bytes);
        status = update(a->l, shard, step, &a->out->norms[step], stream);
        a->out->same_params = memcmp(before, params, n_bytes) == 0;
    }
    free(before);
    return status;
}

/* This rank's tensors into the full model's buffer (each expert comes from one rank only). */
static void hand_in(const xp_param_table *table, const float *params, const xp_arch *arch,
                    float *full) {
    xp_param_table *whole = NULL;
    assert_int_equal(xp_param_table_create(arch, 0, 1, &whole), XP_OK);
    for (int p = 0; p < xp_param_table_n_params(whole); p++) {
        for (int s = 0; s < xp_param_table_param(whole, p)->n_slices; s++) {
            xp_param_slice to;
            xp_param_table_slice(whole, p, s, &to);
            for (int q = 0; q < xp_param_table_n_params(table); q++) {
                for (int r = 0; r < xp_param_table_param(table, q)->n_slices; r++) {
                    xp_param_slice from;
                    xp_param_table_slice(table, q, r, &from);
                    if (strcmp(from.hf_name, to.hf_name) == 0)
                        memcpy(full + to.offset, params + from.offset,
                               (size_t)to.n_elements * sizeof *full);
                }
            }
        }
    }
    xp_param_table_destroy(whole);
}

/* The chunks' masters, where they are among the n flat elements. */
static void join_masters(const xp_shard *shard, const xp_param_table *table, float *masters) {
    for (int g = 0; g < xp_param_table_n_groups(table); g++) {
        const xp_shard_chunk chunk = xp_shard_get_chunk(shard, g);
        assert_non_null(chunk.remainder);
        xp_remainder_join(chunk.n, chunk.param, chunk.remainder, chunk.v, masters + chunk.first);
    }
}

static void round_params(int64_t n, float *params, uint16_t *rounded) {
    for (int64_t i = 0; i < n; i++) {
        rounded[i] = xp_bf16_from_f32(params[i]);
        params[i] = xp_bf16_to_f32(rounded[i]);
    }
}

static void hand_in_all(const rank_args *a, const xp_param_table *table, const xp_shard *shard,
                        float *params, const uint16_t *rounded) {
    const xp_arch arch = small_arch();
    const int64_t n = xp_param_table_n_elements(table);
    if (a->l->bf16) {
        float *masters = calloc((size_t)n, sizeof *masters);
        join_masters(shard, table, masters);
        hand_in(table, masters, &arch, a->out->masters);
        free(masters);
        for (int64_t i = 0; i < n; i++)
            params[i] = xp_bf16_to_f32(rounded[i]);
    }
    hand_in(table, params, &arch, a->out->params);
}

static xp_status with_mesh(const rank_args *a, const xp_mesh *mesh) {
    const xp_arch arch = small_arch();
    xp_device_args device_args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    xp_param_table *table = NULL;
    xp_shard *shard = NULL;
    XP_TRY(xp_device_create(&device_args, &device));
    XP_TRY(xp_stream_create(device, XP_STREAM_COMPUTE, &stream));
    XP_TRY(xp_param_table_create(&arch, mesh->ep_rank, mesh->ep_size, &table));
    int64_t n = xp_param_table_n_elements(table);
    float *params = calloc((size_t)n, sizeof *params);
    float *grads = calloc((size_t)n, sizeof *grads);
    uint16_t *rounded = calloc((size_t)n, sizeof *rounded);
    void *const trained = a->l->bf16 ? (void *)rounded : params;
    XP_TRY(xp_param_table_draw(table, 3, 0, n, stream, params));
    XP_TRY(xp_stream_sync(stream));
    if (a->l->bf16 || a->l->rounded)
        round_params(n, params, rounded);
    xp_shard_args args = {.table = table,
                          .mesh = mesh,
                          .device = device,
                          .params = trained,
                          .grads = grads,
                          .param_dtype = a->l->bf16 ? XP_BF16 : XP_F32,
                          .grad_dtype = XP_F32,
                          .bucket_bytes = a->l->bucket_bytes};
    xp_status status = xp_shard_create(&args, &shard);
    if (status == XP_OK)
        status = run_steps(a, mesh, table, shard, trained, grads, stream);
    if (status != XP_OK)
        snprintf(a->out->error, sizeof a->out->error, "%s", xp_last_error());
    a->out->optimizer_bytes = xp_device_bytes(device, "optimizer");
    if (status == XP_OK)
        hand_in_all(a, table, shard, params, rounded);
    xp_shard_destroy(shard);
    xp_param_table_destroy(table);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    free(params);
    free(rounded);
    free(grads);
    return status;
}

static void *rank_main(void *context) {
    rank_args *a = context;
    xp_config config;
    memset(&config, 0, sizeof config);
    config.parallelism.data_parallel_replicate_degree = a->l->replicate;
    config.parallelism.data_parallel_shard_degree = -1;
    config.parallelism.expert_parallel_degree = a->l->ep;
    xp_comm *comm = NULL;
    xp_mesh mesh;
    a->out->status = a->world ? xp_thread_world_comm(a->world, a->rank, &comm) : XP_OK;
    if (a->out->status == XP_OK)
        a->out->status = xp_mesh_create(comm, &config, &mesh);
    if (a->out->status == XP_OK) {
        a->out->status = with_mesh(a, &mesh);
        if (a->out->status != XP_OK && comm)
            xp_comm_abort(comm, a->out->error);
        xp_mesh_destroy(&mesh);
    }
    xp_comm_destroy(comm);
    return NULL;
}

static int64_t full_elements(void) {
    xp_arch arch = small_arch();
    xp_param_table *table = NULL;
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &table), XP_OK);
    int64_t n = xp_param_table_n_elements(table);
    xp_param_table_destroy(table);
    return n;
}

/* Runs all ranks; out[r].params are zero where rank r has no such expert. */
static void run(const layout *l, outcome *out) {
    xp_thread_world *world = NULL;
    pthread_t threads[MAX_RANKS];
    rank_args args[MAX_RANKS];
    if (l->n_ranks > 1)
        assert_int_equal(xp_thread_world_create(l->n_ranks, 60, &world), XP_OK);
    for (int r = 0; r < l->n_ranks; r++) {
        memset(&out[r], 0, sizeof out[r]);
        out[r].params = calloc((size_t)full_elements(), sizeof(float));
        out[r].masters = calloc((size_t)full_elements(), sizeof(float));
        args[r] = (rank_args){.l = l, .world = world, .rank = r, .out = &out[r]};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
    }
    for (int r = 0; r < l->n_ranks; r++)
        pthread_join(threads[r], NULL);
    xp_thread_world_destroy(world);
}

static void drop(outcome *out, int n) {
    for (int r = 0; r < n; r++) {
        free(out[r].params);
        free(out[r].masters);
    }
}

/* Every rank's tensors equal the reference's bits; what it does not hold is zero. */
static void assert_same(const outcome *out, const outcome *reference, int64_t n, int ep) {
    int64_t n_equal = 0;
    int64_t n_held = 0;
    for (int64_t i = 0; i < n; i++) {
        bool held = out->params[i] != 0;
        n_held += held;
        n_equal += held && memcmp(&out->params[i], &reference->params[i], sizeof(float)) == 0;
    }
    assert_int_equal(n_equal, n_held);
    assert_true(n_held > n / (2 * ep));
}

static void same_bits(void **state) {
    (void)state;
    static const layout layouts[] = {
        {2, 1, 1, 1 << 20, -1, 0, false, false, false},
        {2, 1, 2, 1 << 20, -1, 0, false, false, false},
        {4, 1, 1, 1 << 20, -1, 0, false, false, false},
        {4, 1, 2, 2048, -1, 0, false, false, false},
        {4, 1, 4, 1024, -1, 0, false, false, false},
        {4, 2, 1, 1 << 20, -1, 0, false, false, false},
        {4, 2, 2, 512, -1, 0, false, false, false},
        {3, 1, 1, 4096, -1, 0, false, false, false},
        {8, 2, 4, 1 << 14, -1, 0, false, false, false},
        {4, 4, 1, 1 << 20, -1, 0, false, false, false},
        {2, 1, 1, 0, -1, 0, false, false, false},
    };
    int64_t n = full_elements();
    layout one = {1, 1, 1, 1 << 20, -1, 0, false, false, false};
    outcome reference[1];
    run(&one, reference);
    assert_int_equal(reference[0].status, XP_OK);
    assert_true(reference[0].norms[0] > 3); /* clipped */
    assert_false(reference[0].same_params);
    for (size_t k = 0; k < sizeof layouts / sizeof layouts[0]; k++) {
        outcome out[MAX_RANKS];
        run(&layouts[k], out);
        for (int r = 0; r < layouts[k].n_ranks; r++) {
            if (out[r].status != XP_OK)
                fail_msg("layout %zu, rank %d: %s", k, r, out[r].error);
            for (int s = 0; s < N_STEPS; s++)
                assert_true(out[r].norms[s] == reference[0].norms[s]);
            assert_same(&out[r], &reference[0], n, layouts[k].ep);
        }
        drop(out, layouts[k].n_ranks);
    }
    drop(reference, 1);
}

/* bf16 parameters are the rounded fp32 run, and their masters that run itself, bit for bit; on one chunk of
 * the masters or another every element is found. */
static void masters_of_bf16_are_exact(void **state) {
    (void)state;
    static const layout layouts[] = {
        {.n_ranks = 1, .replicate = 1, .ep = 1, .bucket_bytes = 1 << 20, .nan_rank = -1},
        {.n_ranks = 2, .replicate = 1, .ep = 2, .bucket_bytes = 512, .nan_rank = -1},
        {.n_ranks = 3, .replicate = 1, .ep = 1, .bucket_bytes = 4096, .nan_rank = -1},
        {.n_ranks = 4, .replicate = 2, .ep = 2, .bucket_bytes = 1 << 20, .nan_rank = -1},
        {.n_ranks = 8, .replicate = 1, .ep = 4, .bucket_bytes = 0, .nan_rank = -1},
    };
    const layout one = {.n_ranks = 1,
                        .replicate = 1,
                        .ep = 1,
                        .bucket_bytes = 1 << 20,
                        .nan_rank = -1,
                        .rounded = true};
    const int64_t n = full_elements();
    outcome reference[1];
    run(&one, reference);
    assert_int_equal(reference[0].status, XP_OK);
    for (size_t k = 0; k < sizeof layouts / sizeof layouts[0]; k++) {
        layout l = layouts[k];
        outcome out[MAX_RANKS];
        l.bf16 = true;
        run(&l, out);
        for (int64_t i = 0; i < n; i++) {
            const float *expected = &reference[0].params[i];
            bool found = *expected == 0;
            for (int r = 0; r < l.n_ranks; r++) {
                const float *param = &out[r].params[i], *master = &out[r].masters[i];
                assert_true(*param == 0 || *param == xp_bf16_to_f32(xp_bf16_from_f32(*expected)));
                assert_true(*master == 0 || memcmp(master, expected, sizeof *master) == 0);
                found |= *master != 0;
            }
            assert_true(found);
        }
        drop(out, l.n_ranks);
    }
    drop(reference, 1);
}

/* Norms as without decay, matrices as with it, on any layout. */
static void norms_stay_out_of_decay(void **state) {
    (void)state;
    static const layout layouts[] = {{1, 1, 1, 1 << 20, -1, 0.3F, true, false, false},
                                     {2, 1, 2, 512, -1, 0.3F, true, false, false},
                                     {4, 1, 1, 0, -1, 0.3F, true, false, false},
                                     {3, 1, 1, 1024, -1, 0.3F, true, false, false}};
    const layout with = {1, 1, 1, 1 << 20, -1, 0.3F, false, false, false},
                 without = {1, 1, 1, 1 << 20, -1, -1, false, false, false};
    xp_arch arch = small_arch();
    xp_param_table *table = NULL;
    outcome decayed, plain, out[MAX_RANKS];
    run(&with, &decayed);
    run(&without, &plain);
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &table), XP_OK);
    for (size_t k = 0; k < sizeof layouts / sizeof layouts[0]; k++) {
        int n_vectors = 0;
        run(&layouts[k], out);
        for (int p = 0; p < xp_param_table_n_params(table); p++) {
            const xp_param *param = xp_param_table_param(table, p);
            const outcome *expected = param->n_dims > 1 ? &decayed : &plain;
            size_t n_bytes = (size_t)param->n_elements * sizeof(float);
            n_vectors += param->n_dims == 1;
            assert_memory_not_equal(decayed.params + param->offset, plain.params + param->offset,
                                    n_bytes);
            for (int64_t i = param->offset; i < param->offset + param->n_elements; i++)
                if (out[0].params[i] != 0) /* another rank's expert */
                    assert_memory_equal(&out[0].params[i], &expected->params[i], sizeof(float));
        }
        assert_true(n_vectors > 4);
        drop(out, layouts[k].n_ranks);
    }
    xp_param_table_destroy(table);
    drop(&decayed, 1);
    drop(&plain, 1);
}

static void memory_falls(void **state) {
    (void)state;
    layout one = {1, 1, 1, 1 << 20, -1, 0, false, false, false};
    outcome base[1];
    run(&one, base);
    for (int n = 2; n <= MAX_RANKS; n *= 2) {
        layout l = {n, 1, 1, 1 << 20, -1, 0, false, false, false};
        outcome out[MAX_RANKS];
        run(&l, out);
        /* Each of the 6 groups may be rounded up by 64 elements, in two arrays of floats. */
        int64_t slack = 6 * XP_GROUP_ALIGN * 2 * (int64_t)sizeof(float) + 512;
        assert_in_range(out[0].optimizer_bytes, base[0].optimizer_bytes / n - slack,
                        base[0].optimizer_bytes / n + slack);
        drop(out, n);
    }
    drop(base, 1);
}

static void names_bad_gradient(void **state) {
    (void)state;
    layout l = {4, 1, 2, 1 << 20, 2, 0, false, false, false};
    outcome out[MAX_RANKS];
    run(&l, out);
    for (int r = 0; r < l.n_ranks; r++) {
        assert_int_equal(out[r].status, XP_ENUMERIC);
        assert_true(out[r].same_params);
        if (!strstr(out[r].error, "layers.1.experts.w2"))
            fail_msg("rank %d: \"%s\" does not name the tensor", r, out[r].error);
    }
    drop(out, l.n_ranks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits),
        cmocka_unit_test(masters_of_bf16_are_exact),
        cmocka_unit_test(norms_stay_out_of_decay),
        cmocka_unit_test(memory_falls),
        cmocka_unit_test(names_bad_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
