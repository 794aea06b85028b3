/** XXH3 of a long sequence of bytes by chunks, so that what was written from one thread can be checked by many. */
#ifndef XP_DATA_CHUNK_HASH_H
#define XP_DATA_CHUNK_HASH_H

#include <stddef.h>
#include <stdint.h>
#include "core/pool.h"
#include "expar/status.h"

typedef struct xp_chunk_hash xp_chunk_hash;
XP_NODISCARD xp_status xp_chunk_hash_create(xp_chunk_hash **hash);
void xp_chunk_hash_destroy(xp_chunk_hash *hash);
XP_NODISCARD xp_status xp_chunk_hash_add(xp_chunk_hash *hash, const void *data, size_t n);
/** Of everything added; nothing may be added afterwards. */
XP_NODISCARD xp_status xp_chunk_hash_finish(xp_chunk_hash *hash, uint64_t *value);
/** The same value for bytes that lie in memory. @param pool NULL = inline */
XP_NODISCARD xp_status xp_chunk_hash_of(const void *data, size_t n, xp_pool *pool, uint64_t *value);

#endif
