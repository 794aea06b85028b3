/**
 * Tokenised text on disk: built once for (files, tokenizer), then mapped. The file is native
 * little-endian: header (64 bytes: magic, version, key, counts) | tokens uint32 [n_tokens] |
 * document starts int64 [n_documents + 1] A document is [BOS] text [EOS] as far as the tokenizer
 * defines them.
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
    const uint32_t *tokens; /* [n_tokens] */
    const int64_t *starts;  /* [n_documents + 1] */
    int64_t n_tokens, n_documents;
} xp_token_cache;

/**
 * Map the cache of these files in `folder`, building it first when it is missing. Processes that
 * need the same cache at the same time build it once: the others wait.
 * @return XP_OK; XP_EIO; XP_EFORMAT from the documents
 */
XP_NODISCARD xp_status xp_token_cache_open(const char *folder, const xp_data_files *files,
                                           const xp_tokenizer *tokenizer, xp_pool *pool,
                                           xp_log *log, xp_token_cache *cache);
void xp_token_cache_close(xp_token_cache *cache);

#endif
