/** The four kinds of strings. */
#include "config/toml_reader.h"

#include <string.h>

static int hex_digit(int byte) {
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F')
        return byte - 'A' + 10;
    return -1;
}

/** The cursor stands behind \u or \U. */
static xp_status read_unicode(xp_toml_reader *r, int n_digits) {
    size_t start = r->at - 2;
    uint32_t code_point = 0;
    for (int i = 0; i < n_digits; i++) {
        int digit = hex_digit(xp_toml_peek(r, 0));
        if (digit < 0)
            return xp_toml_fail(r, start, r->line, "\\%c needs %d hexadecimal digits",
                                n_digits == 4 ? 'u' : 'U', n_digits);
        code_point = code_point << 4 | (uint32_t)digit;
        r->at++;
    }
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
        return xp_toml_fail(r, start, r->line, "U+%04X is not a Unicode scalar value",
                            (unsigned)code_point);
    char bytes[4];
    xp_text_add(&r->scratch, bytes, (size_t)xp_utf8_encode(code_point, bytes));
    return XP_OK;
}

/** Behind a backslash that ends a line: skip blanks and newlines up to the next text. */
static bool skip_folded_line(xp_toml_reader *r) {
    size_t at = r->at;
    while (at < r->n_bytes && (r->text[at] == ' ' || r->text[at] == '\t'))
        at++;
    size_t saved = r->at;
    r->at = at;
    if (!xp_toml_skip_newline(r)) {
        r->at = saved;
        return false;
    }
    do {
        xp_toml_skip_blanks(r);
    } while (xp_toml_skip_newline(r));
    return true;
}

/** The cursor stands on a backslash. */
static xp_status read_escape(xp_toml_reader *r, bool multi_line) {
    static const char names[] = "btnfr\"\\", bytes[] = "\b\t\n\f\r\"\\";
    r->at++;
    if (multi_line && skip_folded_line(r))
        return XP_OK;
    int byte = xp_toml_peek(r, 0);
    const char *found = byte > 0 ? strchr(names, byte) : NULL;
    if (found) {
        xp_text_add(&r->scratch, &bytes[found - names], 1);
        r->at++;
        return XP_OK;
    }
    if (byte == 'u' || byte == 'U') {
        r->at++;
        return read_unicode(r, byte == 'u' ? 4 : 8);
    }
    return xp_toml_fail(r, r->at - 1, r->line,
                        "unknown escape; use \\b \\t \\n \\f \\r \\\" \\\\ \\uXXXX \\UXXXXXXXX, "
                        "or a 'literal string'");
}

/** Plain bytes up to the next byte that means something. */
static void copy_run(xp_toml_reader *r, char quote) {
    size_t start = r->at;
    while (r->at < r->n_bytes) {
        char byte = r->text[r->at];
        if (byte == quote || (byte == '\\' && quote == '"') ||
            xp_toml_is_control((unsigned char)byte))
            break;
        r->at++;
    }
    xp_text_add(&r->scratch, r->text + start, r->at - start);
}

/** Quotes in a row at the cursor, at most `limit`. */
static size_t count_quotes(const xp_toml_reader *r, char quote, size_t limit) {
    size_t n = 0;
    while (n < limit && xp_toml_peek(r, n) == quote)
        n++;
    return n;
}

/** True when the string ended; the closing quotes are then behind the cursor. */
static bool read_quotes(xp_toml_reader *r, char quote, bool multi_line) {
    if (!multi_line) {
        r->at++;
        return true;
    }
    /* Up to two quotes may stand right before the closing three: """a""""" is a"". */
    size_t n = count_quotes(r, quote, 5);
    size_t n_text = n >= 3 ? n - 3 : n;
    xp_text_add(&r->scratch, r->text + r->at, n_text);
    r->at += n;
    return n >= 3;
}

static xp_status read_body(xp_toml_reader *r, char quote, bool multi_line, size_t start,
                           int start_line) {
    for (;;) {
        copy_run(r, quote);
        int byte = xp_toml_peek(r, 0);
        if (byte == quote) {
            if (read_quotes(r, quote, multi_line))
                return XP_OK;
        } else if (byte == '\\') {
            XP_TRY(read_escape(r, multi_line));
        } else if (byte < 0) {
            return xp_toml_fail(r, start, start_line, "this string is never closed");
        } else if (byte == '\n' || (byte == '\r' && xp_toml_peek(r, 1) == '\n')) {
            if (!multi_line)
                return xp_toml_fail(r, start, start_line,
                                    "this string is not closed on its line; use three quotes for "
                                    "text of several lines");
            xp_text_add(&r->scratch, r->text + r->at, byte == '\n' ? 1 : 2);
            xp_toml_skip_newline(r);
        } else {
            return xp_toml_fail(r, r->at, r->line, "control character 0x%02x in a string",
                                (unsigned)byte);
        }
    }
}

xp_status xp_toml_read_string(xp_toml_reader *r, bool multi_line, const char **data,
                              size_t *n_bytes) {
    char quote = r->text[r->at];
    size_t start = r->at;
    int start_line = r->line;
    bool three = count_quotes(r, quote, 3) == 3;
    if (three && !multi_line)
        return xp_toml_fail(r, start, start_line, "a key cannot be a multi-line string");
    r->at += three ? 3 : 1;
    if (three)
        xp_toml_skip_newline(r); /* the first newline is no part of the text */
    xp_text_clear(&r->scratch);
    XP_TRY(read_body(r, quote, three, start, start_line));
    char *copy = xp_arena_alloc(r->arena, r->scratch.length + 1);
    if (!copy || r->scratch.failed)
        return xp_toml_fail_memory(r);
    if (r->scratch.length > 0)
        memcpy(copy, r->scratch.data, r->scratch.length);
    *data = copy;
    *n_bytes = r->scratch.length;
    return XP_OK;
}
