/** The token cache's file, for its reader and its writer. Inside src/data. */
#ifndef XP_DATA_TOKEN_CACHE_FILE_H
#define XP_DATA_TOKEN_CACHE_FILE_H

#include <stdint.h>

#define XP_TOKEN_CACHE_MAGIC 0x32434b5450585045U /* "EPXPTKC2" */

typedef struct xp_token_cache_header {
    uint64_t magic, key;
    int64_t n_tokens, n_documents, n_bad_lines;
    uint64_t body_hash; /* of everything behind the header: xp_chunk_hash */
    uint64_t reserved;
    uint64_t header_hash; /* of the fields before it: xp_chunk_hash */
} xp_token_cache_header;

#endif
