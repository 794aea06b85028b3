/** The reader's limits: depth, time on large texts, and texts cut anywhere. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/toml.h"
#include "core/file.h"

static xp_status parse(const xp_text *text) {
    assert_false(text->failed);
    xp_toml *toml = NULL;
    xp_status status = xp_toml_parse("case", text->data, text->length, &toml);
    if (status == XP_OK) {
        xp_text json = {0}; /* a walk over the tree must not overflow the stack either */
        xp_toml_add_json(toml, &json);
        assert_false(json.failed);
        xp_text_free(&json);
    }
    xp_toml_destroy(toml);
    return status;
}

static void repeat(xp_text *text, const char *piece, int n) {
    for (int i = 0; i < n; i++)
        xp_text_puts(text, piece);
}

static void deep_nesting_is_refused_not_fatal(void **state) {
    (void)state;
    static const struct {
        const char *front, *piece;
    } shapes[] = {{"a = ", "["}, {"a = ", "{a="},  {"[a", ".a"},    {"[[a", ".a"},
                  {"a", ".a"},   {"a = {b", ".b"}, {"a = ", "[{a="}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        xp_text text = {0};
        xp_text_puts(&text, shapes[i].front);
        repeat(&text, shapes[i].piece, 200000);
        assert_int_equal(parse(&text), XP_ECONFIG);
        assert_non_null(strstr(xp_last_error(), "nested deeper than 256 levels"));
        xp_text_free(&text);
    }
}

static void depth_adds_up_over_headers_and_keys(void **state) {
    (void)state;
    xp_text text = {0};
    xp_text_puts(&text, "[a");
    repeat(&text, ".a", 200);
    xp_text_puts(&text, "]\nb");
    repeat(&text, ".b", 100);
    xp_text_puts(&text, " = 1\n");
    assert_int_equal(parse(&text), XP_ECONFIG);
    xp_text_clear(&text);
    for (int i = 0; i < 300; i++) { /* arrays of tables inside one another */
        xp_text_puts(&text, "[[a");
        repeat(&text, ".a", i < 250 ? i : 250);
        xp_text_puts(&text, "]]\n");
    }
    assert_int_equal(parse(&text), XP_ECONFIG);
    xp_text_free(&text);
}

static void nesting_up_to_the_limit_works(void **state) {
    (void)state;
    xp_text text = {0};
    xp_text_puts(&text, "a = ");
    repeat(&text, "[", XP_TOML_MAX_DEPTH);
    repeat(&text, "]", XP_TOML_MAX_DEPTH);
    assert_int_equal(parse(&text), XP_OK);
    xp_text_free(&text);
}

/** Shapes that cost quadratic time in careless readers: many keys, tables, elements, dots, long
 * strings and lines. */
static void fill_shape(int shape, int n, xp_text *text) {
    for (int i = 0; i < n; i++) {
        switch (shape) {
        case 0:
            xp_text_printf(text, "key%d = %d\n", i, i);
            break;
        case 1:
            xp_text_printf(text, "[table%d]\na = 1\n", i);
            break;
        case 2:
            xp_text_puts(text, "[[array]]\na = 1\n");
            break;
        case 3:
            xp_text_printf(text, "a.b.c%d.d = 1\n", i);
            break;
        case 4:
            xp_text_puts(text, i ? "1,  " : "a = [");
            break;
        case 5:
            xp_text_puts(text, i ? "\"\"x\\n" : "a = \"\"\"");
            break;
        case 6:
            xp_text_printf(text, "%sk%d = 1", i ? ", " : "a = {", i);
            break;
        default:
            xp_text_puts(text, i ? "[],{}," : "a = [");
            break;
        }
    }
    static const char *const ends[] = {"", "", "", "", "]", "\"\"\"", "}", "]"};
    xp_text_puts(text, ends[shape]);
}

static void time_is_linear(void **state) {
    (void)state;
    for (int shape = 0; shape < 8; shape++) {
        xp_text text = {0};
        fill_shape(shape, 200000, &text);
        double start = xp_time_s();
        if (parse(&text) != XP_OK)
            fail_msg("shape %d: %s", shape, xp_last_error());
        double seconds = xp_time_s() - start;
        /* 0.1 s each on a slow core; quadratic readers need minutes. */
        if (seconds > 10)
            fail_msg("shape %d took %.1f s", shape, seconds);
        xp_text_free(&text);
    }
}

static void every_prefix_is_read_or_refused(void **state) {
    (void)state;
    static const char whole[] =
        "\xEF\xBB\xBFt = \"\\u00e9\"\r\n[a.'b c']\nd = [1, 0x1F, -2.5e3, {e.f = "
        "1979-05-27T07:32:00.5-07:00}]\n"
        "g = \"\"\"x\\\n  y\"\"\"\n[[h]]\ni = '''z'''\n[[h]]\nj = +inf # end\n";
    for (size_t n = 0; n < sizeof whole; n++) {
        char *copy = malloc(n ? n : 1); /* its own block: a read past the end is found by ASan */
        assert_non_null(copy);
        memcpy(copy, whole, n);
        xp_toml *toml = NULL;
        xp_status status = xp_toml_parse("case", copy, n, &toml);
        assert_true(status == XP_OK || status == XP_ECONFIG);
        xp_toml_destroy(toml);
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deep_nesting_is_refused_not_fatal),
        cmocka_unit_test(depth_adds_up_over_headers_and_keys),
        cmocka_unit_test(nesting_up_to_the_limit_works),
        cmocka_unit_test(time_is_linear),
        cmocka_unit_test(every_prefix_is_read_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
