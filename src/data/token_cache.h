/**
 * Tokenised text on disk: built once for (files, tokenizer, how lines are read), then mapped. The file is native
 * little-endian: header (64 bytes: magic, version, key, counts, checksums) | tokens uint32 [n_tokens] |
 * document starts int64 [n_documents + 1]. A document is [BOS] text [EOS] as far as the tokenizer
 * defines them. Every opening checks the whole file; one that is damaged is built again.
 */
#ifndef XP_DATA_TOKEN_CACHE_H
#define XP_DATA_TOKEN_CACHE_H

#include "core/file.h"
#include "core/log.h"
#include "core/pool.h"
#include "data/documents.h"
#include "data/tokenizer.h"

typedef struct xp_token_cache {
    xp_file_map map;
    const uint32_t *tokens; /* [n_tokens], each below the tokenizer's vocabulary */
    const int64_t *starts;  /* [n_documents + 1], ascending from 0 to n_tokens */
    int64_t n_tokens, n_documents;
    int64_t n_bad_lines; /* left out when the text was tokenised */
} xp_token_cache;

typedef struct xp_token_cache_args {
    const char *folder;          /* made when missing */
    xp_documents_args documents; /* borrowed */
    const xp_tokenizer *tokenizer;
    xp_pool *pool; /* NULL: inline */
    xp_log *log;
} xp_token_cache_args;

/**
 * Map the cache of these documents in the folder, building it first when it is missing or damaged. Processes that
 * need the same cache at the same time build it once: the others wait.
 * @return XP_OK; XP_EIO; XP_EFORMAT from the documents
 */
XP_NODISCARD xp_status xp_token_cache_open(const xp_token_cache_args *args, xp_token_cache *cache);
void xp_token_cache_close(xp_token_cache *cache);

/**
 * Map and check one file. What xp_token_cache_open() does with a cache that is there.
 * @param vocab_size  ids at or above it are damage
 * @return XP_OK; XP_ENOENT; XP_EIO; XP_EFORMAT: damaged, with what is wrong
 */
XP_NODISCARD xp_status xp_token_cache_map(const char *path, uint64_t key, int64_t vocab_size,
                                          xp_pool *pool, xp_token_cache *cache);
/** What decides a cache's name. */
uint64_t xp_token_cache_key(const xp_token_cache_args *args);

#endif
