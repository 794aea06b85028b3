#include "data/pattern_parse.h"

#include <stdlib.h>
#include <string.h>
#include "core/text.h"

#define MAX_DEPTH 200

typedef struct parser {
    const char *regex;
    size_t n, at;
    xp_pattern_parts *parts;
    bool caseless[MAX_DEPTH + 1]; /* by group depth */
    int depth;
} parser;

/* One element of a pattern or class: a code point, or (set != NULL) a whole set that was added to
 * it. */
typedef struct element {
    bool is_set;
    uint32_t code_point;
} element;

static xp_status refuse(const parser *p, xp_status code, const char *what) {
    return xp_error(code, "pre-tokeniser pattern, byte %zu: %s", p->at, what);
}

static bool at_char(const parser *p, size_t ahead, char c) {
    return p->at + ahead < p->n && p->regex[p->at + ahead] == c;
}

static xp_status add_item(xp_pattern_parts *parts, xp_pattern_item item) {
    if (parts->n_items == parts->capacity) {
        int capacity = parts->capacity ? 2 * parts->capacity : 64;
        xp_pattern_item *grown = realloc(parts->items, (size_t)capacity * sizeof(*grown));
        if (!grown)
            return xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
        parts->items = grown;
        parts->capacity = capacity;
    }
    parts->items[parts->n_items++] = item;
    return XP_OK;
}

static xp_status add_raw(parser *p, const char *raw, int n) {
    return add_item(p->parts, (xp_pattern_item){.set = -1, .raw = raw, .n_raw = n});
}

/* Takes what `set` holds and leaves it empty. */
static xp_status add_set(xp_pattern_parts *parts, xp_charset *set) {
    xp_charset_normalize(set);
    if (set->failed) {
        xp_charset_free(set);
        return xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
    }
    int index = 0;
    for (; index < parts->n_sets; index++) {
        const xp_charset *known = &parts->sets[index];
        if (known->n == set->n && (set->n == 0 || !memcmp(known->ranges, set->ranges,
                                                          (size_t)set->n * sizeof(set->ranges[0]))))
            break;
    }
    if (index == XP_PATTERN_MAX_SETS) {
        xp_charset_free(set);
        return xp_error(XP_ENOTSUP, "pre-tokeniser pattern: more than %d different classes",
                        XP_PATTERN_MAX_SETS);
    }
    if (index == parts->n_sets)
        parts->sets[parts->n_sets++] = *set;
    else
        xp_charset_free(set);
    *set = (xp_charset){0};
    return add_item(parts, (xp_pattern_item){.set = index});
}

/* Close a set under case, for the letters of ASCII and the two signs that fold to them (long s,
 * Kelvin). */
static void fold_ascii(xp_charset *set) {
    xp_charset_normalize(set);
    for (uint32_t c = 'a'; c <= 'z'; c++) {
        uint32_t sign = c == 's' ? 0x17f : c == 'k' ? 0x212a : c;
        if (!xp_charset_has(set, c) && !xp_charset_has(set, c - 32) && !xp_charset_has(set, sign))
            continue;
        xp_charset extra = {0};
        xp_charset_add(&extra, c, c);
        xp_charset_add(&extra, c - 32, c - 32);
        xp_charset_add(&extra, sign, sign);
        xp_charset_add_set(set, &extra);
        xp_charset_free(&extra);
        xp_charset_normalize(set);
    }
}

/* \p{..}, \P{..}, \p{^..}; the cursor stands behind the letter. */
static xp_status parse_property(parser *p, bool negate, xp_charset *set) {
    if (!at_char(p, 0, '{'))
        return refuse(p, XP_ENOTSUP, "\\p wants a name in braces");
    p->at++;
    if (at_char(p, 0, '^')) {
        negate = !negate;
        p->at++;
    }
    const char *name = p->regex + p->at;
    const char *end = memchr(name, '}', p->n - p->at);
    if (!end)
        return refuse(p, XP_EFORMAT, "\\p{ without }");
    xp_charset members = {0};
    if (!xp_charset_add_property(&members, name, (size_t)(end - name))) {
        xp_charset_free(&members);
        int shown = end - name < 40 ? (int)(end - name) : 40;
        return xp_error(XP_ENOTSUP,
                        "pre-tokeniser pattern, byte %zu: the property \"%.*s\" is not known here",
                        p->at, shown, name);
    }
    xp_charset_normalize(&members);
    if (p->caseless[p->depth] && xp_charset_has(&members, 'a') != xp_charset_has(&members, 'A')) {
        xp_charset_free(&members);
        return refuse(p, XP_ENOTSUP, "a property that is not closed under case inside (?i)");
    }
    if (negate)
        xp_charset_complement(&members);
    xp_charset_add_set(set, &members);
    xp_charset_free(&members);
    p->at = (size_t)(end + 1 - p->regex);
    return XP_OK;
}

/* \xHH, \x{H..}, \uHHHH; the cursor stands behind the letter. */
static xp_status parse_hex(parser *p, char letter, uint32_t *code_point) {
    bool braces = letter == 'x' && at_char(p, 0, '{');
    size_t most = braces ? 8 : letter == 'u' ? 4 : 2, count = 0;
    uint32_t value = 0;
    if (braces)
        p->at++;
    for (; count < most && p->at < p->n; count++, p->at++) {
        char c = p->regex[p->at];
        if (c >= '0' && c <= '9')
            value = value * 16 + (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value * 16 + (uint32_t)((c | 32) - 'a') + 10;
        else
            break;
    }
    if (count == 0 || (letter == 'u' && count < 4) || (braces && !at_char(p, 0, '}')))
        return refuse(p, XP_EFORMAT, "a malformed hexadecimal escape");
    if (braces)
        p->at++;
    if (value > XP_CODE_POINT_MAX || (!braces && letter == 'x' && value > 0x7f))
        return refuse(p, XP_ENOTSUP, "a hexadecimal escape that is no code point");
    *code_point = value;
    return XP_OK;
}

/* The cursor stands behind the backslash. */
static xp_status parse_escape(parser *p, bool in_class, element *found, xp_charset *set) {
    static const char control_letters[] = "rntfvae", control_values[] = "\r\n\t\f\v\a\x1b";
    if (p->at == p->n)
        return refuse(p, XP_EFORMAT, "a backslash at the end");
    char c = p->regex[p->at];
    *found = (element){.code_point = (unsigned char)c};
    if (c == 'p' || c == 'P') {
        p->at++;
        found->is_set = true;
        return parse_property(p, c == 'P', set);
    }
    if (c != 0 && strchr("sdwhSDWH", c)) {
        xp_charset members = {0};
        xp_charset_add_escape(&members, (char)(c | 32));
        xp_charset_normalize(&members);
        if (c < 'a')
            xp_charset_complement(&members);
        xp_charset_add_set(set, &members);
        xp_charset_free(&members);
        found->is_set = true;
        p->at++;
        return XP_OK;
    }
    if (c == 'x' || c == 'u') {
        p->at++;
        return parse_hex(p, c, &found->code_point);
    }
    const char *control = c != 0 ? strchr(control_letters, c) : NULL;
    if (control)
        found->code_point = (unsigned char)control_values[control - control_letters];
    else if (in_class && c == 'b')
        found->code_point = '\b';
    else if ((c | 32) >= 'a' && (c | 32) <= 'z')
        return refuse(p, XP_ENOTSUP, "this escape has no counterpart here");
    else if (c >= '0' && c <= '9')
        return refuse(p, XP_ENOTSUP, "back references and octal escapes are not supported");
    else if ((unsigned char)c >= 0x80)
        return refuse(p, XP_ENOTSUP, "a backslash before a character outside ASCII");
    p->at++;
    return XP_OK;
}

static xp_status parse_code_point(parser *p, element *found) {
    int used = xp_utf8_decode(p->regex + p->at, p->n - p->at, &found->code_point);
    if (used == 0)
        return refuse(p, XP_EFORMAT, "invalid UTF-8");
    found->is_set = false;
    p->at += (size_t)used;
    return XP_OK;
}

static xp_status parse_class_element(parser *p, element *found, xp_charset *set) {
    if (at_char(p, 0, '[') || (at_char(p, 0, '&') && at_char(p, 1, '&')))
        return refuse(p, XP_ENOTSUP,
                      "sets inside a class ([, [:name:], &&); write a bracket as \\[");
    if (at_char(p, 0, '\\')) {
        p->at++;
        return parse_escape(p, true, found, set);
    }
    return parse_code_point(p, found);
}

/* The cursor stands behind '['. Fills `set`. */
static xp_status parse_class_members(parser *p, xp_charset *set) {
    bool negate = at_char(p, 0, '^'), first = true;
    p->at += negate;
    for (;; first = false) {
        if (p->at >= p->n)
            return refuse(p, XP_EFORMAT, "[ without ]");
        if (at_char(p, 0, ']') && !first)
            break;
        element low, high;
        XP_TRY(parse_class_element(p, &low, set));
        if (low.is_set)
            continue;
        high = low;
        if (at_char(p, 0, '-') && p->at + 1 < p->n && !at_char(p, 1, ']')) {
            p->at++;
            XP_TRY(parse_class_element(p, &high, set));
            if (high.is_set || high.code_point < low.code_point)
                return refuse(p, XP_EFORMAT, "a range that ends before it starts");
        }
        if (p->caseless[p->depth] && high.code_point >= 0x80)
            return refuse(p, XP_ENOTSUP, "a range outside ASCII inside (?i)");
        xp_charset_add(set, low.code_point, high.code_point);
    }
    p->at++;
    xp_charset_normalize(set);
    if (p->caseless[p->depth])
        fold_ascii(set);
    if (negate)
        xp_charset_complement(set);
    return XP_OK;
}

/* A class, an escape, a dot or a plain character. */
static xp_status parse_set(parser *p) {
    xp_charset set = {0};
    element found = {.is_set = true};
    xp_status status;
    if (at_char(p, 0, '[')) {
        p->at++;
        status = parse_class_members(p, &set);
    } else if (at_char(p, 0, '.')) {
        p->at++;
        xp_charset_add(&set, '\n', '\n');
        xp_charset_complement(&set);
        status = XP_OK;
    } else if (at_char(p, 0, '\\')) {
        p->at++;
        status = parse_escape(p, false, &found, &set);
    } else {
        status = parse_code_point(p, &found);
    }
    if (status == XP_OK && !found.is_set) {
        if (p->caseless[p->depth] && found.code_point >= 0x80)
            status = refuse(p, XP_ENOTSUP, "a character outside ASCII inside (?i)");
        xp_charset_add(&set, found.code_point, found.code_point);
        if (p->caseless[p->depth])
            fold_ascii(&set);
    }
    if (status != XP_OK) {
        xp_charset_free(&set);
        return status;
    }
    return add_set(p->parts, &set);
}

/* '(' and what may follow it. */
static xp_status parse_group(parser *p) {
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (p->depth == MAX_DEPTH)
        return refuse(p, XP_ENOTSUP, "groups nested too deeply");
    bool caseless = p->caseless[p->depth];
    size_t left = p->n - p->at;
    const char *here = p->regex + p->at;
    if (left >= 4 && (!strncmp(here, "(?i:", 4) || !strncmp(here, "(?i)", 4))) {
        if (here[3] == ')' && p->at != 0)
            return refuse(p, XP_ENOTSUP, "(?i) in the middle of a pattern; write (?i:...)");
        p->at += 4;
        p->caseless[p->depth + (here[3] == ':')] = true;
        p->depth += here[3] == ':';
        return here[3] == ':' ? add_raw(p, "(?:", 3) : XP_OK;
    }
    if (left >= 2 && here[1] == '*')
        return refuse(p, XP_EFORMAT, "nothing to repeat");
    const char *opening = "(?:"; /* what a plain group captures is never used */
    size_t length = 1;
    if (left >= 2 && here[1] == '?') {
        opening = NULL;
        for (size_t i = 0; i < sizeof(openings) / sizeof(openings[0]); i++)
            if (left >= strlen(openings[i]) && !strncmp(here, openings[i], strlen(openings[i])))
                opening = openings[i];
        if (!opening)
            return refuse(p, XP_ENOTSUP, "this kind of group has no counterpart here");
        length = strlen(opening);
    }
    p->at += length;
    p->caseless[++p->depth] = caseless;
    return add_raw(p, opening, (int)strlen(opening));
}

/* {n}, {n,}, {n,m}, {,m}; false: an ordinary brace. */
static bool parse_interval(parser *p, xp_status *status) {
    size_t i = p->at + 1, digits = 0, start = i;
    for (; i < p->n && ((p->regex[i] >= '0' && p->regex[i] <= '9') || p->regex[i] == ','); i++)
        digits += p->regex[i] != ',';
    if (i >= p->n || p->regex[i] != '}' || digits == 0 || i - start > digits + 1)
        return false;
    bool open = p->regex[start] == ',';
    *status = open ? add_raw(p, "{0", 2) : add_raw(p, "{", 1);
    if (*status == XP_OK)
        *status = add_raw(p, p->regex + start, (int)(i + 1 - start));
    p->at = i + 1;
    if (*status == XP_OK && at_char(p, 0, '+'))
        *status = refuse(p, XP_ENOTSUP, "{n,m}+ means different things to different engines");
    return true;
}

static xp_status parse_line_anchor(parser *p, char c) {
    xp_charset newline = {0};
    xp_charset_add(&newline, '\n', '\n');
    xp_status status = c == '^' ? add_raw(p, "(?:\\A|(?<=", 10) : add_raw(p, "(?:\\z|(?=", 9);
    if (status == XP_OK)
        status = add_set(p->parts, &newline);
    xp_charset_free(&newline);
    p->at++;
    XP_TRY(status);
    return c == '^' ? add_raw(p, ")(?!\\z))", 8) : add_raw(p, "))", 2);
}

static xp_status parse_next(parser *p) {
    char c = p->regex[p->at];
    xp_status status = XP_OK;
    switch (c) {
    case '(':
        return parse_group(p);
    case ')':
        if (p->depth == 0)
            return refuse(p, XP_EFORMAT, ") without (");
        p->depth--;
        p->at++;
        return add_raw(p, ")", 1);
    case '|':
    case '*':
    case '+':
    case '?':
        p->at++;
        return add_raw(p, p->regex + p->at - 1, 1);
    case '^':
    case '$':
        return parse_line_anchor(p, c);
    case '{':
        return parse_interval(p, &status) ? status : parse_set(p);
    case '\\':
        if (at_char(p, 1, 'A') || at_char(p, 1, 'z')) {
            p->at += 2;
            return add_raw(p, p->regex + p->at - 2, 2);
        }
        return parse_set(p);
    default:
        return parse_set(p);
    }
}

xp_status xp_pattern_parse(const char *regex, size_t n, xp_pattern_parts *parts) {
    *parts = (xp_pattern_parts){0};
    if (n > XP_PATTERN_MAX_BYTES)
        return xp_error(XP_ENOTSUP, "pre-tokeniser pattern of %zu bytes; at most %d are supported",
                        n, XP_PATTERN_MAX_BYTES);
    parser p = {.regex = regex, .n = n, .parts = parts};
    xp_status status = XP_OK;
    while (status == XP_OK && p.at < n)
        status = parse_next(&p);
    if (status == XP_OK && p.depth > 0)
        status = refuse(&p, XP_EFORMAT, "( without )");
    if (status != XP_OK)
        xp_pattern_parts_free(parts);
    return status;
}

xp_status xp_pattern_parse_literal(const char *string, size_t n, xp_pattern_parts *parts) {
    *parts = (xp_pattern_parts){0};
    if (n > XP_PATTERN_MAX_BYTES)
        return xp_error(XP_ENOTSUP, "a string of %zu bytes to split on; at most %d are supported",
                        n, XP_PATTERN_MAX_BYTES);
    parser p = {.regex = string, .n = n, .parts = parts};
    xp_status status = XP_OK;
    while (status == XP_OK && p.at < n) {
        element found = {0};
        xp_charset set = {0};
        status = parse_code_point(&p, &found);
        if (status == XP_OK) {
            xp_charset_add(&set, found.code_point, found.code_point);
            status = add_set(parts, &set);
        }
    }
    if (status != XP_OK)
        xp_pattern_parts_free(parts);
    return status;
}

void xp_pattern_parts_free(xp_pattern_parts *parts) {
    for (int i = 0; i < parts->n_sets; i++)
        xp_charset_free(&parts->sets[i]);
    free(parts->items);
    *parts = (xp_pattern_parts){0};
}
