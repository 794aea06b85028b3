#include "data/json_line.h"

#include <stdio.h>
#include <string.h>

#include "core/json_text.h"

typedef struct scanner {
    const char *s;
    size_t n, at;
    xp_json_line_error *error;
} scanner;

/* No xp_error(): skipped lines would pay for messages that nobody reads. */
static xp_status refuse(scanner *sc, const char *prefix, const char *what) {
    sc->error->offset = sc->at;
    snprintf(sc->error->text, sizeof sc->error->text, "%s%s", prefix, what);
    return XP_EFORMAT;
}

static xp_status bad(scanner *sc, const char *what) {
    return refuse(sc, "not a JSON object: ", what);
}

static void skip_space(scanner *sc) {
    while (sc->at < sc->n && (sc->s[sc->at] == ' ' || sc->s[sc->at] == '\t' ||
                              sc->s[sc->at] == '\r' || sc->s[sc->at] == '\n'))
        sc->at++;
}

static char peek(const scanner *sc) {
    return sc->at < sc->n ? sc->s[sc->at] : '\0';
}

static int hex4(const char *s, size_t n) {
    int value = 0;
    if (n < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* The code point of the \u escape at s[0] = 'u'; *used: bytes from there, both halves of a pair together. */
static uint32_t unicode_escape(const char *s, size_t n, size_t *used) {
    uint32_t first = (uint32_t)hex4(s + 1, n - 1);
    *used = 5;
    if (first < 0xd800 || first > 0xdfff)
        return first;
    if (first < 0xdc00 && n >= 11 && s[5] == '\\' && s[6] == 'u') {
        int second = hex4(s + 7, n - 7);
        if (second >= 0xdc00 && second <= 0xdfff) {
            *used = 11;
            return 0x10000 + ((first - 0xd800) << 10) + ((uint32_t)second - 0xdc00);
        }
    }
    return 0xfffd;
}

/* The string at sc->at = '"'; its bytes are added to `out` unless that is NULL. */
static xp_status string(scanner *sc, xp_text *out) {
    size_t plain = ++sc->at; /* start of bytes not added yet */
    while (sc->at < sc->n) {
        unsigned char c = (unsigned char)sc->s[sc->at];
        if (c != '"' && c != '\\') {
            if (c < 0x20)
                return bad(sc, "control character in a string");
            sc->at++;
            continue;
        }
        if (out != NULL)
            xp_text_add(out, sc->s + plain, sc->at - plain);
        if (c == '"') {
            sc->at++;
            return XP_OK;
        }
        static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        const char *escape = sc->s + sc->at + 1;
        size_t left = sc->n - sc->at - 1, used = 1;
        const char *known = left > 0 && *escape != '\0' ? strchr(escapes, *escape) : NULL;
        if (known != NULL && out != NULL) {
            xp_text_add(out, meanings + (known - escapes), 1);
        } else if (known == NULL) {
            if (left < 5 || *escape != 'u' || hex4(escape + 1, left - 1) < 0)
                return bad(sc, "invalid escape in a string");
            char utf8[4];
            uint32_t code = unicode_escape(escape, left, &used);
            if (out != NULL)
                xp_text_add(out, utf8, (size_t)xp_utf8_encode(code, utf8));
        }
        sc->at += 1 + used;
        plain = sc->at;
    }
    return bad(sc, "a string does not end");
}

/* A number, true, false, null, and the words that Python's json writes for what JSON has none. */
static xp_status word(scanner *sc) {
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    const char *s = sc->s + sc->at;
    size_t left = sc->n - sc->at;
    bool integer;
    size_t length = xp_json_number(s, left, &integer);
    for (size_t i = 0; i < sizeof words / sizeof words[0] && length == 0; i++)
        if (left >= strlen(words[i]) && memcmp(s, words[i], strlen(words[i])) == 0)
            length = strlen(words[i]);
    if (length == 0)
        return bad(sc, left == 0 ? "the line ends inside the object" : "invalid value");
    sc->at += length;
    char next = peek(sc);
    if (sc->at < sc->n && (next == '\0' || strchr(" \t\r\n,]}", next) == NULL))
        return bad(sc, "invalid value");
    return XP_OK;
}

/* "key" : */
static xp_status key(scanner *sc, xp_text *out) {
    skip_space(sc);
    if (peek(sc) != '"')
        return bad(sc, "a key in quotes is missing");
    XP_TRY(string(sc, out));
    skip_space(sc);
    if (peek(sc) != ':')
        return bad(sc, "':' is missing");
    sc->at++;
    return XP_OK;
}

/* Behind a value: ',' goes on, the bracket closes. */
static xp_status after_value(scanner *sc, char close, bool *closed) {
    skip_space(sc);
    *closed = peek(sc) == close;
    if (!*closed && peek(sc) != ',')
        return bad(sc, sc->at == sc->n ? "the line ends inside the object"
                       : close == '}'  ? "',' or '}' is missing"
                                       : "',' or ']' is missing");
    sc->at++;
    return XP_OK;
}

/* Any value, without recursion. */
static xp_status skip_value(scanner *sc) {
    char closers[XP_JSON_LINE_DEPTH];
    size_t depth = 0;
    for (;;) {
        skip_space(sc);
        char c = peek(sc);
        if (c == '{' || c == '[') {
            if (depth == sizeof closers)
                return bad(sc, "nested too deeply");
            char closer = c == '{' ? '}' : ']';
            sc->at++;
            skip_space(sc);
            if (peek(sc) != closer) {
                closers[depth++] = closer;
                if (closer == '}')
                    XP_TRY(key(sc, NULL));
                continue;
            }
            sc->at++;
        } else if (c == '"') {
            XP_TRY(string(sc, NULL));
        } else {
            XP_TRY(word(sc));
        }
        for (bool closed = true; closed;) {
            if (depth == 0)
                return XP_OK;
            XP_TRY(after_value(sc, closers[depth - 1], &closed));
            depth -= closed;
        }
        if (closers[depth - 1] == '}')
            XP_TRY(key(sc, NULL));
    }
}

static xp_status field_value(scanner *sc, const char *field, bool *found, xp_text *value) {
    char text[160];
    if (*found) {
        snprintf(text, sizeof text, "the field \"%.80s\" is there twice", field);
        return refuse(sc, "", text);
    }
    *found = true;
    skip_space(sc);
    if (peek(sc) == '"')
        return string(sc, value);
    snprintf(text, sizeof text, "the field \"%.80s\" is no string", field);
    return refuse(sc, "", text);
}

static xp_status missing(scanner *sc, const char *field, const xp_text *keys) {
    char text[200];
    snprintf(text, sizeof text, "no string field \"%.60s\"%s%.100s%s", field,
             keys->length > 0 ? "; there are: " : "", keys->length > 0 ? keys->data : "",
             keys->length > 0 ? " (training.text_field)" : "");
    return refuse(sc, "", text);
}

static xp_status object(scanner *sc, const char *field, xp_text *value, xp_text *name,
                        xp_text *keys) {
    bool found = false, closed = false;
    size_t n_field = strlen(field);
    skip_space(sc);
    if (peek(sc) != '{')
        return refuse(sc, "", "not a JSON object");
    sc->at++;
    skip_space(sc);
    if (peek(sc) == '}') {
        sc->at++;
        closed = true;
    }
    while (!closed) {
        xp_text_clear(name);
        XP_TRY(key(sc, name));
        if (keys->length < 80)
            xp_text_printf(keys, "%s%.40s", keys->length > 0 ? ", " : "",
                           name->length > 0 ? name->data : "");
        if (name->length == n_field && (n_field == 0 || memcmp(name->data, field, n_field) == 0))
            XP_TRY(field_value(sc, field, &found, value));
        else
            XP_TRY(skip_value(sc));
        XP_TRY(after_value(sc, '}', &closed));
    }
    skip_space(sc);
    if (sc->at < sc->n)
        return bad(sc, "something follows the object on its line");
    return found ? XP_OK : missing(sc, field, keys);
}

xp_status xp_json_line_string(const char *line, size_t n, const char *field, xp_text *value,
                              xp_json_line_error *error) {
    scanner sc = {.s = line, .n = n, .error = error};
    sc.at = xp_utf8_valid_prefix(line, n);
    if (sc.at < n)
        return refuse(&sc, "", "not UTF-8");
    sc.at = 0;
    xp_text name = {0}, keys = {0};
    xp_text_puts(value, "");
    xp_status status = object(&sc, field, value, &name, &keys);
    if (status == XP_OK && (value->failed || name.failed))
        status = xp_error(XP_ENOMEM, "no memory for a line of %zu bytes", n);
    xp_text_free(&name);
    xp_text_free(&keys);
    return status;
}
