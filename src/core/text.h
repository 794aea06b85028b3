/** Growing byte strings, number parsing, edit distance, UTF-8: the small text work several layers
 * share. */
#ifndef XP_CORE_TEXT_H
#define XP_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

/** Always NUL-terminated once anything was added. After a failed allocation `failed` stays set and
 * additions are ignored. */
typedef struct xp_text {
    char *data;
    size_t length, capacity;
    bool failed;
} xp_text;
void xp_text_free(xp_text *text);
void xp_text_clear(xp_text *text);
void xp_text_add(xp_text *text, const char *bytes, size_t n);
void xp_text_puts(xp_text *text, const char *string);
void xp_text_printf(xp_text *text, const char *format, ...) XP_PRINTF(2, 3);
/** A JSON string literal with quotes; invalid UTF-8 becomes U+FFFD. */
void xp_text_add_json(xp_text *text, const char *bytes, size_t n);
/** A JSON number that reads back to the same double; "null" for NaN and infinities. */
void xp_text_add_json_double(xp_text *text, double value);

/** Whole-string conversions: false when there is anything else in the string or the value does not
 * fit. */
bool xp_parse_i64(const char *string, int64_t *value);
bool xp_parse_f64(const char *string, double *value);

/** Levenshtein distance, for "did you mean"; at most 64 characters are compared. */
int xp_edit_distance(const char *a, const char *b);

/** Decode one code point; returns bytes used (1..4), or 0 when `s` does not start a valid sequence
 * (strict: no surrogates, no overlong). */
int xp_utf8_decode(const char *s, size_t n, uint32_t *code_point);
int xp_utf8_encode(uint32_t code_point, char out[4]);
/** Offset of the first invalid byte, or n. */
size_t xp_utf8_valid_prefix(const char *s, size_t n);

#endif
