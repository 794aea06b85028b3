/**
 * The 64-bit xxHash (seed 0) of a byte stream, after its published specification: fast enough to
 * run beside every write, and checkable from outside with `xxhsum -H64`. It finds damage, not
 * forgery.
 */
#ifndef XP_CHECKPOINT_XXH64_H
#define XP_CHECKPOINT_XXH64_H

#include <stddef.h>
#include <stdint.h>

typedef struct xp_xxh64 {
    uint64_t lanes[4];
    uint64_t n_bytes;
    unsigned char tail[32]; /* the last n_bytes % 32 bytes */
} xp_xxh64;

void xp_xxh64_init(xp_xxh64 *state);
void xp_xxh64_update(xp_xxh64 *state, const void *data, size_t n_bytes);
/** The hash of everything so far; the state can go on. */
uint64_t xp_xxh64_digest(const xp_xxh64 *state);
uint64_t xp_xxh64_hash(const void *data, size_t n_bytes);

#endif
