/** How often each pre-tokenised word occurs in a text: what byte-pair training starts from. */
#ifndef XP_DATA_WORD_COUNTS_H
#define XP_DATA_WORD_COUNTS_H

#include <stddef.h>
#include <stdint.h>
#include "core/text.h"
#include "data/pattern.h"

typedef struct xp_word {
    int64_t offset; /* in bytes */
    int64_t count;
    int32_t n;
} xp_word;

typedef struct xp_word_counts {
    xp_text bytes;  /* all words one after another */
    xp_word *words; /* [n_words] in order of first appearance */
    int32_t n_words, capacity;
    int32_t *table; /* open addressing, -1: free */
    uint32_t mask;
    int64_t n_text_bytes, n_documents;

    xp_pattern *pattern;
    xp_pattern_scratch *scratch;
    xp_text repaired, normalized;
} xp_word_counts;

/** The pre-tokeniser pattern of Qwen2 and Qwen3. */
const char *xp_qwen_pattern(void);
XP_NODISCARD xp_status xp_word_counts_init(xp_word_counts *counts);
void xp_word_counts_free(xp_word_counts *counts);
/** Count the words of a document, prepared as xp_tokenizer_encode() does. Words of over 4096 bytes
 * are left out. */
XP_NODISCARD xp_status xp_word_counts_add(xp_word_counts *counts, const char *text, size_t n);

#endif
