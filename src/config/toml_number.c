/** Integers and floats. */
#include "config/toml_reader.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool is_word(int byte) {
    return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
           (byte >= 'A' && byte <= 'Z') || byte == '_' || byte == '+' || byte == '-' || byte == '.';
}

static int digit_of(char byte) {
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F')
        return byte - 'A' + 10;
    return 99;
}

/**
 * Digits with single underscores between them, appended to the scratch text without the
 * underscores.
 * @return characters used, 0 when they do not follow the rules
 */
static size_t take_digits(xp_toml_reader *r, const char *word, size_t n, int base) {
    size_t i = 0;
    while (i < n && (digit_of(word[i]) < base || word[i] == '_')) {
        bool underscore = word[i] == '_';
        bool between = i > 0 && i + 1 < n && word[i - 1] != '_' && digit_of(word[i + 1]) < base;
        if (underscore && !between)
            return 0;
        if (!underscore)
            xp_text_add(&r->scratch, &word[i], 1);
        i++;
    }
    return i;
}

static xp_status fail_number(const xp_toml_reader *r, const char *word, size_t n) {
    return xp_toml_fail(r, r->at, r->line, "'%.*s' is not a value; strings need quotes",
                        n < 48 ? (int)n : 48, word);
}

static xp_status set_integer(const xp_toml_reader *r, const char *digits, int base, bool negative,
                             xp_toml_value *value) {
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;
    uint64_t sum = 0;
    for (; *digits; digits++) {
        uint64_t digit = (uint64_t)digit_of(*digits);
        if (sum > (limit - digit) / (uint64_t)base)
            return xp_toml_fail(r, r->at, r->line, "this integer does not fit into 64 bits");
        sum = sum * (uint64_t)base + digit;
    }
    value->type = XP_TOML_INTEGER;
    value->as.integer = negative ? (int64_t)(0 - sum) : (int64_t)sum;
    return XP_OK;
}

static xp_status read_prefixed(xp_toml_reader *r, const char *word, size_t n,
                               xp_toml_value *value) {
    int base = word[1] == 'x' ? 16 : word[1] == 'o' ? 8 : 2;
    if (n == 2 || take_digits(r, word + 2, n - 2, base) != n - 2)
        return fail_number(r, word, n);
    if (r->scratch.failed)
        return xp_toml_fail_memory(r);
    return set_integer(r, r->scratch.data, base, false, value);
}

/** inf and nan with a sign, or false. */
static bool read_special(const char *word, size_t n, double *real) {
    double sign = 1;
    if (n == 4 && (word[0] == '+' || word[0] == '-')) {
        sign = word[0] == '-' ? -1 : 1;
        word++;
        n--;
    }
    if (n != 3 || (memcmp(word, "inf", 3) != 0 && memcmp(word, "nan", 3) != 0))
        return false;
    *real = copysign(word[0] == 'i' ? (double)INFINITY : (double)NAN, sign);
    return true;
}

static xp_status set_float(const xp_toml_reader *r, xp_toml_value *value) {
    value->type = XP_TOML_FLOAT;
    value->as.real = strtod(r->scratch.data, NULL);
    if (isinf(value->as.real))
        return xp_toml_fail(r, r->at, r->line, "this float does not fit into 64 bits");
    return XP_OK;
}

/** Sign, digits, fraction and exponent, checked and copied without underscores. */
static xp_status read_decimal(xp_toml_reader *r, const char *word, size_t n, xp_toml_value *value) {
    size_t sign = word[0] == '+' || word[0] == '-';
    size_t at = sign;
    bool is_float = false;
    if (sign && word[0] == '-')
        xp_text_puts(&r->scratch, "-");
    size_t used = take_digits(r, word + at, n - at, 10);
    if (used == 0)
        return fail_number(r, word, n);
    if (used > 1 && word[at] == '0')
        return xp_toml_fail(r, r->at, r->line, "a number cannot start with a zero");
    at += used;
    if (at < n && word[at] == '.') {
        xp_text_puts(&r->scratch, ".");
        used = take_digits(r, word + at + 1, n - at - 1, 10);
        if (used == 0)
            return fail_number(r, word, n);
        at += 1 + used;
        is_float = true;
    }
    if (at < n && (word[at] == 'e' || word[at] == 'E')) {
        xp_text_puts(&r->scratch, "e");
        at++;
        if (at < n && (word[at] == '+' || word[at] == '-'))
            xp_text_add(&r->scratch, &word[at++], 1);
        used = take_digits(r, word + at, n - at, 10);
        if (used == 0)
            return fail_number(r, word, n);
        at += used;
        is_float = true;
    }
    if (at != n)
        return fail_number(r, word, n);
    if (r->scratch.failed)
        return xp_toml_fail_memory(r);
    if (is_float)
        return set_float(r, value);
    bool negative = sign && word[0] == '-';
    return set_integer(r, r->scratch.data + negative, 10, negative, value);
}

xp_status xp_toml_read_number(xp_toml_reader *r, xp_toml_value *value) {
    if (xp_toml_at_datetime(r))
        return xp_toml_read_datetime(r, value);
    const char *word = r->text + r->at;
    size_t n = 0;
    while (is_word(xp_toml_peek(r, n)))
        n++;
    if (n == 0)
        return xp_toml_fail_expected(r, "a value");
    xp_text_clear(&r->scratch);
    double real = 0;
    if (read_special(word, n, &real)) {
        value->type = XP_TOML_FLOAT;
        value->as.real = real;
    } else if (n >= 2 && word[0] == '0' && (word[1] == 'x' || word[1] == 'o' || word[1] == 'b')) {
        XP_TRY(read_prefixed(r, word, n, value));
    } else {
        XP_TRY(read_decimal(r, word, n, value));
    }
    r->at += n;
    return XP_OK;
}
