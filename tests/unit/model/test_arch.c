/* Flavors, overrides and config.json: sizes and counts equal the published figures, what does not
 * fit is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/arch.h"

static xp_config config_of(const char *flavor) {
    xp_config config = {0};
    config.model.name = "qwen3";
    config.model.flavor = flavor;
    config.model.tie_embeddings = -1;
    config.moe.route_norm = -1;
    config.moe.use_deepep = -1;
    return config;
}

static void test_counts(void **state) {
    (void)state;
    static const struct {
        const char *flavor;
        int64_t total, active;
    } table[] = {
        {"30B-A3B", 30532122624, 3353032704},     {"30B-A3B-deepep", 30532122624, 3353032704},
        {"235B-A22B", 235093634560, 22190763520}, {"10B-A1B-deepep", 10489144832, 1429448192},
        {"debugmodel_moe", 315758848, 51517696},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        xp_config config = config_of(table[i].flavor);
        xp_arch arch;
        assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
        assert_int_equal(xp_arch_n_params(&arch), table[i].total);
        assert_int_equal(xp_arch_n_active_params(&arch), table[i].active);
        assert_int_equal(arch.use_deepep, strstr(table[i].flavor, "-deepep") != NULL);
    }
    xp_config config = config_of("30B-A3B");
    xp_arch arch;
    assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
    char text[32];
    snprintf(text, sizeof(text), "%.2f", xp_arch_flops_per_token(&arch, 4096) * 1e-9);
    assert_string_equal(text, "23.08");
}

static void test_every_flavor(void **state) {
    (void)state;
    for (int i = 0; xp_arch_flavor(i); i++) {
        const char *name = xp_arch_flavor(i);
        if (strcmp(name, "custom") == 0 || strcmp(name, "hf") == 0)
            continue;
        xp_config config = config_of(name);
        xp_arch arch;
        assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
        assert_string_equal(arch.flavor, name);
        assert_int_equal(xp_arch_check(&arch), XP_OK);
    }
}

static void expect_error(const xp_config *config, const char *word) {
    xp_arch arch = {.dim = 77};
    assert_int_equal(xp_arch_from_config(config, &arch), XP_ECONFIG);
    if (!strstr(xp_last_error(), word))
        fail_msg("'%s' not in: %s", word, xp_last_error());
    assert_int_equal(arch.dim, 77);
}

static void test_errors(void **state) {
    (void)state;
    xp_config config = config_of("30B-A3");
    expect_error(&config, "did you mean '30B-A3B'");
    config = config_of("8B-deepep");
    expect_error(&config, "no experts");
    config = config_of("hf");
    expect_error(&config, "hf_assets_path");
    config = config_of("tiny_moe");
    config.model.name = "llama";
    expect_error(&config, "model.name");
    config = config_of("tiny_moe");
    config.moe.top_k = 33;
    expect_error(&config, "moe.top_k");
    config = config_of("tiny_moe");
    config.model.hidden_dim = 64;
    expect_error(&config, "moe.moe_dim");
    config = config_of("0.6B");
    config.moe.top_k = 2;
    expect_error(&config, "moe.num_experts");
    config = config_of("tiny_moe");
    config.model.n_kv_heads = 3;
    expect_error(&config, "multiple");
    config = config_of("tiny_moe");
    config.model.head_dim = 33;
    expect_error(&config, "even");
    config = config_of("custom");
    expect_error(&config, "model.dim");
    config = config_of("tiny_moe");
    config.moe.score_func = "relu";
    expect_error(&config, "softmax or sigmoid");
    config = config_of("tiny_moe");
    config.moe.use_deepep = 0;
    config.parallelism.expert_parallel_comm_backend = "deepep";
    expect_error(&config, "contradicts");
}

static void test_overrides(void **state) {
    (void)state;
    xp_config config = config_of("tiny_moe-deepep");
    config.model.n_layers = 2;
    config.model.vocab_size = 99;
    config.model.tie_embeddings = 1;
    config.moe.score_func = "sigmoid";
    config.moe.route_norm = 0;
    config.moe.route_scale = 2.5;
    config.moe.num_experts = 8;
    config.parallelism.expert_parallel_comm_backend = "standard";
    xp_arch arch;
    assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
    assert_int_equal(arch.n_layers, 2);
    assert_int_equal(arch.vocab_size, 99);
    assert_true(arch.tie_embeddings);
    assert_int_equal(arch.score_func, XP_SCORE_SIGMOID);
    assert_false(arch.route_norm);
    assert_true(arch.route_scale == 2.5);
    assert_int_equal(arch.n_experts, 8);
    assert_int_equal(arch.top_k, 4);
    assert_false(arch.use_deepep);
    config = config_of("custom");
    config.model.dim = 48;
    config.model.n_layers = 3;
    config.model.n_heads = 4;
    config.model.vocab_size = 100;
    config.model.hidden_dim = 96;
    assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
    assert_int_equal(arch.n_kv_heads, 4);
    assert_int_equal(arch.head_dim, 12);
    assert_int_equal(arch.hidden_dim, 96);
}

static xp_status read_json(const char *json, xp_arch *arch) {
    char path[] = "/tmp/expar_test_arch_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, json, strlen(json)), (ssize_t)strlen(json));
    close(fd);
    xp_status status = xp_arch_from_hf(path, arch);
    unlink(path);
    return status;
}

#define SIZES                                                                                      \
    "\"hidden_size\": 48, \"num_hidden_layers\": 2, \"vocab_size\": 100, "                         \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16"
#define MOE                                                                                        \
    "\"model_type\": \"qwen3_moe\", " SIZES                                                        \
    ", \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 24, \"norm_topk_prob\": true"

static void test_hf_read(void **state) {
    (void)state;
    xp_arch arch;
    assert_int_equal(read_json("{" MOE ", \"num_local_experts\": 8, \"rope_parameters\": "
                               "{\"rope_theta\": 50000.0, \"rope_type\": \"default\"}}",
                               &arch),
                     XP_OK);
    assert_int_equal(arch.n_experts, 8);
    assert_true(arch.rope_theta == 50000.0);
    assert_true(arch.route_norm);
    assert_int_equal(read_json("{" MOE ", \"num_experts\": 8, \"rope_theta\": 1000000}", &arch),
                     XP_OK);
    assert_true(arch.rope_theta == 1e6);
    assert_int_equal(read_json("{\"model_type\": \"qwen3\", " SIZES
                               ", \"intermediate_size\": 80, \"tie_word_embeddings\": true}",
                               &arch),
                     XP_OK);
    assert_int_equal(arch.hidden_dim, 80);
    assert_true(arch.tie_embeddings);
    /* what is not used may be any number, and a byte order mark is no part of the text */
    assert_int_equal(read_json("\xef\xbb\xbf{" MOE ", \"num_experts\": 8, \"x\": 1e400, \"y\": "
                               "123456789012345678901234567890, \"z\": [Infinity, NaN]}",
                               &arch),
                     XP_OK);
}

static void test_hf_refused(void **state) {
    (void)state;
    static const struct {
        const char *json, *word;
        xp_status status;
    } table[] = {
        {"{" MOE ", \"num_experts\": 8, \"use_sliding_window\": true}", "sliding", XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"attention_bias\": true}", "bias", XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"rope_scaling\": {\"rope_type\": \"yarn\"}}", "yarn",
         XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"rope_scaling\": {\"type\": \"linear\"}}", "linear",
         XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"decoder_sparse_step\": 2}", "decoder_sparse_step",
         XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"mlp_only_layers\": [0]}", "mlp_only_layers", XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"layer_types\": [\"sliding_attention\"]}", "layer_types",
         XP_ENOTSUP},
        {"{" MOE ", \"num_experts\": 8, \"hidden_act\": \"gelu\"}", "silu", XP_ENOTSUP},
        {"{\"model_type\": \"llama\"}", "llama", XP_ENOTSUP},
        {"{" MOE "}", "num_experts", XP_EFORMAT},
        {"{" MOE ", \"num_experts\": \"8\"}", "integer", XP_EFORMAT},
        {"{" MOE ", \"num_experts\": 1}", "top_k", XP_EFORMAT},
        {"{" MOE ", \"num_experts\": 8,}", ":1:", XP_EFORMAT},
        {"[1]", "object", XP_EFORMAT},
        /* sizes that overflow, or that no machine has */
        {"{" MOE ", \"num_experts\": 2147483648}", "num_experts", XP_EFORMAT},
        {"{" MOE ", \"num_experts\": 2147483647}", "moe.num_experts", XP_EFORMAT},
        {"{" MOE ", \"num_experts\": 99999999999999999999}", "num_experts", XP_EFORMAT},
        {"{\"model_type\": \"qwen3\", \"hidden_size\": 48, \"num_hidden_layers\": 30000, "
         "\"vocab_size\": 100, \"num_attention_heads\": 4, \"intermediate_size\": 8}",
         "model.n_layers", XP_EFORMAT},
        {"{\"model_type\": \"qwen3\", \"hidden_size\": 1048576, \"num_hidden_layers\": 10000, "
         "\"vocab_size\": 100, \"num_attention_heads\": 65536, \"head_dim\": 65536, "
         "\"intermediate_size\": 8}",
         "parameters", XP_EFORMAT},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        xp_arch arch;
        assert_int_equal(read_json(table[i].json, &arch), table[i].status);
        if (!strstr(xp_last_error(), table[i].word))
            fail_msg("'%s' not in: %s", table[i].word, xp_last_error());
    }
}

static void test_hf_round_trip(void **state) {
    (void)state;
    static const char *const names[] = {"30B-A3B", "0.6B", "tiny_moe"};
    for (int i = 0; i < 3; i++) {
        xp_config config = config_of(names[i]);
        xp_arch arch, back;
        assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
        char *json = NULL, *generation = NULL;
        const xp_arch_hf_args args = {
            .arch = &arch, .seq_len = 4096, .torch_dtype = "bfloat16", .bos = -1, .eos = -1};
        assert_int_equal(xp_arch_to_hf(&args, &json, &generation), XP_OK);
        assert_null(generation); /* no ids are known */
        assert_int_equal(read_json(json, &back), XP_OK);
        free(json);
        snprintf(back.flavor, sizeof(back.flavor), "%s", names[i]);
        assert_int_equal(xp_arch_n_params(&back), xp_arch_n_params(&arch));
        assert_int_equal(back.top_k, arch.top_k);
        assert_true(back.norm_eps == arch.norm_eps && back.rope_theta == arch.rope_theta);
        assert_int_equal(back.tie_embeddings, arch.tie_embeddings);
    }
    xp_config config = config_of("tiny_moe");
    config.moe.score_func = "sigmoid";
    xp_arch arch;
    char *json = NULL, *generation = NULL;
    const xp_arch_hf_args args = {.arch = &arch, .seq_len = 4096, .torch_dtype = "float32"};
    assert_int_equal(xp_arch_from_config(&config, &arch), XP_OK);
    assert_int_equal(xp_arch_to_hf(&args, &json, &generation), XP_ENOTSUP);
    assert_null(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),        cmocka_unit_test(test_every_flavor),
        cmocka_unit_test(test_errors),        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_hf_read),       cmocka_unit_test(test_hf_refused),
        cmocka_unit_test(test_hf_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
