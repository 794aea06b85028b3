#include "core/json_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "expar/status.h"

static size_t digits(const char *s, size_t n) {
    size_t i = 0;
    while (i < n && s[i] >= '0' && s[i] <= '9')
        i++;
    return i;
}

size_t xp_json_number(const char *s, size_t n, bool *integer) {
    size_t at = n > 0 && s[0] == '-';
    size_t whole = digits(s + at, n - at);
    if (whole == 0 || (whole > 1 && s[at] == '0'))
        return 0;
    at += whole;
    *integer = true;
    if (at < n && s[at] == '.') {
        size_t fraction = digits(s + at + 1, n - at - 1);
        if (fraction == 0)
            return 0;
        at += 1 + fraction;
        *integer = false;
    }
    if (at < n && (s[at] == 'e' || s[at] == 'E')) {
        size_t sign = at + 1 < n && (s[at + 1] == '+' || s[at + 1] == '-');
        size_t exponent = digits(s + at + 1 + sign, n - at - 1 - sign);
        if (exponent == 0)
            return 0;
        at += 1 + sign + exponent;
        *integer = false;
    }
    return at;
}

xp_status xp_json_refuse_nul(const char *name, const char *data, size_t n) {
    const char *nul = n > 0 ? memchr(data, '\0', n) : NULL;
    if (nul == NULL)
        return XP_OK;
    return xp_error(XP_EFORMAT, "%s: a NUL byte at offset %zu: no JSON text", name,
                    (size_t)(nul - data));
}

/* Bytes of the string that s[0] = '"' opens, with both quotes; n when it does not end. */
static size_t string_bytes(const char *s, size_t n) {
    for (size_t i = 1; i < n; i++) {
        if (s[i] == '\\')
            i++;
        else if (s[i] == '"')
            return i + 1;
    }
    return n;
}

static size_t word_bytes(const char *s, size_t n) {
    static const char *const words[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (n >= strlen(words[i]) && memcmp(s, words[i], strlen(words[i])) == 0)
            return strlen(words[i]);
    return 0;
}

/* The number as Jansson takes it. @return false: as it stands */
static bool soften(const char *s, size_t n, bool integer, xp_text *copy, char out[32]) {
    xp_text_clear(copy);
    xp_text_add(copy, s, n);
    if (copy->failed)
        return false;
    int64_t fits;
    if (integer && xp_parse_i64(copy->data, &fits))
        return false;
    double value = strtod(copy->data, NULL);
    if (!integer && isfinite(value))
        return false;
    if (!isfinite(value))
        value = copysign(1.7976931348623157e308, value);
    snprintf(out, 32, "%.17g", value);
    if (!strpbrk(out, ".e"))
        strcat(out, ".0");
    return true;
}

void xp_json_soften_numbers(const char *data, size_t n, xp_text *out, bool *changed) {
    xp_text copy = {0};
    size_t done = 0; /* copied to out */
    bool mark = n >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0;
    *changed = mark;
    if (mark) {
        xp_text_puts(out, "");
        done = 3;
    }
    for (size_t at = done; at < n;) {
        if (data[at] == '"') {
            at += string_bytes(data + at, n - at);
            continue;
        }
        char text[32] = "null";
        bool integer = false;
        size_t number = xp_json_number(data + at, n - at, &integer);
        size_t length = number > 0 ? number : word_bytes(data + at, n - at);
        bool replace =
            length > 0 && (number == 0 || soften(data + at, number, integer, &copy, text));
        if (replace) {
            xp_text_add(out, data + done, at - done);
            xp_text_puts(out, text);
            done = at + length;
            *changed = true;
        }
        at += length > 0 ? length : 1;
    }
    if (*changed)
        xp_text_add(out, data + done, n - done);
    out->failed |= copy.failed;
    xp_text_free(&copy);
}
