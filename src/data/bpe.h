/**
 * Byte-pair merging over bytes. Words come in, token ids go out: the pair with the lowest rank
 * first, the leftmost of equals. Immutable after creation; each thread brings its own scratch.
 */
#ifndef XP_DATA_BPE_H
#define XP_DATA_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "data/tokenizer.h"

typedef struct xp_bpe xp_bpe;
typedef struct xp_bpe_scratch xp_bpe_scratch;

typedef struct xp_bpe_merge {
    int32_t left, right, result; /* token ids; the result's bytes are the left's and the right's */
} xp_bpe_merge;

typedef struct xp_bpe_args {
    const char *bytes;      /* all tokens one after another */
    const int64_t *offsets; /* [n_tokens + 1] token i is bytes[offsets[i], offsets[i + 1]); empty:
                               no token of the model */
    int32_t n_tokens;
    int32_t byte_ids[256];      /* the token of each byte */
    const xp_bpe_merge *merges; /* best rank first; of equal pairs the last counts */
    int32_t n_merges;
    bool ignore_merges; /* a word that is a token stays whole, whether merges lead there or not */
} xp_bpe_args;

/** `bytes` and `offsets` are borrowed and must outlive the model. @return XP_OK; XP_ENOMEM */
XP_NODISCARD xp_status xp_bpe_create(const xp_bpe_args *args, xp_bpe **bpe);
void xp_bpe_destroy(xp_bpe *bpe);

/** @param n_bytes how much text is to come: decides the size of the cache of words */
XP_NODISCARD xp_status xp_bpe_scratch_create(size_t n_bytes, xp_bpe_scratch **scratch);
void xp_bpe_scratch_destroy(xp_bpe_scratch *scratch);

/** Append the ids of one word. Linear in its length up to sorting. @return XP_OK; XP_ENOMEM;
 * XP_ENOTSUP: a word of 2 GiB */
XP_NODISCARD xp_status xp_bpe_encode(const xp_bpe *bpe, xp_bpe_scratch *scratch, const char *word,
                                     size_t n, xp_token_list *out);

/** Make room for `n` more ids. */
XP_NODISCARD xp_status xp_token_list_reserve(xp_token_list *list, int64_t n);

#endif
