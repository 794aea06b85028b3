/** Hugging Face folders, in and out. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "checkpoint/hf.h"
#include "core/file.h"
#include "scratch.h"

#define N_TENSORS 5
#define LARGE     600000 /* more than one chunk of the exporter */

static xp_status fill(void *context, int64_t first, int64_t n, float *out) {
    float base = *(float *)context;
    for (int64_t i = 0; i < n; i++)
        out[i] = base + (float)((first + i) % 1000) / 8;
    return XP_OK;
}

static xp_status fill_fails(void *context, int64_t first, int64_t n, float *out) {
    assert_true(context == NULL && first >= 0 && n > 0 && out != NULL);
    return xp_error(XP_EDEVICE, "the device is gone");
}

static float bases[] = {0, 100, 200, 300, 400, 500};

static const xp_hf_source sources[N_TENSORS] = {
    {"model.embed_tokens.weight", 2, {LARGE / 100, 100}, fill, &bases[0]},
    {"model.layers.0.input_layernorm.weight", 1, {64}, fill, &bases[1]},
    {"model.layers.0.mlp.gate.weight", 2, {8, 64}, fill, &bases[2]},
    {"model.norm.weight", 1, {64}, fill, &bases[3]},
    {"lm_head.weight", 2, {10, 64}, fill, &bases[4]},
};
static const xp_hf_source extra[] = {{"expert_bias.0", 1, {8}, fill, &bases[5]}};

static xp_hf_export_args export_args(const char *folder) {
    return (xp_hf_export_args){.folder = folder,
                               .dtype = XP_F32,
                               .config_json = "{\"model_type\": \"qwen3_moe\"}\n",
                               .tensors = sources,
                               .n_tensors = N_TENSORS};
}

static void export_ok(const xp_hf_export_args *args) {
    if (xp_hf_export(args) != XP_OK)
        fail_msg("%s", xp_last_error());
}

static void check_tensors(const char *folder, xp_dtype dtype) {
    xp_hf_reader *reader;
    if (xp_hf_open(folder, &reader) != XP_OK)
        fail_msg("%s", xp_last_error());
    assert_int_equal(xp_hf_n_tensors(reader), N_TENSORS);
    float *got = malloc(LARGE * sizeof *got), *want = malloc(LARGE * sizeof *want);
    assert_true(got != NULL && want != NULL);
    for (int i = 0; i < N_TENSORS; i++) {
        const xp_st_tensor *tensor = xp_hf_find(reader, sources[i].name);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, dtype);
        assert_int_equal(tensor->n_dims, sources[i].n_dims);
        assert_memory_equal(tensor->shape, sources[i].shape, (size_t)tensor->n_dims * 8);
        assert_int_equal(xp_st_read_f32(tensor, 0, tensor->n_elements, got), XP_OK);
        assert_int_equal(fill(sources[i].context, 0, tensor->n_elements, want), XP_OK);
        for (int64_t e = 0; e < tensor->n_elements; e++)
            assert_true(dtype == XP_F32 ? got[e] == want[e] : fabsf(got[e] - want[e]) <= 2);
    }
    for (int64_t i = 1; i < N_TENSORS; i++)
        assert_true(strcmp(xp_hf_tensor_at(reader, i - 1)->name, xp_hf_tensor_at(reader, i)->name) <
                    0);
    assert_null(xp_hf_find(reader, "absent"));
    free(got);
    free(want);
    xp_hf_close(reader);
}

static void test_single_file(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "deep/hf/");
    xp_hf_export_args args = export_args(folder.text);
    export_ok(&args);
    check_tensors(folder.text, XP_F32);
    check_tensors(xp_scratch_join(folder.text, "model.safetensors").text, XP_F32);
    assert_int_equal(xp_scratch_count(folder.text), 2);
    assert_int_equal(xp_scratch_count(xp_scratch_join(*state, "deep").text), 1);
    xp_st_file *file;
    assert_int_equal(xp_st_open(xp_scratch_join(folder.text, "model.safetensors").text, &file),
                     XP_OK);
    assert_string_equal(xp_st_metadata(file, "format"), "pt"); /* transformers insists on it */
    xp_st_close(file);
    size_t n;
    char *config = xp_scratch_read(xp_scratch_join(folder.text, "config.json").text, &n);
    assert_string_equal(config, args.config_json);
    free(config);
}

static void test_shards_and_index(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "hf"),
                    tokenizer = xp_scratch_join(*state, "t");
    assert_int_equal(xp_folder_create(tokenizer.text), XP_OK);
    xp_scratch_write(xp_scratch_join(tokenizer.text, "tokenizer.json").text, "{\"a\":1}", 7);
    xp_scratch_write(xp_scratch_join(tokenizer.text, "tokenizer_config.json").text, "{}", 2);
    xp_hf_export_args args = export_args(folder.text);
    args.dtype = XP_BF16;
    args.max_shard_bytes = 1280;
    args.tokenizer_folder = tokenizer.text;
    args.extra = extra;
    args.n_extra = 1;
    export_ok(&args);
    check_tensors(folder.text, XP_BF16);
    /* embed | two small ones | norm (64 over the limit with them) | head */
    size_t n;
    char *text =
        xp_scratch_read(xp_scratch_join(folder.text, "model.safetensors.index.json").text, &n);
    json_t *index = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    assert_non_null(index);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
        2 * (LARGE + 64 + 512 + 64 + 640));
    const json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), N_TENSORS);
    assert_string_equal(json_string_value(json_object_get(map, "model.embed_tokens.weight")),
                        "model-00001-of-00003.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "model.norm.weight")),
                        "model-00002-of-00003.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "lm_head.weight")),
                        "model-00003-of-00003.safetensors");
    json_decref(index);
    assert_int_equal(xp_scratch_count(folder.text), 3 + 1 + 1 + 1 + 2);
    xp_hf_reader *bias;
    assert_int_equal(
        xp_hf_open(xp_scratch_join(folder.text, "expar_extra.safetensors").text, &bias), XP_OK);
    assert_int_equal(xp_hf_find(bias, "expert_bias.0")->dtype, XP_F32);
    xp_hf_close(bias);

    /* Again, as one file: the earlier export is replaced, no shard of it stays. */
    args = export_args(folder.text);
    export_ok(&args);
    check_tensors(folder.text, XP_F32);
    assert_int_equal(xp_scratch_count(folder.text), 2);
    assert_int_equal(xp_scratch_count(*state), 2);
}

static void test_foreign_folders_are_left_alone(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "hf");
    xp_hf_export_args args = export_args(folder.text);
    assert_int_equal(xp_folder_create(folder.text), XP_OK);
    export_ok(&args); /* an empty folder is fine */
    xp_scratch_path note = xp_scratch_join(folder.text, "README.md");
    xp_scratch_write(note.text, "mine", 4);
    assert_int_equal(xp_hf_export(&args), XP_EINVAL);
    assert_true(xp_scratch_error_has("README.md"));
    assert_int_equal(access(note.text, F_OK), 0);
    check_tensors(folder.text, XP_F32);

    /* Someone else's model: right names, not our mark. */
    xp_scratch_path other = xp_scratch_join(*state, "other");
    assert_int_equal(xp_folder_create(other.text), XP_OK);
    xp_scratch_write(xp_scratch_join(other.text, "model.safetensors").text, "\2\0\0\0\0\0\0\0{}",
                     10);
    args.folder = other.text;
    assert_int_equal(xp_hf_export(&args), XP_EINVAL);
    assert_true(xp_scratch_error_has("no earlier export"));
    args.folder = note.text;
    assert_int_equal(xp_hf_export(&args), XP_EINVAL);
    static const char *const nameless[] = {".", "..", "/", "a/..", "//"};
    for (size_t i = 0; i < sizeof nameless / sizeof nameless[0]; i++) {
        args.folder = nameless[i];
        assert_int_equal(xp_hf_export(&args), XP_EINVAL);
    }
    assert_int_equal(xp_scratch_count(*state), 2);
}

static void test_failed_export_leaves_nothing(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "hf");
    xp_hf_export_args args = export_args(folder.text);
    const xp_hf_source broken[] = {sources[0], {"bad", 1, {4}, fill_fails, NULL}};
    args.tensors = broken;
    args.n_tensors = 2;
    assert_int_equal(xp_hf_export(&args), XP_EDEVICE);
    assert_true(xp_scratch_error_has("the device is gone"));
    assert_int_equal(xp_scratch_count(*state), 0);
    args = export_args(folder.text);
    export_ok(&args);
    args.tokenizer_folder = *state; /* holds no tokenizer.json */
    assert_int_equal(xp_hf_export(&args), XP_ENOENT);
    assert_true(xp_scratch_error_has("tokenizer.json"));
    args.dtype = XP_I32;
    assert_int_equal(xp_hf_export(&args), XP_EINVAL);
    check_tensors(folder.text, XP_F32);
    assert_int_equal(xp_scratch_count(*state), 1);
}

static void write_shard(const char *folder, const char *file, const char *tensor) {
    xp_st_writer *writer;
    assert_int_equal(xp_st_writer_create(xp_scratch_join(folder, file).text, &writer), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, tensor, XP_F32, 0, NULL), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, &bases[1], 4), XP_OK);
    assert_int_equal(xp_st_writer_finish(writer), XP_OK);
    xp_st_writer_destroy(writer);
}

static void test_bad_indexes(void **state) {
    static const struct {
        const char *index, *error;
    } cases[] = {
        {"", "index.json"},
        {"[]", "weight_map"},
        {"{}", "weight_map"},
        {"{\"weight_map\": []}", "weight_map"},
        {"{\"weight_map\": {\"a\": 1}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \".safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"../1.safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"/etc/1.safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"sub/1.safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"sub\\\\1.safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"..safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"1.safetensors\\u0000\"}}", "index.json"},
        {"{\"weight_map\": {\"a\": \"1\\u000a.safetensors\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"1.bin\"}}", "plain name"},
        {"{\"weight_map\": {\"a\": \"3.safetensors\"}}", "3.safetensors, which is not there"},
        {"{\"weight_map\": {\"b\": \"1.safetensors\"}}", "'b' is in 1.safetensors, but it is not"},
        {"{\"weight_map\": {\"a\": \"1.safetensors\", \"a\": \"2.safetensors\"}}", "duplicate"},
        {"{\"weight_map\": {\"a\": \"1.safetensors\"}} x", "index.json"},
        {"{\"weight_map\": {\"a\": \"bad.safetensors\"}}", "too few"},
    };
    const char *folder = *state;
    xp_hf_reader *reader = NULL;
    assert_int_equal(xp_hf_open(folder, &reader), XP_ENOENT);
    assert_true(xp_scratch_error_has("neither"));
    assert_int_equal(xp_hf_open(xp_scratch_join(folder, "absent").text, &reader), XP_ENOENT);
    write_shard(folder, "1.safetensors", "a");
    write_shard(folder, "2.safetensors", "b");
    xp_scratch_write(xp_scratch_join(folder, "bad.safetensors").text, "x", 1);
    xp_scratch_path index = xp_scratch_join(folder, "model.safetensors.index.json");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_scratch_write(index.text, cases[i].index, strlen(cases[i].index));
        if (xp_hf_open(folder, &reader) != XP_EFORMAT || !xp_scratch_error_has(cases[i].error))
            fail_msg("case %zu: %s", i, cases[i].index);
        assert_null(reader);
    }
    const char *good = "{\"weight_map\": {\"b\": \"2.safetensors\", \"a\": \"1.safetensors\"}}";
    xp_scratch_write(index.text, good, strlen(good));
    assert_int_equal(xp_hf_open(folder, &reader), XP_OK);
    assert_int_equal(xp_hf_n_tensors(reader), 2);
    assert_string_equal(xp_hf_find(reader, "b")->name, "b");
    xp_hf_close(reader);
    xp_hf_close(NULL);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_single_file),
        TEST(test_shards_and_index),
        TEST(test_foreign_folders_are_left_alone),
        TEST(test_failed_export_leaves_nothing),
        TEST(test_bad_indexes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
