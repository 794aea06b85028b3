/**
 * Added tokens: strings that are one token wherever they stand in a text, found before anything
 * else is done with it. Leftmost first, of those the longest; flags as in Hugging Face tokenizers.
 */
#ifndef XP_DATA_ADDED_TOKENS_H
#define XP_DATA_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_added_tokens xp_added_tokens;

typedef struct xp_added_token {
    int32_t id;
    bool single_word;    /* only where no word character stands on either side */
    bool lstrip, rstrip; /* takes the white space before or after it along */
} xp_added_token;

XP_NODISCARD xp_status xp_added_tokens_create(xp_added_tokens **set);
void xp_added_tokens_destroy(xp_added_tokens *set);
/** @param content not empty; of equal contents the last counts */
XP_NODISCARD xp_status xp_added_tokens_add(xp_added_tokens *set, const char *content, size_t n,
                                           const xp_added_token *token);

/** A stretch of text: a token, or (token NULL) what stands between tokens. */
typedef xp_status (*xp_added_tokens_fn)(void *context, const xp_added_token *token,
                                        const char *text, size_t n);
/** Cut `text` (valid UTF-8) into tokens and the rest, in order; stops at the first status that is
 * not XP_OK. */
XP_NODISCARD xp_status xp_added_tokens_split(const xp_added_tokens *set, const char *text, size_t n,
                                             xp_added_tokens_fn fn, void *context);

#endif
