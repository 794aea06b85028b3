/* A loaded tokenizer: round trips, repair of UTF-8, added tokens and their flags, both forms of
 * merges, threads. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"
#include "data/tokenizer.h"

#define FIXTURE XP_SOURCE_DIR "/tests/unit/tokenizer/fixture"
#define FOLDER  XP_BINARY_DIR "/test_tokenizer"

static int setup(void **state) {
    *state = NULL;
    xp_tokenizer *tokenizer = NULL;
    if (xp_tokenizer_load(FIXTURE, &tokenizer) != XP_OK)
        return -1;
    *state = tokenizer;
    return 0;
}

static int teardown(void **state) {
    xp_tokenizer_destroy(*state);
    return 0;
}

static xp_token_list encode(const xp_tokenizer *tokenizer, const char *text, size_t n) {
    xp_token_list list = {0};
    assert_int_equal(xp_tokenizer_encode(tokenizer, text, n, &list), XP_OK);
    return list;
}

static void expect_round_trip(const xp_tokenizer *tokenizer, const char *text, size_t n,
                              const char *wanted, size_t n_wanted) {
    xp_token_list list = encode(tokenizer, text, n);
    char *back = NULL;
    size_t n_back = 0;
    assert_int_equal(xp_tokenizer_decode(tokenizer, list.ids, list.n, false, &back, &n_back),
                     XP_OK);
    assert_int_equal(n_back, n_wanted);
    assert_memory_equal(back, wanted, n_wanted);
    assert_int_equal(back[n_back], 0);
    free(back);
    xp_token_list_free(&list);
}

static void text_comes_back(void **state) {
    static const char *const texts[] = {
        "",
        "a",
        "the tokenizer's tokens",
        "  two  spaces\n\n\ttabs\r\n",
        "Gr\xc3\xb6\xc3\x9f"
        "e \xd0\x9f\xd1\x80 \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x91\x8d",
        "<|endoftext|> between <|endoftext|><|endoftext|",
        "1234567890 for (int i = 0; i < n; i++)"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        expect_round_trip(*state, texts[i], strlen(texts[i]), texts[i], strlen(texts[i]));
    expect_round_trip(*state, "a\0b", 3, "a\0b", 3);
    expect_round_trip(*state, "e\xcc\x81", 3, "\xc3\xa9", 2); /* form C */
}

static void invalid_parts_become_one_sign_each(void **state) {
#define SIGN "\xef\xbf\xbd"
    static const char *const cases[][2] = {
        {"a\xff"
         "b",
         "a" SIGN "b"},
        {"\x80\x80", SIGN SIGN},
        {"\xe4\xb8", SIGN},
        {"\xe4\xb8x", SIGN "x"},
        {"\xf0\x9f\x91", SIGN},
        {"\xf0\x9f\x91\xf0\x9f\x91\x8d", SIGN "\xf0\x9f\x91\x8d"},
        {"\xed\xa0\x80", SIGN SIGN SIGN}, /* a surrogate */
        {"\xc0\xaf", SIGN SIGN},          /* overlong */
        {"\xe0\x80\x80", SIGN SIGN SIGN},
        {"\xf4\x90\x80\x80", SIGN SIGN SIGN SIGN},
        {"\xc3\xa9\xc3", "\xc3\xa9" SIGN},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect_round_trip(*state, cases[i][0], strlen(cases[i][0]), cases[i][1],
                          strlen(cases[i][1]));
}

static void specials_are_known(void **state) {
    const xp_tokenizer *t = *state;
    int32_t eos = xp_tokenizer_eos(t);
    assert_int_equal(eos, xp_tokenizer_vocab_size(t) - 1);
    assert_int_equal(xp_tokenizer_bos(t), -1);
    xp_token_list list = encode(t, "a<|endoftext|>b", 15);
    assert_int_equal(list.n, 3);
    assert_int_equal(list.ids[1], eos);
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(xp_tokenizer_decode(t, list.ids, list.n, true, &text, &n), XP_OK);
    assert_string_equal(text, "ab");
    free(text);
    list.n = 0;
    assert_int_equal(xp_tokenizer_encode_document(t, "a", 1, &list), XP_OK);
    assert_int_equal(list.n, 2);
    assert_int_equal(list.ids[1], eos);
    int32_t wrong[] = {0, -1}, large[] = {1 << 30};
    assert_int_equal(xp_tokenizer_decode(t, wrong, 2, false, &text, &n), XP_EINVAL);
    assert_int_equal(xp_tokenizer_decode(t, large, 1, false, &text, &n), XP_EINVAL);
    xp_token_list_free(&list);
}

/* The fixture with `from` replaced by `to` throughout, loaded from a folder of its own. */
static xp_tokenizer *load_changed(const char *from, const char *to) {
    char *data = NULL;
    size_t n = 0;
    xp_text text = {0};
    assert_int_equal(xp_file_read(FIXTURE "/tokenizer.json", 1 << 24, &data, &n), XP_OK);
    assert_non_null(strstr(data, from));
    for (char *at = data, *hit; at; at = hit ? hit + strlen(from) : NULL) {
        hit = strstr(at, from);
        xp_text_add(&text, at, hit ? (size_t)(hit - at) : strlen(at));
        if (hit)
            xp_text_puts(&text, to);
    }
    assert_int_equal(xp_folder_create(FOLDER), XP_OK);
    assert_int_equal(xp_file_write_atomic(FOLDER "/tokenizer.json", text.data, text.length), XP_OK);
    xp_text_free(&text);
    free(data);
    xp_tokenizer *tokenizer = NULL;
    if (xp_tokenizer_load(FOLDER "/tokenizer.json", &tokenizer) != XP_OK)
        fail_msg("%s", xp_last_error());
    return tokenizer;
}

/* Which stretches of `text` the added token covers: its number of occurrences, and what decoding
 * gives. */
static void expect_added(const char *flags, const char *text, int occurrences,
                         const char *decoded) {
    char token[300];
    snprintf(token, sizeof(token),
             "\"added_tokens\": [\n {\"id\": 5000, \"content\": \"cat\", \"special\": false, %s},",
             flags);
    xp_tokenizer *t = load_changed("\"added_tokens\": [", token);
    xp_token_list list = encode(t, text, strlen(text));
    int found = 0;
    for (int64_t i = 0; i < list.n; i++)
        found += list.ids[i] == 5000;
    assert_int_equal(found, occurrences);
    char *back = NULL;
    size_t n = 0;
    assert_int_equal(xp_tokenizer_decode(t, list.ids, list.n, false, &back, &n), XP_OK);
    assert_string_equal(back, decoded);
    free(back);
    xp_token_list_free(&list);
    xp_tokenizer_destroy(t);
}

static void added_tokens_keep_their_flags(void **state) {
    (void)state;
    expect_added("\"normalized\": false", "cats and a cat", 2, "cats and a cat");
    expect_added("\"single_word\": true", "cats concat a cat, _cat cat2 (cat)", 2,
                 "cats concat a cat, _cat cat2 (cat)");
    expect_added("\"single_word\": true",
                 "\xc3\xa9"
                 "cat \xe4\xb8\xad"
                 "cat",
                 0,
                 "\xc3\xa9"
                 "cat \xe4\xb8\xad"
                 "cat");
    expect_added("\"lstrip\": true", "a  \n cat b", 1, "acat b");
    expect_added("\"rstrip\": true", "a cat \t\xc2\xa0 b", 1, "a catb");
    expect_added("\"lstrip\": true, \"rstrip\": true", "cat   cat  x", 2, "catcatx");
    expect_added("\"normalized\": true", "cat", 1, "cat");
    /* Behind NFC the mark has joined the letter before it, not the token. */
    expect_added("\"normalized\": false", "cat\xcc\x81", 1, "cat\xcc\x81");
}

static void longest_added_token_wins(void **state) {
    (void)state;
    xp_tokenizer *t =
        load_changed("\"added_tokens\": [", "\"added_tokens\": [{\"id\": 5000, \"content\": "
                                            "\"<a\"}, {\"id\": 5001, \"content\": \"<a>\"}, "
                                            "{\"id\": 5002, \"content\": \"a><\"},");
    xp_token_list list = encode(t, "<a><a<a>", 8);
    int32_t wanted[] = {5001, 5000, 5001};
    assert_int_equal(list.n, 3);
    assert_memory_equal(list.ids, wanted, sizeof(wanted));
    xp_token_list_free(&list);
    xp_tokenizer_destroy(t);
}

static void merges_as_pairs_are_the_same(void **state) {
    static const char text[] = "the tokenizer knows the words of this text";
    xp_tokenizer *t = load_changed("\"h e\"", "[\"h\", \"e\"]");
    xp_token_list a = encode(*state, text, sizeof(text) - 1), b = encode(t, text, sizeof(text) - 1);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, (size_t)a.n * sizeof(int32_t));
    assert_true(xp_tokenizer_hash(*state) != xp_tokenizer_hash(t));
    xp_token_list_free(&a);
    xp_token_list_free(&b);
    xp_tokenizer_destroy(t);
}

static void template_adds_bos_and_eos(void **state) {
    (void)state;
    xp_tokenizer *t =
        load_changed("\"post_processor\": {",
                     "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": "
                     "[{\"SpecialToken\": {\"id\": \"b\", \"type_id\": 0}}, "
                     "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, {\"SpecialToken\": {\"id\": "
                     "\"e\", \"type_id\": 0}}], \"pair\": [], "
                     "\"special_tokens\": {\"b\": {\"id\": \"b\", \"ids\": [7, 8], \"tokens\": "
                     "[]}, \"e\": {\"id\": \"e\", \"ids\": [9], "
                     "\"tokens\": []}}}, \"was\": {");
    assert_int_equal(xp_tokenizer_bos(t), 7); /* no tokenizer_config.json here */
    assert_int_equal(xp_tokenizer_eos(t), 9);
    xp_token_list list = {0};
    assert_int_equal(xp_tokenizer_encode_special(t, "!", 1, &list), XP_OK);
    int32_t wanted[] = {7, 8, 0, 9};
    assert_int_equal(list.n, 4);
    assert_memory_equal(list.ids, wanted, sizeof(wanted));
    xp_token_list_free(&list);
    xp_tokenizer_destroy(t);
}

typedef struct job {
    const xp_tokenizer *tokenizer;
    const xp_token_list *wanted;
    const char *text;
    size_t n;
    bool same;
} job;

static void *encode_again(void *context) {
    job *j = context;
    j->same = true;
    for (int round = 0; round < 50; round++) {
        xp_token_list list = {0};
        if (xp_tokenizer_encode(j->tokenizer, j->text, j->n, &list) != XP_OK ||
            list.n != j->wanted->n ||
            memcmp(list.ids, j->wanted->ids, (size_t)list.n * sizeof(int32_t)) != 0)
            j->same = false;
        xp_token_list_free(&list);
    }
    return NULL;
}

static void many_threads_share_one(void **state) {
    char *data = NULL;
    size_t n = 0;
    assert_int_equal(xp_file_read(FIXTURE "/tokenizer.json", 1 << 24, &data, &n), XP_OK);
    xp_token_list wanted = encode(*state, data, n);
    pthread_t threads[4];
    job jobs[4];
    for (int i = 0; i < 4; i++) {
        jobs[i] = (job){*state, &wanted, data, n, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_again, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(jobs[i].same);
    }
    xp_token_list_free(&wanted);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_comes_back),
        cmocka_unit_test(invalid_parts_become_one_sign_each),
        cmocka_unit_test(specials_are_known),
        cmocka_unit_test(added_tokens_keep_their_flags),
        cmocka_unit_test(longest_added_token_wins),
        cmocka_unit_test(merges_as_pairs_are_the_same),
        cmocka_unit_test(template_adds_bos_and_eos),
        cmocka_unit_test(many_threads_share_one),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
