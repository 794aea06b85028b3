/**
 * Unicode normalisation form C, as the reference tokenizers do it: with the data of Unicode 9,
 * where later marks neither move nor join (utf8proc does the work; what it knows beyond that is
 * kept away from it). Linear in the text.
 */
#ifndef XP_DATA_NFC_H
#define XP_DATA_NFC_H

#include <stdbool.h>
#include <stddef.h>
#include "core/text.h"

/**
 * @param text valid UTF-8
 * @param[out] out  cleared, then the normalised text; left alone when *changed is false
 * @param[out] changed  false: `text` is in form C already
 */
XP_NODISCARD xp_status xp_nfc_normalize(const char *text, size_t n, xp_text *out, bool *changed);

#endif
