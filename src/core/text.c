#include "core/text.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void xp_text_free(xp_text *text) {
    free(text->data);
    *text = (xp_text){0};
}

void xp_text_clear(xp_text *text) {
    text->length = 0;
    if (text->data != NULL)
        text->data[0] = '\0';
}

static bool grow(xp_text *text, size_t extra) {
    if (text->failed)
        return false;
    if (text->capacity - text->length > extra)
        return true;
    size_t capacity = text->capacity == 0 ? 64 : text->capacity;
    while (capacity - text->length <= extra) {
        if (capacity > SIZE_MAX / 2) {
            text->failed = true;
            return false;
        }
        capacity *= 2;
    }
    char *data = realloc(text->data, capacity);
    if (data == NULL) {
        text->failed = true;
        return false;
    }
    text->data = data;
    text->capacity = capacity;
    return true;
}

void xp_text_add(xp_text *text, const char *bytes, size_t n) {
    if (!grow(text, n))
        return;
    if (n > 0)
        memcpy(text->data + text->length, bytes, n);
    text->length += n;
    text->data[text->length] = '\0';
}

void xp_text_puts(xp_text *text, const char *string) {
    xp_text_add(text, string, strlen(string));
}

void xp_text_printf(xp_text *text, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n >= 0 && grow(text, (size_t)n)) {
        vsnprintf(text->data + text->length, (size_t)n + 1, format, again);
        text->length += (size_t)n;
    }
    va_end(again);
}

void xp_text_add_json(xp_text *text, const char *bytes, size_t n) {
    xp_text_add(text, "\"", 1);
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int used = xp_utf8_decode(bytes + i, n - i, &c);
        if (used == 0) {
            xp_text_puts(text, "\xef\xbf\xbd");
            i++;
            continue;
        }
        if (c == '"' || c == '\\')
            xp_text_printf(text, "\\%c", (char)c);
        else if (c == '\n')
            xp_text_puts(text, "\\n");
        else if (c == '\t')
            xp_text_puts(text, "\\t");
        else if (c < 0x20 || c == 0x7f)
            xp_text_printf(text, "\\u%04x", (unsigned)c);
        else
            xp_text_add(text, bytes + i, (size_t)used);
        i += (size_t)used;
    }
    xp_text_add(text, "\"", 1);
}

void xp_text_add_json_double(xp_text *text, double value) {
    if (!isfinite(value)) {
        xp_text_puts(text, "null");
        return;
    }
    char digits[40];
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    xp_text_puts(text, digits);
}

bool xp_parse_i64(const char *string, int64_t *value) {
    if (string[0] == '\0' || strchr(" \t\n\r\v\f", string[0]) != NULL)
        return false;
    errno = 0;
    char *end;
    long long parsed = strtoll(string, &end, 10);
    if (errno != 0 || *end != '\0')
        return false;
    *value = parsed;
    return true;
}

bool xp_parse_f64(const char *string, double *value) {
    if (string[0] == '\0' || strchr(" \t\n\r\v\f", string[0]) != NULL ||
        strpbrk(string, "xXpP") != NULL)
        return false;
    errno = 0;
    char *end;
    double parsed = strtod(string, &end);
    if (*end != '\0' || (errno == ERANGE && fabs(parsed) > 1.0))
        return false;
    *value = parsed;
    return true;
}

#define MAX_COMPARED 64

int xp_edit_distance(const char *a, const char *b) {
    size_t n_a = strnlen(a, MAX_COMPARED), n_b = strnlen(b, MAX_COMPARED);
    int row[MAX_COMPARED + 1];
    for (size_t j = 0; j <= n_b; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n_b];
}

int xp_utf8_decode(const char *s, size_t n, uint32_t *code_point) {
    const unsigned char *u = (const unsigned char *)s;
    if (n == 0)
        return 0;
    if (u[0] < 0x80) {
        *code_point = u[0];
        return 1;
    }
    int length = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (u[0] < 0xc2 || u[0] > 0xf4 || (size_t)length > n)
        return 0;
    uint32_t c = u[0] & (0xffU >> (length + 1));
    for (int i = 1; i < length; i++) {
        if ((u[i] & 0xc0) != 0x80)
            return 0;
        c = (c << 6) | (u[i] & 0x3fU);
    }
    if ((length == 3 && c < 0x800) || (length == 4 && (c < 0x10000 || c > 0x10ffff)) ||
        (c >= 0xd800 && c < 0xe000))
        return 0;
    *code_point = c;
    return length;
}

int xp_utf8_encode(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0U | (c >> 6));
        out[1] = (char)(0x80U | (c & 0x3fU));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0U | (c >> 12));
        out[1] = (char)(0x80U | ((c >> 6) & 0x3fU));
        out[2] = (char)(0x80U | (c & 0x3fU));
        return 3;
    }
    out[0] = (char)(0xf0U | (c >> 18));
    out[1] = (char)(0x80U | ((c >> 12) & 0x3fU));
    out[2] = (char)(0x80U | ((c >> 6) & 0x3fU));
    out[3] = (char)(0x80U | (c & 0x3fU));
    return 4;
}

size_t xp_utf8_valid_prefix(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint32_t c;
        int used = xp_utf8_decode(s + i, n - i, &c);
        if (used == 0)
            break;
        i += (size_t)used;
    }
    return i;
}
