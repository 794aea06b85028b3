#include "harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void xp_test_must(xp_status status) {
    if (status != XP_OK)
        fail_msg("%s: %s", xp_status_name(status), xp_last_error());
}

xp_arch xp_test_moe_arch(void) {
    return (xp_arch){.flavor = "custom",
                     .dim = 20,
                     .n_layers = 2,
                     .vocab_size = 23,
                     .n_heads = 3,
                     .n_kv_heads = 1,
                     .head_dim = 6,
                     .n_experts = 6,
                     .top_k = 2,
                     .moe_dim = 7,
                     .rope_theta = 10000.0,
                     .norm_eps = 1e-6,
                     .qk_norm = true,
                     .score_func = XP_SCORE_SOFTMAX,
                     .route_norm = true,
                     .route_scale = 1.0};
}

xp_arch xp_test_dense_arch(void) {
    xp_arch arch = xp_test_moe_arch();
    arch.n_experts = arch.top_k = 0;
    arch.moe_dim = 0;
    arch.hidden_dim = 18;
    return arch;
}

xp_model_args xp_test_args(const xp_arch *arch) {
    return (xp_model_args){.arch = arch,
                           .n_rows = 2,
                           .seq_len = 7,
                           .dtype = XP_F32,
                           .grad_dtype = XP_F32,
                           .overlap_split = 0.5,
                           .ep = {.capacity_factor = 2.0}};
}

float xp_test_uniform(const char *name, int64_t i) {
    uint32_t h = 2166136261U;
    for (const char *c = name; *c; c++)
        h = (h ^ (uint8_t)*c) * 16777619U;
    uint32_t x = h + (uint32_t)((uint64_t)i * 2654435761U);
    x ^= x >> 15;
    x *= 2246822519U;
    x ^= x >> 13;
    return (float)((double)(x >> 8) / 16777216.0 - 0.5);
}

static void fill_params(xp_test_model *t, xp_dtype dtype) {
    const xp_param_table *table = xp_model_params(t->model);
    float *params = xp_model_param_data(t->model);
    uint16_t *narrow = xp_model_param_data(t->model);
    for (int i = 0; i < xp_param_table_n_params(table); i++) {
        const xp_param *param = xp_param_table_param(table, i);
        for (int s = 0; s < param->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            for (int64_t j = 0; j < slice.n_elements; j++) {
                float u = xp_test_uniform(slice.hf_name, j);
                float value = slice.n_dims == 1 ? 1.0F + u * 0.25F : u * 0.5F;
                if (dtype == XP_F32)
                    params[slice.offset + j] = value;
                else
                    narrow[slice.offset + j] = xp_bf16_from_f32(value);
            }
        }
    }
}

static int32_t *ids(int64_t n, const char *name, int64_t vocab) {
    int32_t *values = calloc((size_t)n, sizeof(*values));
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++)
        values[i] = (int32_t)(((double)xp_test_uniform(name, i) + 0.5) * (double)vocab);
    return values;
}

/* As make_batch() of make_model_fixture.py: every fourth target masked, a second document from
 * token 2 + r of row r. */
static void make_batch(xp_test_model *t, const xp_model_args *args) {
    int64_t n = args->n_rows * args->seq_len;
    t->n_tokens = n;
    t->tokens = ids(n, "tokens", t->arch.vocab_size);
    t->targets = ids(n, "targets", t->arch.vocab_size);
    t->positions = ids(n, "", 0);
    t->doc_start = ids(n, "", 0);
    int64_t n_valid = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = i / args->seq_len, at = i % args->seq_len;
        if (i % 4 == 0)
            t->targets[i] = -1;
        n_valid += t->targets[i] >= 0;
        t->doc_start[i] = args->document_attention && at >= 2 + row ? (int32_t)(2 + row) : 0;
        t->positions[i] = (int32_t)at - t->doc_start[i];
    }
    t->batch = (xp_model_batch){.n_rows = args->n_rows,
                                .seq_len = args->seq_len,
                                .tokens = t->tokens,
                                .targets = t->targets,
                                .positions = t->positions,
                                .doc_start = t->doc_start,
                                .loss_scale = 1.0F / (float)n_valid};
}

void xp_test_model_create(xp_model_args args, int n_threads, xp_test_model *t) {
    const xp_device_args device = {.kind = XP_DEVICE_CPU, .n_threads = n_threads};
    xp_test_model_create_on(&device, args, t);
}

void xp_test_model_create_on(const xp_device_args *device, xp_model_args args, xp_test_model *t) {
    *t = (xp_test_model){.arch = *args.arch};
    xp_test_must(xp_device_create(device, &t->device));
    xp_test_must(xp_stream_create(t->device, XP_STREAM_COMPUTE, &t->stream));
    args.device = t->device;
    xp_test_must(xp_model_create(&args, &t->model));
    fill_params(t, args.dtype);
    make_batch(t, &args);
}

void xp_test_model_destroy(xp_test_model *t) {
    xp_model_destroy(t->model);
    xp_stream_destroy(t->stream);
    xp_device_destroy(t->device);
    free(t->tokens);
    free(t->targets);
    free(t->positions);
    free(t->doc_start);
}

xp_model_loss xp_test_step(xp_test_model *t) {
    xp_model_loss loss;
    xp_test_must(xp_model_forward_backward(t->model, &t->batch, NULL, t->stream));
    xp_test_must(xp_model_read_loss(t->model, t->stream, &loss));
    return loss;
}

float *xp_test_grads(const xp_test_model *t) {
    size_t n_bytes = (size_t)xp_param_table_n_elements(xp_model_params(t->model)) * sizeof(float);
    float *copy = malloc(n_bytes);
    assert_non_null(copy);
    memcpy(copy, xp_model_grad_data(t->model), n_bytes);
    return copy;
}

double xp_test_distance(const float *a, const float *b, int64_t n) {
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        difference += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
}
