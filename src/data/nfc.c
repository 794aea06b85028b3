#include "data/nfc.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "data/charset.h"

/* No code point below U+0300 is changed by NFC or joins what stands before it; 0xcc leads U+0300.
 */
#define FIRST_RELEVANT_LEAD 0xcc

typedef struct segment {
    utf8proc_int32_t *points, *sorted;
    size_t n, capacity;
} segment;

static bool is_maybe(uint32_t c) {
    return xp_unicode_in(xp_unicode_nfc_maybe, xp_unicode_n_nfc_maybe, c);
}

static bool is_first(uint32_t c) {
    return xp_unicode_in(xp_unicode_nfc_first, xp_unicode_n_nfc_first, c);
}

static xp_status reserve(segment *part, size_t n) {
    if (part->capacity >= n)
        return XP_OK;
    size_t capacity = 2 * n + 64;
    utf8proc_int32_t *points = realloc(part->points, capacity * sizeof(*points));
    if (points)
        part->points = points;
    utf8proc_int32_t *sorted = points ? realloc(part->sorted, capacity * sizeof(*sorted)) : NULL;
    if (!sorted)
        return xp_error(XP_ENOMEM, "no memory to normalise text");
    part->sorted = sorted;
    part->capacity = capacity;
    return XP_OK;
}

static int combining_class(utf8proc_int32_t c) {
    return (int)utf8proc_get_property(c)->combining_class;
}

/* Stable, by combining class; utf8proc's own ordering is quadratic in the length of a run of marks.
 */
static void sort_run(segment *part, size_t from, size_t to) {
    size_t starts[257] = {0};
    bool ordered = true;
    for (size_t i = from; i < to; i++) {
        int class = combining_class(part->points[i]);
        starts[class + 1]++;
        ordered &= i == from || combining_class(part->points[i - 1]) <= class;
    }
    if (ordered)
        return;
    for (int c = 0; c < 256; c++)
        starts[c + 1] += starts[c];
    for (size_t i = from; i < to; i++)
        part->sorted[from + starts[combining_class(part->points[i])]++] = part->points[i];
    memcpy(part->points + from, part->sorted + from, (to - from) * sizeof(part->points[0]));
}

static void order(segment *part) {
    size_t i = 0;
    while (i < part->n) {
        if (combining_class(part->points[i]) == 0) {
            i++;
            continue;
        }
        size_t from = i;
        while (i < part->n && combining_class(part->points[i]) != 0)
            i++;
        if (i - from > 1)
            sort_run(part, from, i);
    }
}

/* Normalise text[0, n), which no code point outside can influence; adds it to `out`. */
static xp_status normalize_segment(segment *part, const char *text, size_t n, xp_text *out) {
    const utf8proc_option_t decompose = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    part->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c = 0;
        i += (size_t)xp_utf8_decode(text + i, n - i, &c);
        XP_TRY(reserve(part, part->n + 8)); /* no canonical decomposition has more than 4 */
        int boundary = 0;
        utf8proc_ssize_t added = utf8proc_decompose_char(
            (utf8proc_int32_t)c, part->points + part->n, 8, decompose, &boundary);
        if (added < 0 || added > 8)
            return xp_error(XP_EINTERNAL, "utf8proc cannot decompose U+%04X", c);
        part->n += (size_t)added;
    }
    order(part);
    utf8proc_ssize_t left = utf8proc_normalize_utf32(part->points, (utf8proc_ssize_t)part->n,
                                                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (left < 0)
        return xp_error(XP_EINTERNAL, "utf8proc cannot compose: %s", utf8proc_errmsg(left));
    for (utf8proc_ssize_t i = 0; i < left; i++) {
        utf8proc_uint8_t bytes[4];
        utf8proc_ssize_t used = utf8proc_encode_char(part->points[i], bytes);
        xp_text_add(out, (const char *)bytes, (size_t)used);
    }
    return XP_OK;
}

static xp_status normalize_from(segment *part, const char *text, size_t n, size_t at, xp_text *out,
                                bool *changed) {
    xp_text piece = {0};
    xp_status status = XP_OK;
    size_t copied = 0, previous = at;
    uint32_t c = 0, previous_c = 0;
    while (at < n && status == XP_OK) {
        size_t used = (size_t)xp_utf8_decode(text + at, n - at, &c);
        if (c < 0x300 || !is_maybe(c)) {
            previous = at;
            previous_c = c;
            at += used;
            continue;
        }
        size_t from = previous < at && is_first(previous_c) ? previous : at;
        for (at += used; at < n; at += used) {
            used = (size_t)xp_utf8_decode(text + at, n - at, &c);
            if (c < 0x300 || !is_maybe(c))
                break;
        }
        previous = at;
        xp_text_clear(&piece);
        status = normalize_segment(part, text + from, at - from, &piece);
        if (status != XP_OK ||
            (piece.length == at - from && !memcmp(piece.data, text + from, piece.length)))
            continue;
        *changed = true;
        xp_text_add(out, text + copied, from - copied);
        xp_text_add(out, piece.data, piece.length);
        copied = at;
    }
    if (*changed)
        xp_text_add(out, text + copied, n - copied);
    if (status == XP_OK && (out->failed || piece.failed))
        status = xp_error(XP_ENOMEM, "no memory to normalise %zu bytes of text", n);
    xp_text_free(&piece);
    return status;
}

xp_status xp_nfc_normalize(const char *text, size_t n, xp_text *out, bool *changed) {
    *changed = false;
    size_t at = 0;
    while (at < n && (unsigned char)text[at] < FIRST_RELEVANT_LEAD)
        at++;
    if (at == n)
        return XP_OK;
    /* Step back to the start of the code point before: it may be the base of what comes. */
    if (at > 0)
        for (at--; at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80;)
            at--;
    xp_text_clear(out);
    segment part = {0};
    xp_status status = normalize_from(&part, text, n, at, out, changed);
    free(part.points);
    free(part.sorted);
    return status;
}
