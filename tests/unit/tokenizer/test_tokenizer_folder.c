/* What stands beside tokenizer.json, as people have it: numbers without meaning here, a byte order mark, BOS and EOS in
 * whichever file names them; and added tokens that are listed twice. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "data/tokenizer.h"

#define FIXTURE XP_SOURCE_DIR "/tests/unit/tokenizer/fixture/tokenizer.json"
#define FOLDER  XP_BINARY_DIR "/test_tokenizer_folder"

static const char *const beside[] = {"tokenizer_config.json", "special_tokens_map.json",
                                     "config.json", "generation_config.json"};

static int set_up(void **state) {
    char *data = NULL;
    size_t n = 0;
    (void)state;
    assert_int_equal(xp_folder_create(FOLDER), XP_OK);
    assert_int_equal(xp_file_read(FIXTURE, 1 << 24, &data, &n), XP_OK);
    assert_int_equal(xp_file_write_atomic(FOLDER "/tokenizer.json", data, n), XP_OK);
    free(data);
    for (int i = 0; i < 4; i++) {
        char path[512];
        snprintf(path, sizeof path, FOLDER "/%s", beside[i]);
        unlink(path);
    }
    return 0;
}

static void put(const char *name, const char *text, size_t n) {
    char path[512];
    snprintf(path, sizeof path, FOLDER "/%s", name);
    assert_int_equal(xp_file_write_atomic(path, text, n), XP_OK);
}

static xp_tokenizer *load(void) {
    xp_tokenizer *t = NULL;
    if (xp_tokenizer_load(FOLDER, &t) != XP_OK)
        fail_msg("%s", xp_last_error());
    return t;
}

static void expect_eos(int32_t eos, const char *note) {
    xp_tokenizer *t = load();
    bool warning;
    const char *text = xp_tokenizer_border_note(t, &warning);
    assert_int_equal(xp_tokenizer_eos(t), eos);
    assert_int_equal(warning, eos < 0);
    if (note == NULL ? text != NULL : text == NULL || strstr(text, note) == NULL)
        fail_msg("note \"%s\" instead of \"%s\"", text ? text : "none", note ? note : "none");
    xp_tokenizer_destroy(t);
}

static void numbers_that_are_not_used_are_not_refused(void **state) {
    (void)state;
    static const char *const numbers[] = {"1000000000000000019884624838656", "1e30",     "1e400",
                                          "-99999999999999999999",           "Infinity", "NaN"};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        char text[256];
        snprintf(text, sizeof text,
                 "{\"model_max_length\": %s, \"eos_token\": \"<|end|>\", \"x\": [%s]}", numbers[i],
                 numbers[i]);
        put(beside[0], text, strlen(text));
        xp_tokenizer *t = NULL;
        /* the fixture may have no such token: only the number must not be what is wrong */
        xp_status status = xp_tokenizer_load(FOLDER, &t);
        assert_true(status == XP_OK || strstr(xp_last_error(), "<|end|>"));
        xp_tokenizer_destroy(t);
    }
    static const char *const wrong[] = {"01", "1.", "00000000000000000000000", "+1", "1e", "-"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char text[64];
        xp_tokenizer *t = NULL;
        snprintf(text, sizeof text, "{\"model_max_length\": %s}", wrong[i]);
        put(beside[0], text, strlen(text));
        assert_int_equal(xp_tokenizer_load(FOLDER, &t), XP_EFORMAT);
    }
}

static void a_nul_byte_is_refused_wherever_it_stands(void **state) {
    (void)state;
    static const char texts[][32] = {"{\"a\": 1\0}", "{\"a\": 1.5\0}", "{\"a\": 1}\0",
                                     "{\"a\"\0: 1}"};
    static const size_t sizes[] = {9, 11, 9, 9};
    for (int i = 0; i < 4; i++) {
        xp_tokenizer *t = NULL;
        put(beside[0], texts[i], sizes[i]);
        assert_int_equal(xp_tokenizer_load(FOLDER, &t), XP_EFORMAT);
        assert_non_null(strstr(xp_last_error(), "NUL"));
    }
}

static void a_byte_order_mark_is_skipped(void **state) {
    (void)state;
    static const char text[] = "\xef\xbb\xbf{\"eos_token\": null}";
    put(beside[0], text, strlen(text));
    expect_eos(-1, "no EOS");
}

static const char *const tiny_added =
    "{\"added_tokens\": [%s], \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": "
    "false, "
    "\"use_regex\": true}, \"model\": {\"type\": \"BPE\", \"vocab\": {%s}, \"merges\": []}}";

/* 256 bytes as the files spell them, ids 0..255. */
static void put_bytes_tokenizer(const char *added) {
    char vocab[8192] = "";
    size_t at = 0;
    int extra = 256;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        at += (size_t)snprintf(vocab + at, sizeof vocab - at, "%s\"\\u%04x\": %d", byte ? "," : "",
                               printable ? byte : extra++, byte);
    }
    char *text = malloc(20000);
    snprintf(text, 20000, tiny_added, added, vocab);
    put("tokenizer.json", text, strlen(text));
    free(text);
}

static void eos_is_found_in_the_files_that_name_it(void **state) {
    (void)state;
    put_bytes_tokenizer("{\"id\": 256, \"content\": \"<e>\", \"special\": true}, "
                        "{\"id\": 257, \"content\": \"<f>\", \"special\": true}");
    expect_eos(-1, "no EOS and no BOS");
    put(beside[3], "{\"eos_token_id\": 257}", 21);
    expect_eos(257, "<f>, is the one of generation_config.json");
    put(beside[2], "{\"eos_token_id\": [256, 257], \"bos_token_id\": 257}", 49);
    expect_eos(256, "config.json");
    put(beside[1], "{\"eos_token\": {\"content\": \"<f>\"}, \"bos_token\": \"<e>\"}", 53);
    expect_eos(257, "special_tokens_map.json");
    xp_tokenizer *t = load();
    assert_int_equal(xp_tokenizer_bos(t), 256);
    xp_tokenizer_destroy(t);
    put(beside[0], "{\"eos_token\": \"<e>\"}", 20);
    expect_eos(256, NULL);
    /* ids that are no tokens name nothing */
    unlink(FOLDER "/tokenizer_config.json");
    unlink(FOLDER "/special_tokens_map.json");
    unlink(FOLDER "/generation_config.json");
    static const char *const odd[] = {"{\"eos_token_id\": 999}",   "{\"eos_token_id\": -1}",
                                      "{\"eos_token_id\": \"x\"}", "{\"eos_token_id\": []}",
                                      "{\"eos_token_id\": 1e30}",  "{}"};
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        put(beside[2], odd[i], strlen(odd[i]));
        expect_eos(-1, "no EOS");
    }
}

static void a_token_listed_twice_counts_once_the_first(void **state) {
    (void)state;
    put_bytes_tokenizer("{\"id\": 256, \"content\": \"<e>\", \"special\": true, \"lstrip\": true}, "
                        "{\"id\": 256, \"content\": \"<e>\", \"special\": false}, "
                        "{\"id\": 300, \"content\": \"<e>\"}, {\"id\": 257, \"content\": \"<f>\"}");
    xp_tokenizer *t = load();
    xp_token_list list = {0};
    assert_int_equal(xp_tokenizer_vocab_size(t), 258); /* 300 is no token */
    assert_int_equal(xp_tokenizer_encode(t, "a <e>b<f>", 9, &list), XP_OK);
    static const int32_t wanted[] = {'a', 256, 'b', 257}; /* lstrip is the first's */
    assert_int_equal(list.n, 4);
    assert_memory_equal(list.ids, wanted, sizeof wanted);
    char *text;
    size_t n;
    assert_int_equal(xp_tokenizer_decode(t, list.ids, list.n, true, &text, &n), XP_OK);
    assert_string_equal(text, "ab<f>"); /* so is special */
    assert_true(xp_tokenizer_has(t, 257));
    assert_false(xp_tokenizer_has(t, 258));
    assert_false(xp_tokenizer_has(t, -1));
    free(text);
    xp_token_list_free(&list);
    xp_tokenizer_destroy(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(numbers_that_are_not_used_are_not_refused, set_up),
        cmocka_unit_test_setup(a_nul_byte_is_refused_wherever_it_stands, set_up),
        cmocka_unit_test_setup(a_byte_order_mark_is_skipped, set_up),
        cmocka_unit_test_setup(eos_is_found_in_the_files_that_name_it, set_up),
        cmocka_unit_test_setup(a_token_listed_twice_counts_once_the_first, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
