/* The parameter table: complete, disjoint, with the right names; initial values that no split can
 * change. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/params.h"

static xp_arch moe_arch(void) {
    return (xp_arch){.flavor = "custom",
                     .dim = 24,
                     .n_layers = 2,
                     .vocab_size = 31,
                     .n_heads = 3,
                     .n_kv_heads = 1,
                     .head_dim = 6,
                     .n_experts = 4,
                     .top_k = 2,
                     .moe_dim = 10,
                     .rope_theta = 1e6,
                     .norm_eps = 1e-6,
                     .qk_norm = true,
                     .route_norm = true,
                     .route_scale = 1.0};
}

static xp_arch dense_arch(void) {
    xp_arch arch = moe_arch();
    arch.n_experts = arch.top_k = 0;
    arch.moe_dim = 0;
    arch.hidden_dim = 40;
    arch.tie_embeddings = true;
    return arch;
}

static const char *const no_names[] = {"nothing",
                                       "layers.",
                                       "layers.0",
                                       "layers.0.",
                                       "layers.0.nothing",
                                       "layers.00.wo",
                                       "layers.-1.wo",
                                       "layers.+0.wo",
                                       "layers. 0.wo",
                                       "layers.99999999999999999999.wo",
                                       "wo",
                                       "layers.4294967296.wo"};

/* "layers.3.wo" is "wo" of layer 3, and of no other layer by its whole name. */
static void check_found_in_layer(const xp_param_table *table, int i) {
    const char *name = xp_param_table_param(table, i)->name;
    int layer, n = 0;
    if (sscanf(name, "layers.%d.%n", &layer, &n) == 1 && n > 0) {
        assert_int_equal(xp_param_table_find_in(table, layer, name + n), i);
        assert_int_equal(xp_param_table_find_in(table, -1, name + n), -1);
    } else {
        assert_int_equal(xp_param_table_find_in(table, -1, name), i);
    }
    assert_int_equal(xp_param_table_find_in(table, 0, name), -1);
}

static void check_table(const xp_arch *arch) {
    xp_param_table *table = NULL;
    assert_int_equal(xp_param_table_create(arch, 0, 1, &table), XP_OK);
    int64_t total = 0, end = 0, sliced = 0;
    for (int i = 0; i < xp_param_table_n_params(table); i++) {
        const xp_param *param = xp_param_table_param(table, i);
        assert_true(param->offset >= end);
        assert_int_equal(param->offset % XP_PARAM_ALIGN, 0);
        end = param->offset + param->n_elements;
        total += param->n_elements;
        assert_int_equal(xp_param_table_find(table, param->name), i);
        check_found_in_layer(table, i);
        int64_t next = param->offset;
        for (int s = 0; s < param->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            assert_int_equal(slice.offset, next);
            next += slice.n_elements;
            int64_t product = slice.n_dims == 2 ? slice.shape[0] * slice.shape[1] : slice.shape[0];
            assert_int_equal(slice.n_elements, product);
            sliced += slice.n_elements;
        }
        assert_int_equal(next, end);
        const xp_param_group *group = xp_param_table_group(table, param->group);
        assert_true(param->offset >= group->offset && end <= group->offset + group->n_elements);
    }
    assert_int_equal(total, xp_arch_n_params(arch));
    assert_int_equal(sliced, total);
    assert_true(xp_param_table_n_elements(table) >= end);
    for (int g = 0; g < xp_param_table_n_groups(table); g++)
        assert_int_equal(xp_param_table_group(table, g)->offset % XP_GROUP_ALIGN, 0);
    for (int i = 0; i < (int)(sizeof(no_names) / sizeof(no_names[0])); i++)
        assert_int_equal(xp_param_table_find(table, no_names[i]), -1);
    xp_param_table_destroy(table);
}

static void test_complete(void **state) {
    (void)state;
    xp_arch moe = moe_arch(), dense = dense_arch();
    check_table(&moe);
    check_table(&dense);
}

static bool has_slice(const xp_param_table *table, const char *name, int64_t rows, int64_t cols) {
    for (int i = 0; i < xp_param_table_n_params(table); i++) {
        for (int s = 0; s < xp_param_table_param(table, i)->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            if (strcmp(slice.hf_name, name) == 0)
                return slice.shape[0] == rows && slice.shape[1] == cols;
        }
    }
    return false;
}

static void test_names(void **state) {
    (void)state;
    xp_arch moe = moe_arch();
    xp_param_table *table = NULL;
    assert_int_equal(xp_param_table_create(&moe, 1, 2, &table), XP_OK);
    assert_true(has_slice(table, "model.embed_tokens.weight", 31, 24));
    assert_true(has_slice(table, "model.layers.1.self_attn.q_proj.weight", 18, 24));
    assert_true(has_slice(table, "model.layers.1.self_attn.v_proj.weight", 6, 24));
    assert_true(has_slice(table, "model.layers.0.self_attn.o_proj.weight", 24, 18));
    assert_true(has_slice(table, "model.layers.0.self_attn.q_norm.weight", 6, 0));
    assert_true(has_slice(table, "model.layers.0.mlp.gate.weight", 4, 24));
    assert_true(has_slice(table, "model.layers.1.mlp.experts.3.gate_proj.weight", 10, 24));
    assert_true(has_slice(table, "model.layers.1.mlp.experts.2.up_proj.weight", 10, 24));
    assert_true(has_slice(table, "model.layers.1.mlp.experts.2.down_proj.weight", 24, 10));
    assert_false(has_slice(table, "model.layers.1.mlp.experts.1.down_proj.weight", 24, 10));
    assert_true(has_slice(table, "model.norm.weight", 24, 0));
    assert_true(has_slice(table, "lm_head.weight", 31, 24));
    xp_param_table_destroy(table);
    assert_int_equal(xp_param_table_create(&moe, 0, 3, &table), XP_ECONFIG);
    assert_non_null(strstr(xp_last_error(), "expert_parallel_degree"));
}

/* On the CPU, whose memory is the host's. */
static void draw(const xp_param_table *table, int64_t first, int64_t n, float *out) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 2};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_param_table_draw(table, 7, first, n, stream, out), XP_OK);
    assert_int_equal(xp_stream_sync(stream), XP_OK);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

static float *values_of(const xp_param_table *table) {
    int64_t n = xp_param_table_n_elements(table);
    float *out = malloc((size_t)n * sizeof(float));
    assert_non_null(out);
    draw(table, 0, n, out);
    return out;
}

/* Expert e's values in a table of two EP ranks are those of the whole table. */
static void test_init_is_independent_of_the_split(void **state) {
    (void)state;
    xp_arch arch = moe_arch();
    xp_param_table *whole = NULL;
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &whole), XP_OK);
    float *all = values_of(whole);
    for (int rank = 0; rank < 2; rank++) {
        xp_param_table *part = NULL;
        assert_int_equal(xp_param_table_create(&arch, rank, 2, &part), XP_OK);
        float *mine = values_of(part);
        for (int i = 0; i < xp_param_table_n_params(part); i++) {
            const xp_param *p = xp_param_table_param(part, i);
            const xp_param *w = xp_param_table_param(whole, xp_param_table_find(whole, p->name));
            int64_t skip = w->n_elements > p->n_elements ? rank * p->n_elements : 0;
            assert_memory_equal(mine + p->offset, all + w->offset + skip,
                                (size_t)p->n_elements * sizeof(float));
        }
        free(mine);
        xp_param_table_destroy(part);
    }
    /* Any window of the buffer holds the same values. */
    int64_t n = xp_param_table_n_elements(whole);
    float window[37];
    for (int64_t first = 0; first < n; first += 37) {
        int64_t count = n - first < 37 ? n - first : 37;
        draw(whole, first, count, window);
        assert_memory_equal(window, all + first, (size_t)count * sizeof(float));
    }
    free(all);
    xp_param_table_destroy(whole);
}

static double deviation(const xp_param_table *table, const float *values, const char *name) {
    const xp_param *param = xp_param_table_param(table, xp_param_table_find(table, name));
    double sum = 0.0;
    for (int64_t i = 0; i < param->n_elements; i++)
        sum += (double)values[param->offset + i] * values[param->offset + i];
    return sqrt(sum / (double)param->n_elements);
}

static void test_init_scale(void **state) {
    (void)state;
    xp_arch arch = moe_arch();
    arch.dim = 96;
    arch.moe_dim = 64;
    xp_param_table *table = NULL;
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &table), XP_OK);
    float *values = values_of(table);
    assert_float_equal(deviation(table, values, "layers.0.experts.w13"), 0.02, 0.0005);
    assert_float_equal(deviation(table, values, "layers.0.experts.w2"), 0.01, 0.0003);
    assert_float_equal(deviation(table, values, "layers.1.wo"), 0.01, 0.0006);
    assert_float_equal(deviation(table, values, "layers.1.q_norm"), 1.0, 0.0);
    assert_float_equal(deviation(table, values, "final_norm"), 1.0, 0.0);
    free(values);
    xp_param_table_destroy(table);
}

/* Every lookup of a model of many layers: a scan of all names for each took minutes. */
static void test_lookups_do_not_grow_with_the_model(void **state) {
    (void)state;
    xp_arch arch = {.flavor = "custom",
                    .dim = 8,
                    .n_layers = 10000,
                    .n_heads = 2,
                    .n_kv_heads = 1,
                    .head_dim = 4,
                    .vocab_size = 10,
                    .hidden_dim = 8,
                    .qk_norm = true,
                    .rope_theta = 1e4,
                    .norm_eps = 1e-6};
    xp_param_table *table;
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &table), XP_OK);
    alarm(20);
    for (int round = 0; round < 5; round++)
        for (int i = 0; i < xp_param_table_n_params(table); i++)
            assert_int_equal(xp_param_table_find(table, xp_param_table_param(table, i)->name), i);
    alarm(0);
    assert_int_equal(xp_param_table_find(table, "layers.10000.wo"), -1);
    xp_param_table_destroy(table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookups_do_not_grow_with_the_model),
        cmocka_unit_test(test_complete),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_init_is_independent_of_the_split),
        cmocka_unit_test(test_init_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
