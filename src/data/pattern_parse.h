/** The parts of a pattern: what pattern_parse.c finds and pattern.c turns into a PCRE2 program. */
#ifndef XP_DATA_PATTERN_PARSE_H
#define XP_DATA_PATTERN_PARSE_H

#include "data/charset.h"
#include "expar/status.h"

#define XP_PATTERN_MAX_BYTES 16384
#define XP_PATTERN_MAX_SETS  256

typedef struct xp_pattern_item {
    int set;         /* index of a set, or -1 */
    const char *raw; /* otherwise: operator text, valid in PCRE2 as it stands; not terminated */
    int n_raw;
} xp_pattern_item;

typedef struct xp_pattern_parts {
    xp_charset sets[XP_PATTERN_MAX_SETS]; /* all different */
    int n_sets;
    xp_pattern_item *items;
    int n_items, capacity;
} xp_pattern_parts;

/** @param regex borrowed by the parts. @return XP_OK; on any error the parts are empty again */
XP_NODISCARD xp_status xp_pattern_parse(const char *regex, size_t n, xp_pattern_parts *parts);
/** The parts of a plain string. */
XP_NODISCARD xp_status xp_pattern_parse_literal(const char *string, size_t n,
                                                xp_pattern_parts *parts);
void xp_pattern_parts_free(xp_pattern_parts *parts);

#endif
