/* Patterns and NFC: what the reference engines do, on their own. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "data/charset.h"
#include "data/nfc.h"
#include "data/pattern.h"

/* Matches in [..], gaps in (..). */
static xp_status show(void *context, const xp_pattern_piece *piece) {
    xp_text *out = context;
    xp_text_puts(out, piece->matched ? "[" : "(");
    xp_text_add(out, piece->bytes, piece->n);
    xp_text_puts(out, piece->matched ? "]" : ")");
    return XP_OK;
}

static void expect(const char *regex, const char *text, const char *wanted) {
    xp_pattern *pattern = NULL;
    xp_pattern_scratch *scratch = NULL;
    xp_text out = {0};
    xp_text_puts(&out, "");
    assert_int_equal(xp_pattern_compile(regex, strlen(regex), &pattern), XP_OK);
    assert_int_equal(xp_pattern_scratch_create(pattern, &scratch), XP_OK);
    assert_int_equal(xp_pattern_split(pattern, scratch, text, strlen(text), show, &out), XP_OK);
    assert_string_equal(out.data, wanted);
    xp_text_free(&out);
    xp_pattern_scratch_destroy(scratch);
    xp_pattern_destroy(pattern);
}

static void patterns_split_as_oniguruma_does(void **state) {
    (void)state;
    expect("a|b", "xaby", "(x)[a][b](y)");
    expect("\\p{L}+", "año 1 \xf0\x90\x90\x80!", "[año]( 1 )[\xf0\x90\x90\x80](!)");
    expect("\\p{N}", "1²\xe0\xa5\xa9x", "[1][²][\xe0\xa5\xa9](x)");
    expect("[^\\s\\p{L}]+", "a .,; b", "(a )[.,;]( b)");
    expect("\\s+(?!\\S)|\\s+", "a   b", "(a)[  ][ ](b)");
    expect("(?i:'s|'t)", "'S'\xc5\xbf't'x", "['S]['\xc5\xbf]['t]('x)");
    expect("(?i)ab|c", "ABC", "[AB][C]");
    expect("\\p{N}{1,3}", "12345", "[123][45]");
    expect("a{,2}b", "aab", "[aab]");
    expect("\\h+", "xfF0g", "(x)[fF0](g)");
    expect("^.", "ab\ncd\n", "[a](b\n)[c](d\n)");
    expect(".$", "ab\ncd", "(a)[b](\nc)[d]");
    expect("[\\]\\-a-c]+", "x]-b", "(x)[]-b]");
    expect("[]a]+", "x]ay", "(x)[]a](y)");
    expect("\\x41|\\u4e2d|\\x{1F600}", "A中\xf0\x9f\x98\x80", "[A][中][\xf0\x9f\x98\x80]");
    expect("b?", "abc", "(a)[b](c)");
    expect("(?<=a)b(?=c)|[一-龥]+", "abcab中文", "(a)[b](cab)[中文]");
    expect("\\P{L}+|\\p{^N}", "1a", "[1][a]");
    expect("\\s", "\xc2\x85\xe1\xa0\x8e\xe2\x80\x8b", "[\xc2\x85](\xe1\xa0\x8e\xe2\x80\x8b)");
    /* Letters of Unicode 15 and 16: U+31350 and U+105C0. */
    expect("\\p{L}+", "\xf0\xb1\x8d\x90\xf0\x90\x97\x80.", "[\xf0\xb1\x8d\x90\xf0\x90\x97\x80](.)");
    expect("{|}", "{}", "[{][}]");
    expect("[^\\s\\S]", "a", "(a)");
}

static void patterns_that_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *regex;
        xp_status code;
    } bad[] = {
        {"(", XP_EFORMAT},          {")", XP_EFORMAT},           {"[a", XP_EFORMAT},
        {"[", XP_EFORMAT},          {"*a", XP_EFORMAT},          {"(*UTF)a", XP_EFORMAT},
        {"a\\", XP_EFORMAT},        {"\\p{L", XP_EFORMAT},       {"\\p{Klingon}", XP_ENOTSUP},
        {"[b-a]", XP_EFORMAT},      {"[[:alpha:]]", XP_ENOTSUP}, {"[a&&b]", XP_ENOTSUP},
        {"\\bword\\b", XP_ENOTSUP}, {"(a)\\1", XP_ENOTSUP},      {"(?<n>a)", XP_ENOTSUP},
        {"a(?i)b", XP_ENOTSUP},     {"(?x: a)", XP_ENOTSUP},     {"\\R", XP_ENOTSUP},
        {"a{2,3}+", XP_ENOTSUP},    {"(?i:é)", XP_ENOTSUP},      {"(?i:\\p{Lu})", XP_ENOTSUP},
        {"\\pL", XP_ENOTSUP},       {"\\x{110000}", XP_ENOTSUP}, {"\\x{zz}", XP_EFORMAT},
        {"(?<=a*)b", XP_EFORMAT},   {"a\xff", XP_EFORMAT},       {"a{3,2}", XP_EFORMAT},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        xp_pattern *pattern = NULL;
        assert_int_equal(xp_pattern_compile(bad[i].regex, strlen(bad[i].regex), &pattern),
                         bad[i].code);
        assert_null(pattern);
        assert_non_null(strstr(xp_last_error(), "pattern"));
    }
}

static void exponential_patterns_end(void **state) {
    (void)state;
    xp_pattern *pattern = NULL;
    xp_pattern_scratch *scratch = NULL;
    xp_text out = {0};
    char text[64];
    memset(text, 'a', sizeof(text));
    assert_int_equal(xp_pattern_compile("(?:(?:a|a)*)*b", 14, &pattern), XP_OK);
    assert_int_equal(xp_pattern_scratch_create(pattern, &scratch), XP_OK);
    xp_status status = xp_pattern_split(pattern, scratch, text, sizeof(text), show, &out);
    assert_true(status == XP_OK || status == XP_EFORMAT);
    xp_text_free(&out);
    xp_pattern_scratch_destroy(scratch);
    xp_pattern_destroy(pattern);
}

static void expect_nfc(const char *text, const char *wanted) {
    xp_text out = {0};
    bool changed = false;
    assert_int_equal(xp_nfc_normalize(text, strlen(text), &out, &changed), XP_OK);
    assert_int_equal(changed, strcmp(text, wanted) != 0);
    if (changed)
        assert_string_equal(out.data, wanted);
    xp_text_free(&out);
}

static void nfc(void **state) {
    (void)state;
    expect_nfc("plain", "plain");
    expect_nfc("", "");
    expect_nfc("caf\x65\xcc\x81!", "caf\xc3\xa9!");
    expect_nfc("\xcc\x81", "\xcc\x81");
    expect_nfc("\xe2\x84\xab", "\xc3\x85");          /* Angstrom sign */
    expect_nfc("s\xcc\x87\xcc\xa3", "\xe1\xb9\xa9"); /* reordered, then one letter */
    expect_nfc("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"); /* Hangul */
    expect_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");   /* excluded from composition */
    expect_nfc("\xc3\xa9\xcc\xa3x", "\xe1\xba\xb9\xcc\x81x"); /* taken apart, joined anew */
    expect_nfc("\xf0\x90\x97\x92\xcc\x87",
               "\xf0\x90\x97\x92\xcc\x87"); /* composes since Unicode 16 only */
    expect_nfc("x\xcc\x95\xe1\xaa\xbf", "x\xcc\x95\xe1\xaa\xbf"); /* a mark of Unicode 13 stays */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_split_as_oniguruma_does),
        cmocka_unit_test(patterns_that_are_refused),
        cmocka_unit_test(exponential_patterns_end),
        cmocka_unit_test(nfc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
