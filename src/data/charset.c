#include "data/charset.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* The order of scripts/unicode_tables.mjs. */
enum xp_unicode_gc {
    GC_CN,
    GC_CC,
    GC_CF,
    GC_CO,
    GC_CS,
    GC_LL,
    GC_LM,
    GC_LO,
    GC_LT,
    GC_LU,
    GC_MC,
    GC_ME,
    GC_MN,
    GC_ND,
    GC_NL,
    GC_NO,
    GC_PC,
    GC_PD,
    GC_PE,
    GC_PF,
    GC_PI,
    GC_PO,
    GC_PS,
    GC_SC,
    GC_SK,
    GC_SM,
    GC_SO,
    GC_ZL,
    GC_ZP,
    GC_ZS,
    GC_COUNT
};

#define BIT(category) (1u << (category))
#define LETTERS       (BIT(GC_LL) | BIT(GC_LM) | BIT(GC_LO) | BIT(GC_LT) | BIT(GC_LU))
#define MARKS         (BIT(GC_MC) | BIT(GC_ME) | BIT(GC_MN))
#define PUNCTUATION                                                                                \
    (BIT(GC_PC) | BIT(GC_PD) | BIT(GC_PE) | BIT(GC_PF) | BIT(GC_PI) | BIT(GC_PO) | BIT(GC_PS))

typedef struct category_name {
    const char *brief, *name; /* lower case, without separators */
    uint32_t categories;
} category_name;

static const category_name category_names[] = {
    {"c", "other", BIT(GC_CC) | BIT(GC_CF) | BIT(GC_CN) | BIT(GC_CO) | BIT(GC_CS)},
    {"cc", "control", BIT(GC_CC)},
    {"cf", "format", BIT(GC_CF)},
    {"cn", "unassigned", BIT(GC_CN)},
    {"co", "privateuse", BIT(GC_CO)},
    {"cs", "surrogate", BIT(GC_CS)},
    {"l", "letter", LETTERS},
    {"lc", "casedletter", BIT(GC_LL) | BIT(GC_LT) | BIT(GC_LU)},
    {"ll", "lowercaseletter", BIT(GC_LL)},
    {"lm", "modifierletter", BIT(GC_LM)},
    {"lo", "otherletter", BIT(GC_LO)},
    {"lt", "titlecaseletter", BIT(GC_LT)},
    {"lu", "uppercaseletter", BIT(GC_LU)},
    {"m", "mark", MARKS},
    {"mc", "spacingmark", BIT(GC_MC)},
    {"me", "enclosingmark", BIT(GC_ME)},
    {"mn", "nonspacingmark", BIT(GC_MN)},
    {"n", "number", BIT(GC_ND) | BIT(GC_NL) | BIT(GC_NO)},
    {"nd", "decimalnumber", BIT(GC_ND)},
    {"nl", "letternumber", BIT(GC_NL)},
    {"no", "othernumber", BIT(GC_NO)},
    {"p", "punctuation", PUNCTUATION},
    {"pc", "connectorpunctuation", BIT(GC_PC)},
    {"pd", "dashpunctuation", BIT(GC_PD)},
    {"pe", "closepunctuation", BIT(GC_PE)},
    {"pf", "finalpunctuation", BIT(GC_PF)},
    {"pi", "initialpunctuation", BIT(GC_PI)},
    {"po", "otherpunctuation", BIT(GC_PO)},
    {"ps", "openpunctuation", BIT(GC_PS)},
    {"s", "symbol", BIT(GC_SC) | BIT(GC_SK) | BIT(GC_SM) | BIT(GC_SO)},
    {"sc", "currencysymbol", BIT(GC_SC)},
    {"sk", "modifiersymbol", BIT(GC_SK)},
    {"sm", "mathsymbol", BIT(GC_SM)},
    {"so", "othersymbol", BIT(GC_SO)},
    {"z", "separator", BIT(GC_ZL) | BIT(GC_ZP) | BIT(GC_ZS)},
    {"zl", "lineseparator", BIT(GC_ZL)},
    {"zp", "paragraphseparator", BIT(GC_ZP)},
    {"zs", "spaceseparator", BIT(GC_ZS)},
};

typedef struct range_name {
    const char *name;
    const xp_unicode_range *ranges;
    const int *n;
} range_name;

static const range_name range_names[] = {
    {"whitespace", xp_unicode_white_space, &xp_unicode_n_white_space},
    {"arabic", xp_unicode_arabic, &xp_unicode_n_arabic},
    {"cyrillic", xp_unicode_cyrillic, &xp_unicode_n_cyrillic},
    {"devanagari", xp_unicode_devanagari, &xp_unicode_n_devanagari},
    {"greek", xp_unicode_greek, &xp_unicode_n_greek},
    {"han", xp_unicode_han, &xp_unicode_n_han},
    {"hangul", xp_unicode_hangul, &xp_unicode_n_hangul},
    {"hebrew", xp_unicode_hebrew, &xp_unicode_n_hebrew},
    {"hiragana", xp_unicode_hiragana, &xp_unicode_n_hiragana},
    {"katakana", xp_unicode_katakana, &xp_unicode_n_katakana},
    {"latin", xp_unicode_latin, &xp_unicode_n_latin},
    {"thai", xp_unicode_thai, &xp_unicode_n_thai},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

void xp_charset_free(xp_charset *set) {
    free(set->ranges);
    *set = (xp_charset){0};
}

void xp_charset_add(xp_charset *set, uint32_t first, uint32_t last) {
    if (set->failed)
        return;
    if (set->n == set->capacity) {
        int capacity = set->capacity ? 2 * set->capacity : 16;
        xp_unicode_range *grown = realloc(set->ranges, (size_t)capacity * sizeof(*grown));
        if (!grown) {
            set->failed = true;
            return;
        }
        set->ranges = grown;
        set->capacity = capacity;
    }
    set->ranges[set->n++] = (xp_unicode_range){first, last};
}

void xp_charset_add_set(xp_charset *set, const xp_charset *other) {
    for (int i = 0; i < other->n; i++)
        xp_charset_add(set, other->ranges[i].first, other->ranges[i].last);
    set->failed |= other->failed;
}

static int compare_ranges(const void *a, const void *b) {
    const xp_unicode_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

void xp_charset_normalize(xp_charset *set) {
    if (set->n < 2)
        return;
    qsort(set->ranges, (size_t)set->n, sizeof(set->ranges[0]), compare_ranges);
    int n = 1;
    for (int i = 1; i < set->n; i++) {
        xp_unicode_range *previous = &set->ranges[n - 1];
        if (set->ranges[i].first > previous->last + 1)
            set->ranges[n++] = set->ranges[i];
        else if (set->ranges[i].last > previous->last)
            previous->last = set->ranges[i].last;
    }
    set->n = n;
}

void xp_charset_complement(xp_charset *set) {
    xp_charset result = {.failed = set->failed};
    uint32_t next = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->ranges[i].first > next)
            xp_charset_add(&result, next, set->ranges[i].first - 1);
        next = set->ranges[i].last + 1;
    }
    if (next <= XP_CODE_POINT_MAX)
        xp_charset_add(&result, next, XP_CODE_POINT_MAX);
    xp_charset_free(set);
    *set = result;
}

bool xp_unicode_in(const xp_unicode_range *ranges, int n, uint32_t code_point) {
    int low = 0, high = n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (ranges[middle].last < code_point)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && ranges[low].first <= code_point;
}

bool xp_charset_has(const xp_charset *set, uint32_t code_point) {
    return xp_unicode_in(set->ranges, set->n, code_point);
}

static void add_categories(xp_charset *set, uint32_t categories) {
    for (int i = 0; i < xp_unicode_n_gc_starts; i++) {
        uint32_t start = xp_unicode_gc_starts[i];
        if (!(categories & BIT(start & 31)))
            continue;
        uint32_t end = i + 1 < xp_unicode_n_gc_starts ? xp_unicode_gc_starts[i + 1] >> 5
                                                      : XP_CODE_POINT_MAX + 1;
        xp_charset_add(set, start >> 5, end - 1);
    }
}

static void add_ranges(xp_charset *set, const xp_unicode_range *ranges, int n) {
    for (int i = 0; i < n; i++)
        xp_charset_add(set, ranges[i].first, ranges[i].last);
}

static void add_alphabetic(xp_charset *set) {
    add_categories(set, LETTERS | BIT(GC_NL));
    add_ranges(set, xp_unicode_other_alphabetic, xp_unicode_n_other_alphabetic);
}

bool xp_charset_add_property(xp_charset *set, const char *name, size_t n) {
    char key[40];
    size_t length = 0;
    for (size_t i = 0; i < n; i++) {
        if (name[i] == '_' || name[i] == '-' || name[i] == ' ')
            continue;
        if (length + 1 >= sizeof(key))
            return false;
        key[length++] = (char)tolower((unsigned char)name[i]);
    }
    key[length] = '\0';
    for (size_t i = 0; i < COUNT(category_names); i++)
        if (!strcmp(key, category_names[i].brief) || !strcmp(key, category_names[i].name)) {
            add_categories(set, category_names[i].categories);
            return true;
        }
    for (size_t i = 0; i < COUNT(range_names); i++)
        if (!strcmp(key, range_names[i].name)) {
            add_ranges(set, range_names[i].ranges, *range_names[i].n);
            return true;
        }
    if (!strcmp(key, "alphabetic"))
        add_alphabetic(set);
    else if (!strcmp(key, "any"))
        xp_charset_add(set, 0, XP_CODE_POINT_MAX);
    else
        return false;
    return true;
}

void xp_charset_add_escape(xp_charset *set, char letter) {
    switch (letter) {
    case 's':
        add_ranges(set, xp_unicode_white_space, xp_unicode_n_white_space);
        break;
    case 'd':
        add_categories(set, BIT(GC_ND));
        break;
    case 'h':
        xp_charset_add(set, '0', '9');
        xp_charset_add(set, 'A', 'F');
        xp_charset_add(set, 'a', 'f');
        break;
    default: /* w */
        add_alphabetic(set);
        add_categories(set, MARKS | BIT(GC_ND) | BIT(GC_PC));
        /* Superscripts and fractions of Latin-1: Oniguruma counts them in, Unicode does not. */
        xp_charset_add(set, 0xb2, 0xb3);
        xp_charset_add(set, 0xb9, 0xb9);
        xp_charset_add(set, 0xbc, 0xbe);
        break;
    }
}

bool xp_unicode_is_space(uint32_t code_point) {
    return xp_unicode_in(xp_unicode_white_space, xp_unicode_n_white_space, code_point);
}

bool xp_unicode_is_word(uint32_t code_point) {
    int low = 0, high = xp_unicode_n_gc_starts; /* the last start at or before the code point */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (xp_unicode_gc_starts[middle] >> 5 <= code_point)
            low = middle;
        else
            high = middle;
    }
    uint32_t word = LETTERS | MARKS | BIT(GC_ND) | BIT(GC_NL) | BIT(GC_PC);
    return (word & BIT(xp_unicode_gc_starts[low] & 31)) != 0 ||
           xp_unicode_in(xp_unicode_other_alphabetic, xp_unicode_n_other_alphabetic, code_point) ||
           xp_unicode_in(xp_unicode_join_control, xp_unicode_n_join_control, code_point);
}
