/* What must hold of the model whatever the weights: recomputation, counting, hooks, accumulation,
 * the decoder, memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device/cpu/test_protect.h"
#include "harness.h"

static int64_t n_grads(const xp_test_model *t) {
    return xp_param_table_n_elements(xp_model_params(t->model));
}

static const xp_param *param_of(const xp_test_model *t, const char *name) {
    const xp_param_table *table = xp_model_params(t->model);
    int i = xp_param_table_find(table, name);
    assert_true(i >= 0);
    return xp_param_table_param(table, i);
}

static double norm_of(const xp_test_model *t, const float *grads, const char *name) {
    const xp_param *param = param_of(t, name);
    double sum = 0.0;
    for (int64_t i = 0; i < param->n_elements; i++)
        sum += (double)grads[param->offset + i] * (double)grads[param->offset + i];
    return sqrt(sum);
}

/* The same gradients, bit for bit, whatever is recomputed, and however many threads. */
static void check_recompute(const xp_arch *arch) {
    float *first = NULL;
    for (int mode = 0; mode < 4; mode++) {
        xp_model_args args = xp_test_args(arch);
        args.recompute = mode == 3 ? XP_RECOMPUTE_NONE : (xp_recompute)mode;
        args.document_attention = true;
        if (arch->n_experts > 0) {
            args.aux_loss_coeff = 0.1;
            args.z_loss_coeff = 0.01;
        }
        xp_test_model t;
        xp_test_model_create(args, mode == 3 ? 3 : 1, &t);
        xp_model_loss loss = xp_test_step(&t);
        assert_true(loss.loss_sum > 0.0);
        float *grads = xp_test_grads(&t);
        if (first) {
            assert_memory_equal(grads, first, (size_t)n_grads(&t) * sizeof(float));
            free(grads);
        } else {
            first = grads;
        }
        xp_test_model_destroy(&t);
    }
    free(first);
}

static void test_recompute_is_bit_identical(void **state) {
    (void)state;
    xp_arch moe = xp_test_moe_arch(), dense = xp_test_dense_arch();
    check_recompute(&moe);
    check_recompute(&dense);
}

/* Zero expert gradients would still train the router's weights if another path existed: there is
 * none but p. */
static void test_router_learns_through_the_weights(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    xp_test_step(&t);
    float *grads = xp_test_grads(&t);
    assert_true(norm_of(&t, grads, "layers.0.gate") > 1e-4);
    assert_true(norm_of(&t, grads, "layers.1.gate") > 1e-4);
    /* Against finite differences of the loss along that gradient. */
    const xp_param *gate = param_of(&t, "layers.1.gate");
    float *params = xp_model_param_data(t.model);
    double norm = norm_of(&t, grads, "layers.1.gate"), sums[2];
    const double step = 2e-3;
    for (int side = 0; side < 2; side++) {
        double by = (side == 0 ? step : -2.0 * step) / norm;
        for (int64_t i = 0; i < gate->n_elements; i++)
            params[gate->offset + i] += (float)(by * (double)grads[gate->offset + i]);
        xp_model_loss loss = xp_test_step(&t);
        sums[side] = loss.loss_sum / (double)loss.n_valid;
    }
    assert_true(fabs((sums[0] - sums[1]) / (2.0 * step) - norm) < 0.03 * norm);
    free(grads);
    xp_test_model_destroy(&t);
}

static void test_counts(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    for (int mode = 0; mode < 3; mode++) {
        xp_model_args args = xp_test_args(&arch);
        args.recompute = (xp_recompute)mode;
        xp_test_model t;
        xp_test_model_create(args, 1, &t);
        xp_test_must(xp_model_forward(t.model, &t.batch, t.stream));
        const int64_t *counts = xp_model_expert_counts(t.model);
        for (int step = 0; step < 3; step++) {
            for (int64_t layer = 0; layer < arch.n_layers; layer++) {
                int64_t sum = 0;
                for (int e = 0; e < arch.n_experts; e++)
                    sum += counts[layer * arch.n_experts + e];
                assert_int_equal(sum, step * t.n_tokens * arch.top_k);
            }
            xp_test_step(&t);
            xp_test_must(xp_model_forward(t.model, &t.batch, t.stream));
        }
        xp_test_model_destroy(&t);
    }
}

/* An expert that nobody selects: its gradient is exactly zero, also over what the buffer held before.
 */
static void test_idle_expert_has_zero_gradient(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    xp_model_expert_bias(t.model)[4] = -100.0F;
    float *raw = xp_model_grad_data(t.model);
    const xp_param *w13 = param_of(&t, "layers.0.experts.w13");
    const xp_param *w2 = param_of(&t, "layers.0.experts.w2");
    for (int64_t i = w13->offset; i < w2->offset + w2->n_elements; i++)
        raw[i] = NAN;
    xp_test_step(&t);
    assert_int_equal(xp_model_expert_counts(t.model)[4], 0);
    int64_t each13 = w13->n_elements / arch.n_experts, each2 = w2->n_elements / arch.n_experts;
    for (int64_t i = 0; i < each13; i++)
        assert_true(raw[w13->offset + 4 * each13 + i] == 0.0F);
    for (int64_t i = 0; i < each2; i++)
        assert_true(raw[w2->offset + 4 * each2 + i] == 0.0F);
    assert_true(norm_of(&t, raw, "layers.0.experts.w13") > 0.0);
    xp_test_model_destroy(&t);
}

static void test_accumulation(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        xp_arch arch = xp_test_moe_arch();
        arch.tie_embeddings = tied;
        xp_test_model t;
        xp_test_model_create(xp_test_args(&arch), 1, &t);
        xp_test_step(&t);
        float *once = xp_test_grads(&t);
        for (int64_t i = 0; i < n_grads(&t); i++)
            once[i] *= 2.0F;
        t.batch.accumulate = true;
        xp_test_step(&t);
        float *twice = xp_test_grads(&t);
        assert_true(xp_test_distance(twice, once, n_grads(&t)) < 1e-6);
        t.batch.accumulate = false;
        xp_test_step(&t);
        float *again = xp_test_grads(&t);
        for (int64_t i = 0; i < n_grads(&t); i++)
            once[i] *= 0.5F;
        assert_memory_equal(again, once, (size_t)n_grads(&t) * sizeof(float));
        free(once);
        free(twice);
        free(again);
        xp_test_model_destroy(&t);
    }
}

/* Microbatches with loss scales of their own. `ahead`: all are queued before the device comes to the
 * first. */
static float *queue_passes(bool ahead, int n_passes) {
    xp_arch arch = xp_test_moe_arch();
    const xp_device_args late = {
        .kind = XP_DEVICE_CPU, .n_threads = 1, .caps = "test_protect,test_defer"};
    xp_test_model t;
    xp_test_model_create_on(&late, xp_test_args(&arch), &t);
    for (int i = 0; i < n_passes; i++) {
        t.batch.accumulate = i > 0;
        t.batch.loss_scale = 1.0F / (float)(i + 1);
        xp_test_must(xp_model_forward_backward(t.model, &t.batch, NULL, t.stream));
        if (!ahead)
            xp_test_must(xp_stream_sync(t.stream));
    }
    xp_test_must(xp_stream_sync(t.stream));
    float *grads = xp_test_grads(&t);
    xp_test_model_destroy(&t);
    return grads;
}

static void test_queued_passes_keep_their_loss_scale(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    const size_t n_bytes = (size_t)n_grads(&t) * sizeof(float);
    xp_test_model_destroy(&t);
    xp_test_protect_open(); /* the harness writes parameters itself */
    for (int n_passes = 2; n_passes < 24; n_passes += 7) {
        float *one_by_one = queue_passes(false, n_passes), *ahead = queue_passes(true, n_passes);
        assert_memory_equal(ahead, one_by_one, n_bytes);
        free(one_by_one);
        free(ahead);
    }
    xp_test_protect_close();
}

/* Smaller batches than the model was made for, and chunks of the head that do not divide the rows.
 */
static void test_rows_are_independent(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    double whole = xp_test_step(&t).loss_sum, parts = 0.0;
    for (int row = 0; row < 2; row++) {
        xp_model_batch batch = t.batch;
        batch.n_rows = 1;
        batch.tokens += row * batch.seq_len;
        batch.targets += row * batch.seq_len;
        batch.positions += row * batch.seq_len;
        xp_model_loss loss;
        xp_test_must(xp_model_forward(t.model, &batch, t.stream));
        xp_test_must(xp_model_read_loss(t.model, t.stream, &loss));
        parts += loss.loss_sum;
    }
    assert_true(fabs(parts - whole) < 1e-5);
    xp_test_model_destroy(&t);
}

typedef struct calls {
    int n_groups, groups[32];
    int n_needed, needed[32];
    int n_layers, layers[32];
    int fail_at;
} calls;

static xp_status group_ready(void *context, int group) {
    calls *c = context;
    c->groups[c->n_groups++] = group;
    return c->n_groups == c->fail_at ? xp_error(XP_EINTERRUPTED, "stop") : XP_OK;
}

static xp_status group_needed(void *context, int group) {
    calls *c = context;
    assert_int_equal(c->n_groups, 0); /* backward reads what forward has read */
    c->needed[c->n_needed++] = group;
    return XP_OK;
}

static xp_status before_layer(void *context, int layer, bool backward) {
    calls *c = context;
    c->layers[c->n_layers++] = backward ? -1 - layer : layer;
    return XP_OK;
}

static void test_hooks(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    calls c = {0};
    xp_model_hooks hooks = {.context = &c,
                            .before_layer = before_layer,
                            .group_needed = group_needed,
                            .group_ready = group_ready};
    xp_test_must(xp_model_forward_backward(t.model, &t.batch, &hooks, t.stream));
    static const char *const order[] = {"head",  "layers.1.experts", "layers.1", "layers.0.experts",
                                        "embed", "layers.0"};
    assert_int_equal(c.n_groups, 6);
    assert_int_equal(c.n_groups, xp_param_table_n_groups(xp_model_params(t.model)));
    for (int i = 0; i < 6; i++)
        assert_string_equal(xp_param_table_group(xp_model_params(t.model), c.groups[i])->name,
                            order[i]);
    static const char *const needed[] = {"embed",    "layers.0",         "layers.0.experts",
                                         "layers.1", "layers.1.experts", "head"};
    assert_int_equal(c.n_needed, 6);
    for (int i = 0; i < 6; i++)
        assert_string_equal(xp_param_table_group(xp_model_params(t.model), c.needed[i])->name,
                            needed[i]);
    static const int layers[] = {0, 1, -2, -1};
    assert_int_equal(c.n_layers, 4);
    assert_memory_equal(c.layers, layers, sizeof(layers));
    c = (calls){.fail_at = 2};
    assert_int_equal(xp_model_forward_backward(t.model, &t.batch, &hooks, t.stream),
                     XP_EINTERRUPTED);
    assert_int_equal(c.n_groups, 2);
    xp_test_model_destroy(&t);
}

static void test_decoder_equals_forward(void **state) {
    (void)state;
    for (int dense = 0; dense < 2; dense++) {
        xp_arch arch = dense ? xp_test_dense_arch() : xp_test_moe_arch();
        xp_model_args args = xp_test_args(&arch);
        args.inference = args.keep_logits = true;
        xp_test_model t;
        xp_test_model_create(args, 1, &t);
        t.batch.want_logits = true;
        xp_test_must(xp_model_forward(t.model, &t.batch, t.stream));
        xp_test_must(xp_stream_sync(t.stream));
        float expected[7 * 23], logits[23];
        memcpy(expected, xp_model_logits(t.model), sizeof(expected));
        for (int round = 0; round < 2; round++) {
            xp_decoder *decoder = NULL;
            xp_test_must(xp_decoder_create(t.model, 7, &decoder));
            for (int at = 0; at < 7;) {
                int n = round == 1 && at == 0 ? 4 : 1;
                xp_test_must(xp_decoder_feed(decoder, t.tokens + at, n, logits));
                at += n;
                for (int v = 0; v < 23; v++)
                    assert_float_equal(logits[v], expected[(at - 1) * 23 + v], 1e-4);
            }
            assert_int_equal(xp_decoder_feed(decoder, t.tokens, 1, logits), XP_EINVAL);
            xp_decoder_destroy(decoder);
        }
        xp_test_model_destroy(&t);
    }
}

/* A decoder longer than the model's microbatch feeds in pieces. */
static void test_decoder_long(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    float whole[23], pieces[23];
    for (int small = 0; small < 2; small++) {
        xp_model_args args = xp_test_args(&arch);
        args.inference = true;
        args.n_rows = 1;
        args.seq_len = small ? 3 : 14;
        xp_test_model t;
        xp_test_model_create(args, 1, &t);
        xp_decoder *decoder = NULL;
        int32_t tokens[14];
        for (int i = 0; i < 14; i++)
            tokens[i] = (int32_t)(i * 5 % 23);
        xp_test_must(xp_decoder_create(t.model, 20, &decoder));
        xp_test_must(xp_decoder_feed(decoder, tokens, 14, small ? pieces : whole));
        xp_decoder_destroy(decoder);
        xp_test_model_destroy(&t);
    }
    for (int v = 0; v < 23; v++)
        assert_float_equal(pieces[v], whole[v], 1e-4);
}

static void test_forced_balance(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    for (int mode = XP_FORCED_MODULO; mode <= XP_FORCED_SPREAD; mode++) {
        xp_model_args args = xp_test_args(&arch);
        args.forced_balance = (xp_forced_mode)mode;
        args.n_rows = 3;
        args.seq_len = 6;
        xp_test_model t;
        xp_test_model_create(args, 1, &t);
        xp_test_step(&t);
        for (int e = 0; e < arch.n_experts; e++)
            assert_int_equal(xp_model_expert_counts(t.model)[e], 18 * 2 / 6);
        float *grads = xp_test_grads(&t);
        assert_true(norm_of(&t, grads, "layers.0.gate") > 0.0);
        free(grads);
        xp_test_model_destroy(&t);
    }
}

static void check_null_bytes(xp_model_args args) {
    static const char *const tags[] = {"params", "grads", "activations", "ep", "workspace"};
    int64_t real[5];
    for (int pass = 0; pass < 2; pass++) {
        xp_device_args device = {.kind = pass ? XP_DEVICE_NULL : XP_DEVICE_CPU, .n_threads = 1};
        xp_test_must(xp_device_create(&device, &args.device));
        xp_model *model = NULL;
        xp_test_must(xp_model_create(&args, &model));
        for (int i = 0; i < 5; i++) {
            int64_t bytes = xp_device_bytes(args.device, tags[i]);
            if (pass && bytes != real[i])
                fail_msg("%s: null device %lld, real %lld", tags[i], (long long)bytes,
                         (long long)real[i]);
            real[i] = bytes;
        }
        xp_model_destroy(model);
        assert_int_equal(xp_device_bytes(args.device, NULL), 0);
        xp_device_destroy(args.device);
    }
}

static void test_null_device_counts_the_same(void **state) {
    (void)state;
    xp_arch moe = xp_test_moe_arch(), dense = xp_test_dense_arch();
    xp_model_args args = xp_test_args(&moe);
    check_null_bytes(args);
    args.recompute = XP_RECOMPUTE_FULL;
    args.aux_loss_coeff = args.z_loss_coeff = 0.1;
    args.forced_balance = XP_FORCED_MODULO;
    check_null_bytes(args);
    args.dtype = args.grad_dtype = XP_BF16;
    check_null_bytes(args);
    args = xp_test_args(&dense);
    args.document_attention = true;
    check_null_bytes(args);
    args.inference = args.keep_logits = true;
    check_null_bytes(args);
}

static void test_nothing_is_allocated_in_a_step(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    xp_test_step(&t);
    int64_t n = xp_device_n_allocs(t.device);
    xp_test_step(&t);
    xp_test_must(xp_model_forward(t.model, &t.batch, t.stream));
    assert_int_equal(xp_device_n_allocs(t.device), n);
    xp_test_model_destroy(&t);
}

/* The head in chunks of 64 rows (the CPU's least): with large_head a bf16 gradient is the fp32 sum,
 * rounded once; without, every chunk but the first is added to a rounded one. */
static void test_head_sums_in_f32(void **state) {
    (void)state;
    uint16_t *grads[2] = {NULL, NULL};
    float *f32 = NULL;
    int64_t n = 0;
    for (int i = 0; i < 3; i++) {
        xp_arch arch = xp_test_dense_arch();
        arch.n_layers = 1;
        arch.vocab_size = 140000;
        xp_model_args args = xp_test_args(&arch);
        args.n_rows = 4;
        args.seq_len = 50;
        args.dtype = XP_BF16;
        args.grad_dtype = i == 2 ? XP_F32 : XP_BF16;
        args.large_head = i == 0;
        xp_test_model t;
        xp_test_model_create(args, 2, &t);
        xp_test_step(&t);
        const xp_param *head = param_of(&t, "lm_head");
        n = head->n_elements;
        const size_t n_bytes = (size_t)n * (i == 2 ? sizeof(float) : sizeof(uint16_t));
        void *copy = malloc(n_bytes);
        assert_non_null(copy);
        const size_t at = (size_t)head->offset * xp_dtype_bytes(args.grad_dtype);
        memcpy(copy, (const char *)xp_model_grad_data(t.model) + at, n_bytes);
        if (i == 2)
            f32 = copy;
        else
            grads[i] = copy;
        xp_test_model_destroy(&t);
    }
    int64_t n_other = 0;
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(grads[0][i], xp_bf16_from_f32(f32[i]));
        n_other += grads[1][i] != grads[0][i];
    }
    assert_true(n_other > n / 100);
    free(grads[0]);
    free(grads[1]);
    free(f32);
}

static void expect_refused(xp_test_model *t, const char *word) {
    assert_int_equal(xp_model_forward_backward(t->model, &t->batch, NULL, t->stream), XP_EINVAL);
    if (!strstr(xp_last_error(), word))
        fail_msg("'%s' not in: %s", word, xp_last_error());
}

/* bf16 weights and rows: near the fp32 model, the modes still bit for bit, and bf16 gradients are
 * the rounded fp32 ones. */
static void test_bf16(void **state) {
    (void)state;
    for (int dense = 0; dense < 2; dense++) {
        xp_arch arch = dense ? xp_test_dense_arch() : xp_test_moe_arch();
        float *grads[4];
        double losses[4];
        int64_t n = 0;
        for (int i = 0; i < 4; i++) {
            xp_model_args args = xp_test_args(&arch);
            args.dtype = i == 0 ? XP_F32 : XP_BF16;
            args.recompute = i < 2 ? XP_RECOMPUTE_NONE : (xp_recompute)(i - 1);
            args.forced_balance = XP_FORCED_MODULO; /* rounding must not change the assignments */
            xp_test_model t;
            xp_test_model_create(args, 1, &t);
            losses[i] = xp_test_step(&t).loss_sum;
            grads[i] = xp_test_grads(&t);
            n = n_grads(&t);
            xp_test_model_destroy(&t);
        }
        assert_true(fabs(losses[1] / losses[0] - 1.0) < 0.01);
        assert_true(xp_test_distance(grads[1], grads[0], n) < 0.05);
        assert_memory_equal(grads[2], grads[1], (size_t)n * sizeof(float));
        assert_memory_equal(grads[3], grads[1], (size_t)n * sizeof(float));
        xp_model_args args = xp_test_args(&arch);
        args.dtype = args.grad_dtype = XP_BF16;
        args.forced_balance = XP_FORCED_MODULO;
        xp_test_model t;
        xp_test_model_create(args, 1, &t);
        xp_test_step(&t);
        const uint16_t *narrow = xp_model_grad_data(t.model);
        for (int64_t i = 0; i < n; i++)
            grads[2][i] = xp_bf16_to_f32(narrow[i]);
        assert_true(xp_test_distance(grads[2], grads[1], n) < 0.01);
        xp_test_model_destroy(&t);
        for (int i = 0; i < 4; i++)
            free(grads[i]);
    }
}

static void test_bad_batches(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    t.tokens[3] = 23;
    expect_refused(&t, "tokens[3] = 23");
    t.tokens[3] = 0;
    t.targets[5] = 23;
    expect_refused(&t, "targets[5]");
    t.targets[5] = 0;
    t.positions[0] = 7;
    expect_refused(&t, "positions[0]");
    t.positions[0] = 0;
    t.batch.n_rows = 3;
    expect_refused(&t, "3 rows");
    t.batch.n_rows = 2;
    t.batch.want_logits = true;
    expect_refused(&t, "keep_logits");
    xp_test_model_destroy(&t);
    xp_model_args args = xp_test_args(&arch);
    args.seq_len = 0;
    xp_model *model = NULL;
    assert_int_equal(xp_model_create(&args, &model), XP_EINVAL);
    assert_null(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recompute_is_bit_identical),
        cmocka_unit_test(test_router_learns_through_the_weights),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_idle_expert_has_zero_gradient),
        cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_queued_passes_keep_their_loss_scale),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_decoder_equals_forward),
        cmocka_unit_test(test_decoder_long),
        cmocka_unit_test(test_forced_balance),
        cmocka_unit_test(test_null_device_counts_the_same),
        cmocka_unit_test(test_nothing_is_allocated_in_a_step),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_head_sums_in_f32),
        cmocka_unit_test(test_bad_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
