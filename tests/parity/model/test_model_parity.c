/*
 * The model against an independent PyTorch implementation in float64 (make_model_fixture.py): loss,
 * auxiliary and z-loss, logits, and the gradient of every parameter, in every recompute mode.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/safetensors.h"
#include "harness.h"

/* Both sides round differently: fp32 here, float64 there. */
#define LOSS_TOLERANCE  1e-6 /* relative */
#define LOGIT_TOLERANCE 1e-4 /* absolute */
#define GRAD_TOLERANCE  1e-4 /* relative, in norm, per tensor */

typedef struct parity_case {
    const char *name;
    int n_heads, n_kv_heads, head_dim, top_k;
    int64_t hidden_dim; /* 0: MoE */
    xp_score_func score;
    bool tied, raw_weights, bias, documents;
    double scale, aux, z;
    int64_t rows, seq;
} parity_case;

static const parity_case cases[] = {
    {.name = "dense", .n_heads = 4, .n_kv_heads = 2, .head_dim = 4, .hidden_dim = 18},
    {.name = "dense_tied_documents", .hidden_dim = 9, .tied = true, .documents = true},
    {.name = "moe"},
    {.name = "moe_bias", .bias = true, .top_k = 3},
    {.name = "moe_sigmoid", .score = XP_SCORE_SIGMOID, .scale = 2.5, .bias = true},
    {.name = "moe_sigmoid_raw",
     .score = XP_SCORE_SIGMOID,
     .raw_weights = true,
     .n_heads = 2,
     .n_kv_heads = 2,
     .head_dim = 8,
     .documents = true},
    {.name = "moe_losses", .aux = 0.3, .z = 0.05, .raw_weights = true},
    {.name = "moe_sigmoid_losses",
     .score = XP_SCORE_SIGMOID,
     .aux = 0.2,
     .z = 0.1,
     .tied = true,
     .rows = 3,
     .seq = 5},
};

static xp_arch arch_of(const parity_case *c) {
    xp_arch arch = c->hidden_dim > 0 ? xp_test_dense_arch() : xp_test_moe_arch();
    if (c->n_heads > 0) {
        arch.n_heads = c->n_heads;
        arch.n_kv_heads = c->n_kv_heads;
        arch.head_dim = c->head_dim;
    }
    arch.hidden_dim = c->hidden_dim;
    arch.tie_embeddings = c->tied;
    if (c->hidden_dim > 0)
        return arch;
    arch.n_experts = 5;
    arch.top_k = c->top_k > 0 ? c->top_k : 2;
    arch.score_func = c->score;
    arch.route_norm = !c->raw_weights;
    arch.route_scale = c->scale > 0.0 ? c->scale : 1.0;
    return arch;
}

static xp_model_args args_of(const parity_case *c, const xp_arch *arch) {
    xp_model_args args = xp_test_args(arch);
    args.n_rows = c->rows > 0 ? c->rows : 2;
    args.seq_len = c->seq > 0 ? c->seq : 7;
    args.document_attention = c->documents;
    args.aux_loss_coeff = c->aux;
    args.z_loss_coeff = c->z;
    return args;
}

static void set_bias(const parity_case *c, xp_test_model *t) {
    float *bias = xp_model_expert_bias(t->model);
    for (int64_t i = 0; c->bias && i < t->arch.n_layers * t->arch.n_experts; i++)
        bias[i] = xp_test_uniform("bias", i) * 0.5F;
}

static xp_st_file *open_fixture(const parity_case *c) {
    char path[512];
    snprintf(path, sizeof(path), "%s/tests/parity/model/fixtures/%s.safetensors", XP_SOURCE_DIR,
             c->name);
    xp_st_file *file = NULL;
    xp_test_must(xp_st_open(path, &file));
    return file;
}

static float *read_tensor(const xp_st_file *file, const char *name, int64_t n) {
    const xp_st_tensor *tensor = xp_st_find(file, name);
    if (!tensor || tensor->n_elements != n)
        fail_msg("fixture has no %s of %lld elements", name, (long long)n);
    float *values = malloc((size_t)n * sizeof(float));
    assert_non_null(values);
    xp_test_must(xp_st_read_f32(tensor, 0, n, values));
    return values;
}

static void check_scalar(const xp_st_file *file, const char *name, double value, double tolerance) {
    float *expected = read_tensor(file, name, 1);
    if (fabs(value - (double)expected[0]) > tolerance * fmax(fabs((double)expected[0]), 1e-30))
        fail_msg("%s: %.9g, recorded %.9g", name, value, (double)expected[0]);
    free(expected);
}

static void check_grads(const xp_st_file *file, const xp_test_model *t) {
    const xp_param_table *table = xp_model_params(t->model);
    const float *grads = xp_model_grad_data(t->model);
    for (int i = 0; i < xp_param_table_n_params(table); i++) {
        for (int s = 0; s < xp_param_table_param(table, i)->n_slices; s++) {
            xp_param_slice slice;
            char name[160];
            xp_param_table_slice(table, i, s, &slice);
            snprintf(name, sizeof(name), "grad.%s", slice.hf_name);
            float *expected = read_tensor(file, name, slice.n_elements);
            double distance = xp_test_distance(grads + slice.offset, expected, slice.n_elements);
            if (!(distance <= GRAD_TOLERANCE))
                fail_msg("%s: off by %.3g of its norm", name, distance);
            free(expected);
        }
    }
}

static void check_training(const parity_case *c, xp_recompute recompute, int n_threads) {
    xp_arch arch = arch_of(c);
    xp_model_args args = args_of(c, &arch);
    args.recompute = recompute;
    xp_test_model t;
    xp_test_model_create(args, n_threads, &t);
    set_bias(c, &t);
    xp_st_file *file = open_fixture(c);
    xp_model_loss loss = xp_test_step(&t);
    check_scalar(file, "loss", loss.loss_sum / (double)loss.n_valid, LOSS_TOLERANCE);
    check_scalar(file, "aux", loss.aux_loss, LOSS_TOLERANCE);
    check_scalar(file, "z", loss.z_loss, LOSS_TOLERANCE);
    check_grads(file, &t);
    xp_st_close(file);
    xp_test_model_destroy(&t);
}

static void test_training(void **state) {
    const parity_case *c = *state;
    check_training(c, XP_RECOMPUTE_NONE, 1);
    check_training(c, XP_RECOMPUTE_SELECTIVE, 1);
    check_training(c, XP_RECOMPUTE_FULL, 2);
}

static void test_logits(void **state) {
    const parity_case *c = *state;
    xp_arch arch = arch_of(c);
    xp_model_args args = args_of(c, &arch);
    args.inference = args.keep_logits = true;
    xp_test_model t;
    xp_test_model_create(args, 1, &t);
    set_bias(c, &t);
    t.batch.want_logits = true;
    xp_st_file *file = open_fixture(c);
    const int64_t n = t.n_tokens * arch.vocab_size;
    float *expected = read_tensor(file, "logits", n);
    xp_model_loss loss;
    xp_test_must(xp_model_forward(t.model, &t.batch, t.stream));
    xp_test_must(xp_model_read_loss(t.model, t.stream, &loss));
    check_scalar(file, "loss", loss.loss_sum / (double)loss.n_valid, LOSS_TOLERANCE);
    const float *logits = xp_model_logits(t.model);
    for (int64_t i = 0; i < n; i++)
        assert_float_equal(logits[i], expected[i], LOGIT_TOLERANCE);
    free(expected);
    xp_st_close(file);
    xp_test_model_destroy(&t);
}

int main(void) {
    enum { N_CASES = sizeof(cases) / sizeof(cases[0]) };
    struct CMUnitTest tests[2 * N_CASES];
    for (int i = 0; i < N_CASES; i++) {
        void *state = (void *)(uintptr_t)&cases[i];
        tests[2 * i] = (struct CMUnitTest){cases[i].name, test_training, NULL, NULL, state};
        tests[2 * i + 1] = (struct CMUnitTest){cases[i].name, test_logits, NULL, NULL, state};
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
