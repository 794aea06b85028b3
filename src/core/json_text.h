/** JSON as bytes: what has to be known about a text before a JSON library reads it, and numbers. */
#ifndef XP_CORE_JSON_TEXT_H
#define XP_CORE_JSON_TEXT_H

#include "core/text.h"

/** Bytes of the JSON number that `s` starts with, 0 when there is none; *integer: it has neither a
 * fraction nor an exponent. Any magnitude. */
size_t xp_json_number(const char *s, size_t n, bool *integer);

/** A NUL byte stands nowhere in JSON; Jansson lets one pass after a number.
 *  @param name  stands in the error, as a path does
 *  @return XP_OK; XP_EFORMAT with the byte's offset */
XP_NODISCARD xp_status xp_json_refuse_nul(const char *name, const char *data, size_t n);

/**
 * What programs write and Jansson refuses: a byte order mark goes; integers of any size become
 * reals of the same value, reals beyond the range of doubles the largest double, NaN and the
 * infinities null. Strings stay as they are, and what is no JSON stays wrong.
 * @param out  gets the text when *changed; left empty otherwise. Check out->failed
 */
void xp_json_soften_numbers(const char *data, size_t n, xp_text *out, bool *changed);

#endif
