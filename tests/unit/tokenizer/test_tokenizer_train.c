/* Training: the same text gives the same files, whatever the container; what it learns can be read
 * and used. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include "core/file.h"
#include "data/tokenizer.h"

#define FOLDER XP_BINARY_DIR "/test_tokenizer_train"

static const char lines[] =
    "the cat sat on the mat; the dog sat on the log\\n  the end.\\n\\u00e9t\\u00e9 1234";
static const char text[] =
    "the cat sat on the mat; the dog sat on the log\n  the end.\n\xc3\xa9t\xc3\xa9 1234";

static void write_inputs(void) {
    char line[512];
    int n = snprintf(line, sizeof(line), "{\"id\": 1, \"text\": \"%s\"}\n", lines);
    assert_int_equal(xp_folder_create(FOLDER), XP_OK);
    assert_int_equal(xp_file_write_atomic(FOLDER "/a.txt", text, sizeof(text) - 1), XP_OK);
    assert_int_equal(xp_file_write_atomic(FOLDER "/a.jsonl", line, (size_t)n), XP_OK);
    gzFile gz = gzopen(FOLDER "/a.json.gz", "wb");
    assert_non_null(gz);
    assert_int_equal(gzwrite(gz, line, (unsigned)n), n);
    assert_int_equal(gzclose(gz), Z_OK);
}

static char *train(const char *file, const char *out, int64_t vocab, int64_t *n_merges) {
    char path[512], *data = NULL;
    size_t n = 0;
    snprintf(path, sizeof(path), "%s/%s/tokenizer.json", FOLDER, out);
    char *folder = xp_path_join(FOLDER, out);
    xp_tokenizer_train_args args = {
        .n_files = 1, .files = &file, .vocab_size = vocab, .out_folder = folder};
    assert_int_equal(xp_tokenizer_train(&args, n_merges), XP_OK);
    assert_int_equal(xp_file_read(path, 1 << 24, &data, &n), XP_OK);
    free(folder);
    return data;
}

static void same_text_same_files(void **state) {
    (void)state;
    int64_t n = 0, again = 0;
    write_inputs();
    char *first = train(FOLDER "/a.txt", "one", 265, &n);
    char *second = train(FOLDER "/a.jsonl", "two", 265, &again);
    char *third = train(FOLDER "/a.json.gz", "three", 265, &again);
    assert_string_equal(first, second);
    assert_string_equal(first, third);
    assert_int_equal(n, again);
    assert_int_equal(n, 265 - 257);
    free(first);
    free(second);
    free(third);
}

static void learns_the_frequent_pairs_first(void **state) {
    (void)state;
    int64_t n = 0;
    write_inputs();
    char *json = train(FOLDER "/a.txt", "four", 262, &n);
    /* " t" and "th", "he" (5 times each) tie with others; the lowest ids win, then "the" is built.
     */
    const char *merges = strstr(json, "\"merges\"");
    assert_non_null(merges);
    assert_non_null(strstr(merges, "\"h e\""));
    assert_non_null(strstr(merges, "\"t he\""));
    free(json);
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_tokenizer_load(FOLDER "/four", &tokenizer), XP_OK);
    assert_int_equal(xp_tokenizer_vocab_size(tokenizer), 262);
    assert_int_equal(xp_tokenizer_eos(tokenizer), 261);
    assert_int_equal(xp_tokenizer_bos(tokenizer), -1);
    xp_token_list list = {0};
    assert_int_equal(xp_tokenizer_encode(tokenizer, "the", 3, &list), XP_OK);
    assert_int_equal(list.n, 1);
    xp_token_list_free(&list);
    xp_tokenizer_destroy(tokenizer);
}

static void stops_when_nothing_repeats(void **state) {
    (void)state;
    int64_t n = -1;
    write_inputs();
    assert_int_equal(xp_file_write_atomic(FOLDER "/b.txt", "abcdefg", 7), XP_OK);
    free(train(FOLDER "/b.txt", "five", 1000, &n));
    assert_int_equal(n, 0);
}

static void wrong_arguments(void **state) {
    (void)state;
    int64_t n = 0;
    const char *file = FOLDER "/a.txt", *missing = FOLDER "/missing.txt",
               *empty = FOLDER "/empty.txt", *broken = FOLDER "/broken.jsonl";
    write_inputs();
    assert_int_equal(xp_file_write_atomic(empty, "", 0), XP_OK);
    assert_int_equal(xp_file_write_atomic(broken, "{\"text\": 1}\n", 12), XP_OK);
    xp_tokenizer_train_args args = {
        .n_files = 1, .files = &file, .vocab_size = 256, .out_folder = FOLDER "/no"};
    assert_int_equal(xp_tokenizer_train(&args, &n), XP_EINVAL);
    args.vocab_size = (int64_t)1 << 40;
    assert_int_equal(xp_tokenizer_train(&args, &n), XP_EINVAL);
    args.vocab_size = 300;
    args.files = &missing;
    assert_int_not_equal(xp_tokenizer_train(&args, &n), XP_OK);
    args.files = &empty;
    assert_int_not_equal(xp_tokenizer_train(&args, &n), XP_OK);
    args.files = &broken;
    assert_int_not_equal(xp_tokenizer_train(&args, &n), XP_OK);
    args.n_files = 0;
    assert_int_equal(xp_tokenizer_train(&args, &n), XP_EINVAL);
    args.n_files = 1;
    args.files = &file;
    args.out_folder = FOLDER "/a.txt/under_a_file";
    assert_int_not_equal(xp_tokenizer_train(&args, &n), XP_OK);
    assert_int_not_equal(access(FOLDER "/no", F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_text_same_files),
        cmocka_unit_test(learns_the_frequent_pairs_first),
        cmocka_unit_test(stops_when_nothing_repeats),
        cmocka_unit_test(wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
