/** Generated Unicode data (scripts/unicode_tables.mjs): see charset.h and nfc.h for what it is used
 * for. */
#ifndef XP_DATA_UNICODE_TABLES_H
#define XP_DATA_UNICODE_TABLES_H

#include <stdint.h>

typedef struct xp_unicode_range {
    uint32_t first, last; /* both inside */
} xp_unicode_range;

/** Code point << 5 | general category (order of the generator), one entry wherever the category
 * changes. Unicode 16. */
extern const uint32_t xp_unicode_gc_starts[];
extern const int xp_unicode_n_gc_starts;

/* Unicode 16 properties and scripts. */
extern const xp_unicode_range xp_unicode_other_alphabetic[];
extern const int xp_unicode_n_other_alphabetic;
extern const xp_unicode_range xp_unicode_white_space[];
extern const int xp_unicode_n_white_space;
extern const xp_unicode_range xp_unicode_join_control[];
extern const int xp_unicode_n_join_control;
extern const xp_unicode_range xp_unicode_arabic[];
extern const int xp_unicode_n_arabic;
extern const xp_unicode_range xp_unicode_cyrillic[];
extern const int xp_unicode_n_cyrillic;
extern const xp_unicode_range xp_unicode_devanagari[];
extern const int xp_unicode_n_devanagari;
extern const xp_unicode_range xp_unicode_greek[];
extern const int xp_unicode_n_greek;
extern const xp_unicode_range xp_unicode_han[];
extern const int xp_unicode_n_han;
extern const xp_unicode_range xp_unicode_hangul[];
extern const int xp_unicode_n_hangul;
extern const xp_unicode_range xp_unicode_hebrew[];
extern const int xp_unicode_n_hebrew;
extern const xp_unicode_range xp_unicode_hiragana[];
extern const int xp_unicode_n_hiragana;
extern const xp_unicode_range xp_unicode_katakana[];
extern const int xp_unicode_n_katakana;
extern const xp_unicode_range xp_unicode_latin[];
extern const int xp_unicode_n_latin;
extern const xp_unicode_range xp_unicode_thai[];
extern const int xp_unicode_n_thai;

/** Unicode 9: code points that have a canonical decomposition or start a composition. */
extern const xp_unicode_range xp_unicode_nfc_first[];
extern const int xp_unicode_n_nfc_first;
/** Unicode 9: code points that NFC may move, change or join to what stands before them. All others
 * end a segment. */
extern const xp_unicode_range xp_unicode_nfc_maybe[];
extern const int xp_unicode_n_nfc_maybe;

#endif
