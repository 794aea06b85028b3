/** What bpe.c (model, words, short merges) and bpe_long.c (words of any length) share. */
#ifndef XP_DATA_BPE_INTERNAL_H
#define XP_DATA_BPE_INTERNAL_H

#include "data/bpe.h"

typedef struct xp_bpe_pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t result;
} xp_bpe_pair;

struct xp_bpe {
    const char *bytes;
    const int64_t *offsets;
    int32_t byte_ids[256];
    xp_bpe_pair *pairs; /* open addressing, [pair_mask + 1] */
    uint64_t pair_mask;
    int32_t *
        words; /* open addressing: tokens that a whole word may become, -1: free; [word_mask + 1] */
    uint64_t word_mask;
    size_t longest_word;
};

/** NULL when the two do not merge. */
const xp_bpe_pair *xp_bpe_find_pair(const xp_bpe *bpe, int32_t left, int32_t right);
/** Merge a word of at least two bytes, however long. */
XP_NODISCARD xp_status xp_bpe_merge_long(const xp_bpe *bpe, const char *word, size_t n,
                                         xp_token_list *out);

#endif
