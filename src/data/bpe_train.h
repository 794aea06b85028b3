/** Learning byte-pair merges from counted words: the most frequent pair first, of equals the one
 * with the lower ids. */
#ifndef XP_DATA_BPE_TRAIN_H
#define XP_DATA_BPE_TRAIN_H

#include "data/bpe.h"
#include "data/word_counts.h"

typedef struct xp_bpe_vocabulary {
    xp_text bytes;    /* all tokens one after another */
    int64_t *offsets; /* [n_tokens + 1] */
    int32_t n_tokens, capacity;
    xp_bpe_merge *merges;
    int32_t n_merges, merge_capacity;
} xp_bpe_vocabulary;

/**
 * Tokens 0..255 are the single bytes, ordered by the characters that stand for them. Stops at
 * n_tokens, or earlier when no pair occurs twice. Deterministic: depends on the words and their
 * counts only.
 */
XP_NODISCARD xp_status xp_bpe_train(const xp_word_counts *counts, int32_t n_tokens,
                                    xp_bpe_vocabulary *vocabulary);
void xp_bpe_vocabulary_free(xp_bpe_vocabulary *vocabulary);

#endif
