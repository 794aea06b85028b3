/**
 * Pre-tokeniser patterns: Oniguruma's syntax and Unicode 16's classes, matched by PCRE2.
 *
 * A pattern tells code points apart only through the sets it names: its literals, classes and
 * properties. Those sets cut Unicode into at most 255 classes of code points that the pattern
 * cannot tell apart. So a text is translated to one class byte a code point, and the pattern to the
 * same alphabet; PCRE2 then matches plain bytes. What \p{L} means is decided by our tables and
 * never by the PCRE2 version, and a class of 700 ranges costs no more than [ab].
 */
#ifndef XP_DATA_PATTERN_H
#define XP_DATA_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include "expar/status.h"

typedef struct xp_pattern xp_pattern;

/** @return XP_OK; XP_EFORMAT: not a pattern; XP_ENOTSUP: a construct whose meaning differs between
 * the engines. With the place. */
XP_NODISCARD xp_status xp_pattern_compile(const char *regex, size_t n, xp_pattern **pattern);
/** A pattern that matches exactly this UTF-8 string. */
XP_NODISCARD xp_status xp_pattern_compile_literal(const char *string, size_t n,
                                                  xp_pattern **pattern);
void xp_pattern_destroy(xp_pattern *pattern);

/** Memory of one thread that matches; one per pattern. */
typedef struct xp_pattern_scratch xp_pattern_scratch;
XP_NODISCARD xp_status xp_pattern_scratch_create(const xp_pattern *pattern,
                                                 xp_pattern_scratch **scratch);
void xp_pattern_scratch_destroy(xp_pattern_scratch *scratch);

typedef struct xp_pattern_piece {
    const char *bytes;
    size_t n;
    bool matched; /* false: what stands between two matches */
} xp_pattern_piece;
typedef xp_status (*xp_pattern_piece_fn)(void *context, const xp_pattern_piece *piece);

/**
 * Cut `text` (valid UTF-8) into matches and gaps, in order, none empty; stops at the first status
 * that is not XP_OK.
 * @return XP_OK; the status of `fn`; XP_EFORMAT when the pattern backtracks without end on this
 * text
 */
XP_NODISCARD xp_status xp_pattern_split(const xp_pattern *pattern, xp_pattern_scratch *scratch,
                                        const char *text, size_t n, xp_pattern_piece_fn fn,
                                        void *context);

#endif
