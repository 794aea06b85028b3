/** TOML texts that are not valid: each is refused at the right line and column, with a message that
 * says why. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/toml.h"

typedef struct invalid_case {
    const char *toml;
    int line, column;
    const char *message; /* how it starts */
} invalid_case;

static const invalid_case cases[] = {
    {"a", 1, 2, "expected '=' after the k"},
    {"a =", 1, 4, "expected a value, found"},
    {"= 1", 1, 1, "expected a key, found '="},
    {"a = 1 b = 2", 1, 7, "expected the end of the"},
    {"a b = 1", 1, 3, "expected '=' after the k"},
    {"a = 1\na = 2", 2, 1, "'a' was already given on"},
    {"a.b = 1\na = 2", 2, 1, "'a' was already given on"},
    {"a = 1\na.b = 2", 2, 1, "'a' is no table: it was"},
    {"a..b = 1", 1, 3, "expected a key, found '."},
    {".a = 1", 1, 1, "expected a key, found '."},
    {"a. = 1", 1, 4, "expected a key, found '="},
    {"\"\"\"a\"\"\" = 1", 1, 1, "a key cannot be a multi-"},
    {"\303\251 = 1", 1, 1, "expected a key, found '\303\251"},
    {"'a\n' = 1", 1, 1, "this string is not close"},
    {"a == 1", 1, 4, "expected a value, found"},
    {"a : 1", 1, 3, "expected '=' after the k"},
    {"a = 1\n'a' = 2", 2, 1, "'a' was already given on"},
    {"a = \n1", 1, 5, "expected a value, found"},
    {"a = 01", 1, 5, "a number cannot start wi"},
    {"a = -01", 1, 5, "a number cannot start wi"},
    {"a = +0x1", 1, 5, "'+0x1' is not a value; s"},
    {"a = 1__0", 1, 5, "'1__0' is not a value; s"},
    {"a = _1", 1, 5, "'_1' is not a value; str"},
    {"a = 1_", 1, 5, "'1_' is not a value; str"},
    {"a = 0x_1", 1, 5, "'0x_1' is not a value; s"},
    {"a = 0x", 1, 5, "'0x' is not a value; str"},
    {"a = 0b2", 1, 5, "'0b2' is not a value; st"},
    {"a = 0o8", 1, 5, "'0o8' is not a value; st"},
    {"a = 0XFF", 1, 5, "'0XFF' is not a value; s"},
    {"a = 9223372036854775808", 1, 5, "this integer does not fi"},
    {"a = -9223372036854775809", 1, 5, "this integer does not fi"},
    {"a = 0x8000000000000000", 1, 5, "this integer does not fi"},
    {"a = ++1", 1, 5, "'++1' is not a value; st"},
    {"a = 1a", 1, 5, "'1a' is not a value; str"},
    {"a = 0xg", 1, 5, "'0xg' is not a value; st"},
    {"a = .5", 1, 5, "'.5' is not a value; str"},
    {"a = 5.", 1, 5, "'5.' is not a value; str"},
    {"a = 5.e1", 1, 5, "'5.e1' is not a value; s"},
    {"a = 1e", 1, 5, "'1e' is not a value; str"},
    {"a = 1e1.5", 1, 5, "'1e1.5' is not a value;"},
    {"a = 1._5", 1, 5, "'1._5' is not a value; s"},
    {"a = 1_.5", 1, 5, "'1_.5' is not a value; s"},
    {"a = 1.2.3", 1, 5, "'1.2.3' is not a value;"},
    {"a = Inf", 1, 5, "'Inf' is not a value; st"},
    {"a = NaN", 1, 5, "'NaN' is not a value; st"},
    {"a = infinity", 1, 5, "'infinity' is not a valu"},
    {"a = 1e400", 1, 5, "this float does not fit"},
    {"a = 03.1", 1, 5, "a number cannot start wi"},
    {"a = e5", 1, 5, "'e5' is not a value; str"},
    {"a = 1e_5", 1, 5, "'1e_5' is not a value; s"},
    {"a = True", 1, 5, "'True' is not a value; s"},
    {"a = truer", 1, 5, "'truer' is not a value;"},
    {"a = nil", 1, 5, "'nil' is not a value; st"},
    {"a = x", 1, 5, "'x' is not a value; stri"},
    {"a = \"x", 1, 5, "this string is never clo"},
    {"a = \"x\ny\"", 1, 5, "this string is not close"},
    {"a = 'x", 1, 5, "this string is never clo"},
    {"a = \"\\x41\"", 1, 6, "unknown escape; use \\b \\"},
    {"a = \"\\q\"", 1, 6, "unknown escape; use \\b \\"},
    {"a = \"\\u12\"", 1, 6, "\\u needs 4 hexadecimal d"},
    {"a = \"\\ud800\"", 1, 6, "U+D800 is not a Unicode"},
    {"a = \"\\U00110000\"", 1, 6, "U+110000 is not a Unicod"},
    {"a = \"\"\"x", 1, 5, "this string is never clo"},
    {"a = \"\"\"x\"\"\"\"\"\"", 1, 14, "expected the end of the"},
    {"a = '''x''''''", 1, 14, "expected the end of the"},
    {"a = \"\001\"", 1, 6, "control character 0x01 i"},
    {"a = 'x\177'", 1, 7, "control character 0x7f i"},
    {"a = \"\"\"a \\ b\"\"\"", 1, 10, "unknown escape; use \\b \\"},
    {"a = \"x\" y", 1, 9, "expected the end of the"},
    {"a = 1 # \037", 1, 9, "control character 0x1f i"},
    {"a = \"a\rb\"", 1, 7, "control character 0x0d i"},
    {"a = '''\013'''", 1, 8, "control character 0x0b i"},
    {"a = 1\rb = 2", 1, 6, "expected the end of the"},
    {"a = 1979-5-27", 1, 10, "a date or time needs exa"},
    {"a = 1979-13-01", 1, 10, "the month must be 1 to 1"},
    {"a = 1979-02-29", 1, 13, "the day must be 1 to 28"},
    {"a = 1979-02-30T00:00:00Z", 1, 13, "the day must be 1 to 28"},
    {"a = 24:00:00", 1, 5, "the hour must be 0 to 23"},
    {"a = 12:60:00", 1, 8, "the minute must be 0 to"},
    {"a = 12:00:61", 1, 11, "the second must be 0 to"},
    {"a = 12:30", 1, 10, "expected ':' and the sec"},
    {"a = 1979-05-27T", 1, 16, "a date or time needs exa"},
    {"a = 1979-05-27T07:32", 1, 21, "expected ':' and the sec"},
    {"a = 1979-05-27T07:32:00.", 1, 24, "a fraction of a second n"},
    {"a = 1979-05-27T07:32:00+25:00", 1, 25, "the offset hour must be"},
    {"a = 1979-05-27T07:32:00+1:00", 1, 25, "a date or time needs exa"},
    {"a = 12:00:00Z", 1, 13, "expected the end of the"},
    {"a = 1979-05-27x", 1, 15, "expected the end of the"},
    {"a = 79-05-27", 1, 5, "'79-05-27' is not a valu"},
    {"a = 1979-05-27  07:32:00", 1, 17, "expected the end of the"},
    {"a = 1979-00-01", 1, 10, "the month must be 1 to 1"},
    {"a = [1 2]", 1, 8, "expected ',' or ']' in t"},
    {"a = [1,,2]", 1, 8, "expected a value, found"},
    {"a = [,1]", 1, 6, "expected a value, found"},
    {"a = [1", 1, 7, "expected ',' or ']' in t"},
    {"a = [1, 2", 1, 10, "expected ',' or ']' in t"},
    {"a = ]", 1, 5, "expected a value, found"},
    {"a = [1]]", 1, 8, "expected the end of the"},
    {"a = [1}", 1, 7, "expected ',' or ']' in t"},
    {"a = {b = 1", 1, 11, "expected ',' or '}' in t"},
    {"a = {b = 1,}", 1, 12, "expected a key, found '}"},
    {"a = {b = 1\n}", 1, 11, "expected ',' or '}' in t"},
    {"a = {b = 1, b = 2}", 1, 13, "'b' was already given on"},
    {"a = {b}", 1, 7, "expected '=' after the k"},
    {"a = {, b = 1}", 1, 6, "expected a key, found ',"},
    {"a = {b = 1 c = 2}", 1, 12, "expected ',' or '}' in t"},
    {"a = {}\na.b = 1", 2, 1, "'a' cannot be extended:"},
    {"a = {b.c = 1, b = 2}", 1, 15, "'b' was already given on"},
    {"a = {b = {c = 1}, b.d = 2}", 1, 19, "'b' cannot be extended:"},
    {"[a]\nb = {}\n[a.b]", 3, 4, "'b' is already defined o"},
    {"a = {b = 1}\n[a.c]", 2, 2, "'a' cannot be extended:"},
    {"[a", 1, 3, "expected ']' after the t"},
    {"[a]]", 1, 4, "expected the end of the"},
    {"[]", 1, 2, "expected a key, found ']"},
    {"[a.]", 1, 4, "expected a key, found ']"},
    {"[a]\n[a]", 2, 2, "'a' is already defined o"},
    {"[a] b = 1", 1, 5, "expected the end of the"},
    {"[a.b]\n[a.b]", 2, 4, "'b' is already defined o"},
    {"a = 1\n[a]", 2, 2, "'a' is already defined,"},
    {"a = 1\n[a.b]", 2, 2, "'a' is no table: it was"},
    {"a.b = 1\n[a]", 2, 2, "'a' is already defined o"},
    {"[a]\nb.c = 1\n[a.b]", 3, 4, "'b' is already defined o"},
    {"[[a]", 1, 5, "expected ']]' after the"},
    {"[ [a]]", 1, 3, "expected a key, found '["},
    {"[[a]]\n[a]", 2, 2, "'a' is already defined,"},
    {"[a]\n[[a]]", 2, 3, "'a' is already defined,"},
    {"a = []\n[[a]]", 2, 3, "'a' is already defined,"},
    {"a = [{b = 1}]\n[a.c]", 2, 2, "'a' is no table: it was"},
    {"[a.b.c]\n[a]\nb.c.d = 1", 3, 3, "'c' cannot be extended b"},
    {"[[a.b]]\n[a]\nb.c = 1", 3, 1, "'b' is no table: it was"},
    {"[[]]", 1, 3, "expected a key, found ']"},
    {"[a\nb]", 1, 3, "expected ']' after the t"},
    {"[[a]] x", 1, 7, "expected the end of the"},
    {"[a.b]\n[a]\nb = 1", 3, 1, "'b' was already given on"},
    {"[[a.b]]\n[a.b]", 2, 4, "'b' is already defined,"},
    {"[a]\nb = 1\n[a.b.c]", 3, 4, "'b' is no table: it was"},

};

/* Bytes that are not UTF-8, or that end a C string. */
static const struct {
    const char *toml;
    size_t n_bytes;
    int line, column;
} byte_cases[] = {
    {"# \000", 3, 1, 3},
    {"a = \"\000\"", 7, 1, 6},
    {"a\000 = 1", 6, 1, 2},
    {"a = '\377'", 7, 1, 6},
    {"a = 1\n# \300\200", 10, 2, 3},      /* overlong */
    {"a = '\355\240\200'", 9, 1, 6},      /* surrogate */
    {"a = '\364\220\200\200'", 10, 1, 6}, /* past U+10FFFF */
    {"a = '\303\251\303", 8, 1, 7},       /* cut; columns count characters */
    {"\376\377", 2, 1, 1},                /* UTF-16 */
};

static void every_case_is_refused_at_its_place(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_toml *toml = NULL;
        xp_status status = xp_toml_parse("case", cases[i].toml, strlen(cases[i].toml), &toml);
        if (status != XP_ECONFIG)
            fail_msg("accepted: %s", cases[i].toml);
        assert_null(toml);
        char want[200];
        snprintf(want, sizeof want, "case:%d:%d: %s", cases[i].line, cases[i].column,
                 cases[i].message);
        if (strncmp(xp_last_error(), want, strlen(want)) != 0)
            fail_msg("%s\n gave %s\n want %s", cases[i].toml, xp_last_error(), want);
    }
}

static void bad_bytes_are_refused_at_their_place(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof byte_cases / sizeof byte_cases[0]; i++) {
        xp_toml *toml = NULL;
        assert_int_equal(xp_toml_parse("case", byte_cases[i].toml, byte_cases[i].n_bytes, &toml),
                         XP_ECONFIG);
        char want[64];
        snprintf(want, sizeof want, "case:%d:%d: ", byte_cases[i].line, byte_cases[i].column);
        if (strncmp(xp_last_error(), want, strlen(want)) != 0)
            fail_msg("byte case %zu gave %s, want %s", i, xp_last_error(), want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case_is_refused_at_its_place),
        cmocka_unit_test(bad_bytes_are_refused_at_their_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
