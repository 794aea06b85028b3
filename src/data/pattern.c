#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include "core/text.h"
#include "data/pattern_parse.h"

#define N_CODE_POINTS   (XP_CODE_POINT_MAX + 1)
#define MAX_CLASSES     255
#define SIGNATURE_WORDS (XP_PATTERN_MAX_SETS / 64)
#define JIT_STACK_BYTES ((size_t)64 << 20)
/* Steps of one match: linear patterns on a gigabyte stay far below, exponential ones end within
 * seconds. */
#define MATCH_LIMIT 200000000u
#define HEAP_KBYTES (256u << 10)

/* Which sets an interval of code points belongs to: one bit a set. */
typedef struct signature {
    uint64_t words[SIGNATURE_WORDS];
} signature;

typedef struct partition {
    uint32_t *borders;     /* [n + 1] the intervals' first code points, and the end of Unicode */
    signature *signatures; /* [n] */
    int n;
    signature classes[MAX_CLASSES];
    int n_classes;
} partition;

struct xp_pattern {
    pcre2_code *code;
    uint8_t *classes; /* [N_CODE_POINTS] */
};

struct xp_pattern_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack; /* made at the first match that needs more than the thread's own */
    uint8_t *subject;       /* the text in class bytes */
    size_t capacity;
};

static int compare_u32(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static xp_status find_borders(const xp_pattern_parts *parts, partition *cut) {
    size_t n = 2;
    for (int s = 0; s < parts->n_sets; s++)
        n += 2 * (size_t)parts->sets[s].n;
    cut->borders = malloc(n * sizeof(*cut->borders));
    cut->signatures = calloc(n, sizeof(*cut->signatures));
    if (!cut->borders || !cut->signatures)
        return xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
    n = 0;
    cut->borders[n++] = 0;
    cut->borders[n++] = N_CODE_POINTS;
    for (int s = 0; s < parts->n_sets; s++)
        for (int r = 0; r < parts->sets[s].n; r++) {
            cut->borders[n++] = parts->sets[s].ranges[r].first;
            cut->borders[n++] = parts->sets[s].ranges[r].last + 1;
        }
    qsort(cut->borders, n, sizeof(*cut->borders), compare_u32);
    size_t kept = 1;
    for (size_t i = 1; i < n; i++)
        if (cut->borders[i] != cut->borders[kept - 1])
            cut->borders[kept++] = cut->borders[i];
    cut->n = (int)kept - 1;
    return XP_OK;
}

static void sign_intervals(const xp_pattern_parts *parts, partition *cut) {
    for (int s = 0; s < parts->n_sets; s++) {
        int i = 0;
        for (int r = 0; r < parts->sets[s].n; r++) {
            while (cut->borders[i] < parts->sets[s].ranges[r].first)
                i++;
            for (; i < cut->n && cut->borders[i] <= parts->sets[s].ranges[r].last; i++)
                cut->signatures[i].words[s / 64] |= (uint64_t)1 << (s % 64);
        }
    }
}

/* Number the distinct signatures and write every code point's class. */
static xp_status assign_classes(partition *cut, uint8_t *classes) {
    for (int i = 0; i < cut->n; i++) {
        int c = 0;
        while (c < cut->n_classes &&
               memcmp(&cut->classes[c], &cut->signatures[i], sizeof(signature)) != 0)
            c++;
        if (c == MAX_CLASSES)
            return xp_error(
                XP_ENOTSUP,
                "pre-tokeniser pattern: it tells more than %d kinds of characters apart",
                MAX_CLASSES);
        if (c == cut->n_classes)
            cut->classes[cut->n_classes++] = cut->signatures[i];
        memset(classes + cut->borders[i], c, cut->borders[i + 1] - cut->borders[i]);
    }
    return XP_OK;
}

static void write_set(const partition *cut, int set, xp_text *out) {
    int n = 0, only = 0;
    for (int c = 0; c < cut->n_classes; c++)
        if (cut->classes[c].words[set / 64] >> (set % 64) & 1) {
            only = c;
            n++;
        }
    if (n == 0) {
        xp_text_puts(out, "(?!)");
        return;
    }
    if (n == 1) {
        xp_text_printf(out, "\\x%02x", only);
        return;
    }
    xp_text_puts(out, "[");
    for (int c = 0; c < cut->n_classes; c++)
        if (cut->classes[c].words[set / 64] >> (set % 64) & 1)
            xp_text_printf(out, "\\x%02x", c);
    xp_text_puts(out, "]");
}

static xp_status compile_program(const xp_pattern_parts *parts, const partition *cut,
                                 pcre2_code **code) {
    xp_text program = {0};
    for (int i = 0; i < parts->n_items; i++)
        if (parts->items[i].set >= 0)
            write_set(cut, parts->items[i].set, &program);
        else
            xp_text_add(&program, parts->items[i].raw, (size_t)parts->items[i].n_raw);
    if (program.failed) {
        xp_text_free(&program);
        return xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
    }
    int error = 0;
    PCRE2_SIZE at = 0;
    *code = pcre2_compile((PCRE2_SPTR)(program.data ? program.data : ""), program.length, 0, &error,
                          &at, NULL);
    xp_text_free(&program);
    if (!*code) {
        PCRE2_UCHAR message[200] = "";
        pcre2_get_error_message(error, message, sizeof(message));
        return xp_error(XP_EFORMAT, "pre-tokeniser pattern: %s", (const char *)message);
    }
    /* Where JIT is not built in, or the system allows no executable memory, the interpreter does
     * the same work. */
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);
    return XP_OK;
}

static xp_status compile_parts(const xp_pattern_parts *parts, xp_pattern **pattern) {
    partition *cut = calloc(1, sizeof(*cut));
    xp_pattern *made = calloc(1, sizeof(*made));
    xp_status status = XP_OK;
    if (!cut || !made || !(made->classes = malloc(N_CODE_POINTS)))
        status = xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
    if (status == XP_OK)
        status = find_borders(parts, cut);
    if (status == XP_OK) {
        sign_intervals(parts, cut);
        status = assign_classes(cut, made->classes);
    }
    if (status == XP_OK)
        status = compile_program(parts, cut, &made->code);
    if (cut) {
        free(cut->borders);
        free(cut->signatures);
        free(cut);
    }
    if (status != XP_OK) {
        xp_pattern_destroy(made);
        return status;
    }
    *pattern = made;
    return XP_OK;
}

static xp_status compile(const char *text, size_t n, bool literal, xp_pattern **pattern) {
    xp_pattern_parts *parts = malloc(sizeof(*parts));
    if (!parts)
        return xp_error(XP_ENOMEM, "no memory for a pre-tokeniser pattern");
    xp_status status =
        literal ? xp_pattern_parse_literal(text, n, parts) : xp_pattern_parse(text, n, parts);
    if (status == XP_OK) {
        status = compile_parts(parts, pattern);
        xp_pattern_parts_free(parts);
    }
    free(parts);
    return status;
}

xp_status xp_pattern_compile(const char *regex, size_t n, xp_pattern **pattern) {
    return compile(regex, n, false, pattern);
}

xp_status xp_pattern_compile_literal(const char *string, size_t n, xp_pattern **pattern) {
    return compile(string, n, true, pattern);
}

void xp_pattern_destroy(xp_pattern *pattern) {
    if (!pattern)
        return;
    pcre2_code_free(pattern->code);
    free(pattern->classes);
    free(pattern);
}

xp_status xp_pattern_scratch_create(const xp_pattern *pattern, xp_pattern_scratch **scratch) {
    xp_pattern_scratch *made = calloc(1, sizeof(*made));
    if (made) {
        made->data = pcre2_match_data_create_from_pattern(pattern->code, NULL);
        made->context = pcre2_match_context_create(NULL);
    }
    if (!made || !made->data || !made->context) {
        xp_pattern_scratch_destroy(made);
        return xp_error(XP_ENOMEM, "no memory to match a pre-tokeniser pattern");
    }
    pcre2_set_match_limit(made->context, MATCH_LIMIT);
    pcre2_set_heap_limit(made->context, HEAP_KBYTES);
    *scratch = made;
    return XP_OK;
}

void xp_pattern_scratch_destroy(xp_pattern_scratch *scratch) {
    if (!scratch)
        return;
    pcre2_match_data_free(scratch->data);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    free(scratch->subject);
    free(scratch);
}

/* Bytes of the sequence that this byte leads; the text is known to be valid. */
static size_t sequence_bytes(unsigned char lead) {
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

static uint32_t decode_valid(const unsigned char *s) {
    if (s[0] < 0xe0)
        return (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    if (s[0] < 0xf0)
        return (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 |
           (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
}

static xp_status translate(const xp_pattern *pattern, xp_pattern_scratch *scratch, const char *text,
                           size_t n, size_t *n_subject) {
    if (scratch->capacity < n) {
        size_t capacity = n > SIZE_MAX / 2 ? n : n + n / 4 + 64;
        uint8_t *grown = realloc(scratch->subject, capacity);
        if (!grown)
            return xp_error(XP_ENOMEM, "no memory to split %zu bytes of text", n);
        scratch->subject = grown;
        scratch->capacity = capacity;
    }
    const unsigned char *in = (const unsigned char *)text, *end = in + n;
    const uint8_t *classes = pattern->classes;
    uint8_t *out = scratch->subject;
    while (in < end) {
        if (*in < 0x80) {
            *out++ = classes[*in++];
            continue;
        }
        *out++ = classes[decode_valid(in)];
        in += sequence_bytes(*in);
    }
    *n_subject = (size_t)(out - scratch->subject);
    return XP_OK;
}

/* Empty matches count: they cut the text too. @return 1 found, 0 none, -1 refused (the error is
 * set) */
static int match_from(const xp_pattern *pattern, xp_pattern_scratch *scratch, size_t n, size_t from,
                      xp_status *status) {
    int rc =
        pcre2_match(pattern->code, scratch->subject, n, from, 0, scratch->data, scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !scratch->stack) {
        scratch->stack = pcre2_jit_stack_create(64 << 10, JIT_STACK_BYTES, NULL);
        if (scratch->stack) {
            pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
            rc = pcre2_match(pattern->code, scratch->subject, n, from, 0, scratch->data,
                             scratch->context);
        }
    }
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return rc >= 0;
    PCRE2_UCHAR message[200] = "";
    pcre2_get_error_message(rc, message, sizeof(message));
    *status = xp_error(
        XP_EFORMAT, "the pre-tokeniser pattern gives up on this text (%s): it backtracks too much",
        (const char *)message);
    return -1;
}

/* Where in the text a subject offset lies; only ever moves forward. */
typedef struct cursor {
    const char *text;
    size_t byte, unit;
    bool ascii;
} cursor;

static void advance(cursor *at, size_t unit) {
    if (at->ascii)
        at->byte += unit - at->unit;
    else
        for (size_t i = at->unit; i < unit; i++)
            at->byte += sequence_bytes((unsigned char)at->text[at->byte]);
    at->unit = unit;
}

static xp_status emit(cursor *at, size_t unit, bool matched, xp_pattern_piece_fn fn,
                      void *context) {
    size_t start = at->byte;
    if (unit == at->unit)
        return XP_OK;
    advance(at, unit);
    return fn(context, &(xp_pattern_piece){at->text + start, at->byte - start, matched});
}

xp_status xp_pattern_split(const xp_pattern *pattern, xp_pattern_scratch *scratch, const char *text,
                           size_t n, xp_pattern_piece_fn fn, void *context) {
    size_t n_subject = 0;
    XP_TRY(translate(pattern, scratch, text, n, &n_subject));
    cursor at = {.text = text, .ascii = n_subject == n};
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(scratch->data);
    xp_status status = XP_OK;
    size_t from = 0, last_end = SIZE_MAX;
    while (from <= n_subject) {
        int found = match_from(pattern, scratch, n_subject, from, &status);
        if (found < 0)
            return status;
        if (found == 0)
            break;
        size_t start = span[0], end = span[1];
        if (start == end && end == last_end) { /* an empty match right behind the last one */
            from++;
            continue;
        }
        from = last_end = end;
        XP_TRY(emit(&at, start, false, fn, context));
        XP_TRY(emit(&at, end, true, fn, context));
    }
    return emit(&at, n_subject, false, fn, context);
}
