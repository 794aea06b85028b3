/* Bad tokenizer files: each gives the right code and an error that names the file and the place in
 * it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/tokenizer.h"

#define FIXTURE XP_SOURCE_DIR "/tests/unit/tokenizer/fixture/tokenizer.json"
#define FOLDER  XP_BINARY_DIR "/test_tokenizer_bad"

static void expect_refused(const char *data, size_t n, xp_status code, const char *place) {
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_file_write_atomic(FOLDER "/tokenizer.json", data, n), XP_OK);
    xp_status status = xp_tokenizer_load(FOLDER, &tokenizer);
    if (status != code || !strstr(xp_last_error(), place) ||
        !strstr(xp_last_error(), FOLDER "/tokenizer.json"))
        fail_msg("wanted %s and \"%s\", got %s: %s", xp_status_name(code), place,
                 xp_status_name(status), xp_last_error());
    assert_null(tokenizer);
}

/* The fixture with one member replaced: path is keys and indices with '/' between; value NULL
 * removes it. */
static void expect_change_refused(const char *path, const char *value, xp_status code,
                                  const char *place) {
    json_t *root = json_load_file(FIXTURE, 0, NULL), *at = root;
    assert_non_null(root);
    char copy[256], *rest = copy;
    snprintf(copy, sizeof(copy), "%s", path);
    char *key = strsep(&rest, "/");
    for (; rest; key = strsep(&rest, "/"))
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    json_t *made = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if (!value)
        json_object_del(at, key);
    else if (json_is_array(at))
        json_array_set_new(at, (size_t)atoi(key), made);
    else
        json_object_set_new(at, key, made);
    char *text = json_dumps(root, 0);
    expect_refused(text, strlen(text), code, place);
    free(text);
    json_decref(root);
}

static int setup(void **state) {
    (void)state;
    return xp_folder_create(FOLDER) == XP_OK ? 0 : -1;
}

static void not_json(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        "{",
                                        "[1, 2]",
                                        "\"text\"",
                                        "{\"a\": 1, \"a\": 2}",
                                        "{\"model\": \"\xff\"}",
                                        "{} {}",
                                        "nul",
                                        "{\"a\": \"\\u0000\"}"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        expect_refused(texts[i], strlen(texts[i]), XP_EFORMAT, "");
    char *deep = malloc(200000);
    assert_non_null(deep);
    memset(deep, '[', 200000);
    expect_refused(deep, 200000, XP_EFORMAT, "line 1");
    free(deep);
}

static void wrong_models(void **state) {
    (void)state;
    expect_refused("{}", 2, XP_EFORMAT, "model");
    expect_change_refused("model", "[]", XP_EFORMAT, "model");
    expect_change_refused("model/type", "\"WordPiece\"", XP_ENOTSUP, "model.type");
    expect_change_refused("model/type", "7", XP_ENOTSUP, "model.type");
    expect_change_refused("model/dropout", "0.1", XP_ENOTSUP, "model.dropout");
    expect_change_refused("model/byte_fallback", "true", XP_ENOTSUP, "model.byte_fallback");
    expect_change_refused("model/end_of_word_suffix", "\"</w>\"", XP_ENOTSUP,
                          "model.end_of_word_suffix");
    expect_change_refused("model/continuing_subword_prefix", "\"##\"", XP_ENOTSUP,
                          "model.continuing_subword_prefix");
    expect_change_refused("model/vocab", NULL, XP_EFORMAT, "model.vocab");
    expect_change_refused("model/vocab", "{}", XP_EFORMAT, "model.vocab");
    expect_change_refused("model/vocab/!", NULL, XP_ENOTSUP, "0x21");
    expect_change_refused("model/vocab/!", "-1", XP_EFORMAT, "model.vocab[\"!\"]");
    expect_change_refused("model/vocab/!", "1.5", XP_EFORMAT, "model.vocab[\"!\"]");
    expect_change_refused("model/vocab/!", "\"0\"", XP_EFORMAT, "model.vocab[\"!\"]");
    expect_change_refused("model/vocab/!", "99999999999", XP_EFORMAT, "model.vocab[\"!\"]");
    expect_change_refused("model/vocab/!", "1", XP_EFORMAT, "id 1 belongs");
    expect_change_refused("model/merges", NULL, XP_EFORMAT, "model.merges");
    expect_change_refused("model/merges", "\"a b\"", XP_EFORMAT, "model.merges");
    expect_change_refused("model/merges/3", "\"ab\"", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "\"a b c\"", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "[\"a\"]", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "[\"a\", 1]", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "[\"a\", \"b\", \"c\"]", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "\"zz zzz\"", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "null", XP_EFORMAT, "model.merges[3]");
    expect_change_refused("model/merges/3", "\" a\"", XP_EFORMAT, "model.merges[3]");
}

static void wrong_added_tokens(void **state) {
    (void)state;
    expect_change_refused("added_tokens", "{\"a\": 1}", XP_EFORMAT, "added_tokens");
    expect_change_refused("added_tokens/0", "7", XP_EFORMAT, "added_tokens[0]");
    expect_change_refused("added_tokens/0/id", "-5", XP_EFORMAT, "added_tokens[0]");
    expect_change_refused("added_tokens/0/id", "1e30", XP_EFORMAT, "added_tokens[0]");
    expect_change_refused("added_tokens/0/content", "\"\"", XP_EFORMAT, "added_tokens[0]");
    expect_change_refused("added_tokens/0/content", "null", XP_EFORMAT, "added_tokens[0]");
    expect_change_refused("added_tokens/0/id", "3", XP_EFORMAT, "id 3 belongs");
    expect_change_refused("added_tokens/0/content", "\"!\"", XP_EFORMAT, "in model.vocab");
}

static void wrong_pipelines(void **state) {
    (void)state;
    const char *split = "pre_tokenizer/pretokenizers/0/pattern";
    expect_change_refused("normalizer", "{\"type\": \"Lowercase\"}", XP_ENOTSUP, "normalizer");
    expect_change_refused("normalizer", "7", XP_EFORMAT, "normalizer");
    expect_change_refused("normalizer",
                          "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFKC\"}]}",
                          XP_ENOTSUP, "normalizer.normalizers[0]");
    expect_change_refused("pre_tokenizer", "null", XP_ENOTSUP, "pre_tokenizer");
    expect_change_refused("pre_tokenizer", "{\"type\": \"Whitespace\"}", XP_ENOTSUP, "Whitespace");
    expect_change_refused("pre_tokenizer/pretokenizers", "7", XP_EFORMAT, "pretokenizers");
    expect_change_refused("pre_tokenizer/pretokenizers/1", "{\"type\": \"Metaspace\"}", XP_ENOTSUP,
                          "pre_tokenizer.pretokenizers[1]");
    expect_change_refused("pre_tokenizer/pretokenizers/0", "{\"type\": \"ByteLevel\"}", XP_ENOTSUP,
                          "pretokenizers[1]");
    expect_change_refused("pre_tokenizer/pretokenizers/1/use_regex", "\"yes\"", XP_EFORMAT,
                          "use_regex");
    expect_change_refused("pre_tokenizer/pretokenizers/0/behavior", "\"MergedWithNext\"",
                          XP_ENOTSUP, "behavior");
    expect_change_refused(split, "{}", XP_EFORMAT, "pretokenizers[0]");
    expect_change_refused(split, "{\"Regex\": \"(\"}", XP_EFORMAT, "pretokenizers[0].pattern");
    expect_change_refused(split, "{\"Regex\": \"\"}", XP_EFORMAT, "pretokenizers[0]");
    expect_change_refused(split, "{\"Regex\": \"\\\\bx\"}", XP_ENOTSUP, "pretokenizers[0].pattern");
    expect_change_refused(split, "{\"Regex\": \"a\", \"String\": \"a\"}", XP_EFORMAT,
                          "pretokenizers[0]");
    expect_change_refused("post_processor", "{\"type\": \"BertProcessing\"}", XP_ENOTSUP,
                          "post_processor");
    expect_change_refused("post_processor", "{\"type\": \"TemplateProcessing\"}", XP_EFORMAT,
                          "post_processor");
    expect_change_refused("post_processor", "{\"type\": \"TemplateProcessing\", \"single\": []}",
                          XP_EFORMAT, "post_processor");
    expect_change_refused(
        "post_processor",
        "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}]}",
        XP_EFORMAT, "special_tokens");
    expect_change_refused(
        "post_processor",
        "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}, "
        "{\"Sequence\": {}}], \"special_tokens\": {\"x\": {\"ids\": [123456]}}}",
        XP_EFORMAT, "ids[0]");
}

/* Every cut and many single-byte changes of the file: an error or a tokenizer, never a crash. */
static void damaged_files(void **state) {
    (void)state;
    char *data = NULL;
    size_t n = 0;
    assert_int_equal(xp_file_read(FIXTURE, 1 << 24, &data, &n), XP_OK);
    char *copy = malloc(n);
    assert_non_null(copy);
    uint32_t x = 3;
    for (int round = 0; round < 400; round++) {
        memcpy(copy, data, n);
        x = x * 1664525u + 1013904223u;
        size_t at = (x >> 8) % n;
        x = x * 1664525u + 1013904223u;
        bool cut = round % 4 == 0;
        if (!cut)
            copy[at] = round % 2 ? (char)(x >> 24) : "{}[]\",:0-"[(x >> 24) % 9];
        assert_int_equal(xp_file_write_atomic(FOLDER "/tokenizer.json", copy, cut ? at : n), XP_OK);
        xp_tokenizer *tokenizer = NULL;
        if (xp_tokenizer_load(FOLDER, &tokenizer) == XP_OK) {
            xp_token_list list = {0};
            xp_status status = xp_tokenizer_encode(tokenizer, "the cat, 12\n\xc3\xa9", 14, &list);
            assert_true(status == XP_OK || status == XP_EFORMAT);
            xp_token_list_free(&list);
        }
        xp_tokenizer_destroy(tokenizer);
    }
    free(copy);
    free(data);
}

static void wrong_configs(void **state) {
    (void)state;
    static const char *const configs[] = {"{", "[]", "{\"eos_token\": 7}",
                                          "{\"eos_token\": \"<|none|>\"}",
                                          "{\"bos_token\": {\"content\": \"<|none|>\"}}"};
    char *data = NULL;
    size_t n = 0;
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_file_read(FIXTURE, 1 << 24, &data, &n), XP_OK);
    assert_int_equal(xp_folder_create(FOLDER "/config"), XP_OK);
    assert_int_equal(xp_file_write_atomic(FOLDER "/config/tokenizer.json", data, n), XP_OK);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        assert_int_equal(xp_file_write_atomic(FOLDER "/config/tokenizer_config.json", configs[i],
                                              strlen(configs[i])),
                         XP_OK);
        assert_int_equal(xp_tokenizer_load(FOLDER "/config", &tokenizer), XP_EFORMAT);
        assert_non_null(strstr(xp_last_error(), "tokenizer_config.json"));
    }
    assert_int_not_equal(xp_tokenizer_load(FOLDER "/missing", &tokenizer), XP_OK);
    assert_int_not_equal(xp_tokenizer_load(XP_SOURCE_DIR "/tests", &tokenizer), XP_OK);
    assert_null(tokenizer);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(not_json),           cmocka_unit_test(wrong_models),
        cmocka_unit_test(wrong_added_tokens), cmocka_unit_test(wrong_pipelines),
        cmocka_unit_test(damaged_files),      cmocka_unit_test(wrong_configs),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
