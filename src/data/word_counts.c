#include "data/word_counts.h"

#include <stdlib.h>
#include <string.h>
#include "data/nfc.h"
#include "data/tokenizer_internal.h"

/* Longer runs are data, not language; they would cost time and teach nothing. */
#define MAX_WORD_BYTES 4096

const char *xp_qwen_pattern(void) {
    return "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
           "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
           "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
}

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "no memory to count words");
}

xp_status xp_word_counts_init(xp_word_counts *counts) {
    *counts = (xp_word_counts){0};
    xp_status status =
        xp_pattern_compile(xp_qwen_pattern(), strlen(xp_qwen_pattern()), &counts->pattern);
    if (status == XP_OK)
        status = xp_pattern_scratch_create(counts->pattern, &counts->scratch);
    if (status != XP_OK)
        xp_word_counts_free(counts);
    return status;
}

void xp_word_counts_free(xp_word_counts *counts) {
    xp_text_free(&counts->bytes);
    xp_text_free(&counts->repaired);
    xp_text_free(&counts->normalized);
    free(counts->words);
    free(counts->table);
    xp_pattern_scratch_destroy(counts->scratch);
    xp_pattern_destroy(counts->pattern);
    *counts = (xp_word_counts){0};
}

static uint32_t hash_word(const char *word, size_t n) {
    uint32_t hash = 0x811c9dc5u;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)word[i]) * 0x01000193u;
    return hash ^ hash >> 15;
}

static uint32_t find_slot(const xp_word_counts *c, const char *word, size_t n) {
    uint32_t slot = hash_word(word, n) & c->mask;
    for (; c->table[slot] >= 0; slot = (slot + 1) & c->mask) {
        const xp_word *known = &c->words[c->table[slot]];
        if ((size_t)known->n == n && !memcmp(c->bytes.data + known->offset, word, n))
            break;
    }
    return slot;
}

static xp_status grow(xp_word_counts *c) {
    if (c->capacity > INT32_MAX / 4)
        return xp_error(XP_ENOTSUP, "more than %d different words", INT32_MAX / 4);
    int32_t capacity = c->capacity ? 2 * c->capacity : 1024;
    xp_word *words = realloc(c->words, (size_t)capacity * sizeof(*words));
    if (words)
        c->words = words;
    int32_t *table = words ? realloc(c->table, 2 * (size_t)capacity * sizeof(*table)) : NULL;
    if (!table)
        return no_memory();
    c->table = table;
    c->capacity = capacity;
    c->mask = 2 * (uint32_t)capacity - 1;
    memset(table, 0xff, 2 * (size_t)capacity * sizeof(*table));
    for (int32_t w = 0; w < c->n_words; w++)
        table[find_slot(c, c->bytes.data + c->words[w].offset, (size_t)c->words[w].n)] = w;
    return XP_OK;
}

static xp_status count_word(void *context, const xp_pattern_piece *piece) {
    xp_word_counts *c = context;
    if (piece->n > MAX_WORD_BYTES)
        return XP_OK;
    if (c->n_words == c->capacity)
        XP_TRY(grow(c));
    uint32_t slot = find_slot(c, piece->bytes, piece->n);
    if (c->table[slot] < 0) {
        c->words[c->n_words] =
            (xp_word){.offset = (int64_t)c->bytes.length, .n = (int32_t)piece->n};
        xp_text_add(&c->bytes, piece->bytes, piece->n);
        if (c->bytes.failed)
            return no_memory();
        c->table[slot] = c->n_words++;
    }
    c->words[c->table[slot]].count++;
    return XP_OK;
}

xp_status xp_word_counts_add(xp_word_counts *counts, const char *text, size_t n) {
    bool changed = false;
    counts->n_text_bytes += (int64_t)n;
    counts->n_documents++;
    XP_TRY(xp_tokenizer_repair_utf8(text, n, &counts->repaired, &changed));
    if (changed) {
        text = counts->repaired.data;
        n = counts->repaired.length;
    }
    XP_TRY(xp_nfc_normalize(text, n, &counts->normalized, &changed));
    if (changed) {
        text = counts->normalized.data;
        n = counts->normalized.length;
    }
    return xp_pattern_split(counts->pattern, counts->scratch, text, n, count_word, counts);
}
