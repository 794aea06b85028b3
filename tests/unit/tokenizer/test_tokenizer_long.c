/* No text is slow: ten megabytes of one thing take well under the limit of five seconds
 * (sanitizers: shorter texts). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/tokenizer.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_BYTES ((size_t)1 << 20)
#else
#define N_BYTES ((size_t)10000000)
#endif
#define LIMIT_S 5.0

static void ten_megabytes_of_one_thing(void **state) {
    (void)state;
    static const char *const units[] = {"a",        " ",
                                        "\n",       "\xe4\xb8\xad",
                                        "\xcc\x81", "\xcc\x81\xcc\xa3",
                                        "1",        ".",
                                        "t",        "th",
                                        " \n",      "\r\n",
                                        "\xff",     "<",
                                        "<|",       "<|endoftext|>",
                                        "'s",       "=",
                                        "\t ",      "\xf0\x9f\x91\x8d\xe2\x80\x8d",
                                        "the",      "\xe0\xbc\x98"};
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_tokenizer_load(XP_SOURCE_DIR "/tests/unit/tokenizer/fixture", &tokenizer),
                     XP_OK);
    char *text = malloc(N_BYTES);
    assert_non_null(text);
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t length = strlen(units[u]), n = N_BYTES / length * length;
        for (size_t i = 0; i < n; i += length)
            memcpy(text + i, units[u], length);
        xp_token_list list = {0};
        double start = xp_time_s();
        assert_int_equal(xp_tokenizer_encode(tokenizer, text, n, &list), XP_OK);
        double seconds = xp_time_s() - start;
        if (seconds > LIMIT_S)
            fail_msg("%zu bytes of \"%s\": %.2f s", n, units[u], seconds);
        assert_true(list.n > 0);
        xp_token_list_free(&list);
    }
    free(text);
    xp_tokenizer_destroy(tokenizer);
}

/* Seeded letters without a space: every rank of the vocabulary is open at once. */
static void one_long_word_of_all_letters(void **state) {
    (void)state;
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_tokenizer_load(XP_SOURCE_DIR "/tests/unit/tokenizer/fixture", &tokenizer),
                     XP_OK);
    char *text = malloc(N_BYTES), *back = NULL;
    size_t n_back = 0;
    assert_non_null(text);
    uint32_t x = 1;
    for (size_t i = 0; i < N_BYTES; i++) {
        x = x * 1664525u + 1013904223u;
        text[i] = "etaoinshrdlu"[(x >> 24) % 12];
    }
    xp_token_list list = {0};
    double start = xp_time_s();
    assert_int_equal(xp_tokenizer_encode(tokenizer, text, N_BYTES, &list), XP_OK);
    assert_true(xp_time_s() - start < 4 * LIMIT_S);
    assert_int_equal(xp_tokenizer_decode(tokenizer, list.ids, list.n, false, &back, &n_back),
                     XP_OK);
    assert_int_equal(n_back, N_BYTES);
    assert_memory_equal(back, text, N_BYTES);
    free(back);
    free(text);
    xp_token_list_free(&list);
    xp_tokenizer_destroy(tokenizer);
}

/* Words just below and above the length where the merging changes its method give the same ids. */
static void both_ways_to_merge_agree(void **state) {
    (void)state;
    xp_tokenizer *tokenizer = NULL;
    assert_int_equal(xp_tokenizer_load(XP_SOURCE_DIR "/tests/unit/tokenizer/fixture", &tokenizer),
                     XP_OK);
    char word[400];
    uint32_t x = 7;
    for (int round = 0; round < 300; round++) {
        size_t n = 60 + (size_t)round % 37;
        for (size_t i = 0; i < n; i++) {
            x = x * 1664525u + 1013904223u;
            word[i] = "etaoinshrdlu"[(x >> 24) % 12];
        }
        /* A letter that merges with nothing keeps two copies apart inside one long word. */
        xp_token_list one = {0}, three = {0};
        memcpy(word + n, "\xc3\xbf", 2);
        memcpy(word + n + 2, word, n + 2);
        memcpy(word + 2 * n + 4, word, n);
        assert_int_equal(xp_tokenizer_encode(tokenizer, word, n, &one), XP_OK);
        assert_int_equal(xp_tokenizer_encode(tokenizer, word, 3 * n + 4, &three), XP_OK);
        assert_true(three.n >= 3 * one.n + 2 && three.n <= 3 * one.n + 4);
        assert_memory_equal(three.ids, one.ids, (size_t)one.n * sizeof(int32_t));
        assert_memory_equal(three.ids + three.n - one.n, one.ids, (size_t)one.n * sizeof(int32_t));
        xp_token_list_free(&one);
        xp_token_list_free(&three);
    }
    xp_tokenizer_destroy(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_megabytes_of_one_thing),
        cmocka_unit_test(one_long_word_of_all_letters),
        cmocka_unit_test(both_ways_to_merge_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
