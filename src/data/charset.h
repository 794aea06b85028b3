/**
 * Sets of code points as sorted ranges, and the Unicode 16 properties a pattern can name.
 * `failed` stays set after a failed allocation; check it once at the end.
 */
#ifndef XP_DATA_CHARSET_H
#define XP_DATA_CHARSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "data/unicode_tables.h"

#define XP_CODE_POINT_MAX 0x10ffffu

typedef struct xp_charset {
    xp_unicode_range *ranges;
    int n, capacity;
    bool failed;
} xp_charset;

void xp_charset_free(xp_charset *set);
void xp_charset_add(xp_charset *set, uint32_t first, uint32_t last);
void xp_charset_add_set(xp_charset *set, const xp_charset *other);
/** Sort and join ranges; every function below wants and keeps this form. */
void xp_charset_normalize(xp_charset *set);
void xp_charset_complement(xp_charset *set);
bool xp_charset_has(const xp_charset *set, uint32_t code_point);

/**
 * Add the code points of a property: a general category, short or long ("L", "Lu",
 * "Uppercase_Letter"), "Alphabetic", "White_Space", "Any", or one of the common scripts ("Han").
 * Case, "_", "-" and spaces in the name do not matter.
 * @return false when the name is not known
 */
bool xp_charset_add_property(xp_charset *set, const char *name, size_t n);
/** What \s, \d, \w and \h stand for in Oniguruma: White_Space, Nd, word characters, hexadecimal
 * digits. */
void xp_charset_add_escape(xp_charset *set, char letter);

/** Binary search in a generated table. */
bool xp_unicode_in(const xp_unicode_range *ranges, int n, uint32_t code_point);
bool xp_unicode_is_space(uint32_t code_point);
/** A word character as Rust's regex crate sees it: Alphabetic, marks, decimal digits, connectors,
 * joiners. */
bool xp_unicode_is_word(uint32_t code_point);

#endif
