/** One string of a JSON object on a line. Everything else in the object is checked for its syntax only, so numbers
 * of any size, NaN and Infinity (which Python writes) may stand in other fields. */
#ifndef XP_DATA_JSON_LINE_H
#define XP_DATA_JSON_LINE_H

#include "core/text.h"

typedef struct xp_json_line_error {
    size_t offset; /* into the line, in bytes */
    char text[200];
} xp_json_line_error;

/**
 * @param line  [n] UTF-8, without its newline
 * @param field the key of the object itself, at no deeper level
 * @param[out] value  gets the string's bytes; \u escapes of half a surrogate pair become U+FFFD
 * @return XP_OK; XP_EFORMAT with *error (no message in xp_last_error()): not one JSON object, nested deeper than
 *         XP_JSON_LINE_DEPTH, no such field, not a string, or there twice; XP_ENOMEM
 */
#define XP_JSON_LINE_DEPTH 2048
XP_NODISCARD xp_status xp_json_line_string(const char *line, size_t n, const char *field,
                                           xp_text *value, xp_json_line_error *error);

#endif
