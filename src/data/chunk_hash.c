#include "data/chunk_hash.h"

#include <stdbool.h>
#include <stdlib.h>
#include <xxhash.h>

#define CHUNK_BYTES ((size_t)16 << 20)

struct xp_chunk_hash {
    XXH3_state_t *state; /* of the open chunk */
    size_t in_chunk;
    uint64_t *chunks; /* [n_chunks], of finished ones */
    size_t n_chunks, capacity;
};

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "checksum: out of memory");
}

xp_status xp_chunk_hash_create(xp_chunk_hash **hash) {
    xp_chunk_hash *h = calloc(1, sizeof *h);
    if (h == NULL || (h->state = XXH3_createState()) == NULL) {
        free(h);
        return no_memory();
    }
    XXH3_64bits_reset(h->state);
    *hash = h;
    return XP_OK;
}

void xp_chunk_hash_destroy(xp_chunk_hash *h) {
    if (h == NULL)
        return;
    XXH3_freeState(h->state);
    free(h->chunks);
    free(h);
}

static xp_status close_chunk(xp_chunk_hash *h) {
    if (h->n_chunks == h->capacity) {
        size_t capacity = h->capacity == 0 ? 64 : 2 * h->capacity;
        uint64_t *grown = realloc(h->chunks, capacity * sizeof *grown);
        if (grown == NULL)
            return no_memory();
        h->chunks = grown;
        h->capacity = capacity;
    }
    h->chunks[h->n_chunks++] = XXH3_64bits_digest(h->state);
    XXH3_64bits_reset(h->state);
    h->in_chunk = 0;
    return XP_OK;
}

xp_status xp_chunk_hash_add(xp_chunk_hash *h, const void *data, size_t n) {
    const char *at = data;
    while (n > 0) {
        size_t room = CHUNK_BYTES - h->in_chunk, take = n < room ? n : room;
        XXH3_64bits_update(h->state, at, take);
        h->in_chunk += take;
        at += take;
        n -= take;
        if (h->in_chunk == CHUNK_BYTES)
            XP_TRY(close_chunk(h));
    }
    return XP_OK;
}

xp_status xp_chunk_hash_finish(xp_chunk_hash *h, uint64_t *value) {
    if (h->in_chunk > 0)
        XP_TRY(close_chunk(h));
    *value = XXH3_64bits(h->chunks, h->n_chunks * sizeof *h->chunks);
    return XP_OK;
}

typedef struct whole {
    const char *data;
    size_t n;
    uint64_t *chunks;
} whole;

static void hash_chunk(void *context, int64_t tile, int worker) {
    (void)worker;
    const whole *w = context;
    size_t from = (size_t)tile * CHUNK_BYTES, left = w->n - from;
    w->chunks[tile] = XXH3_64bits(w->data + from, left < CHUNK_BYTES ? left : CHUNK_BYTES);
}

xp_status xp_chunk_hash_of(const void *data, size_t n, xp_pool *pool, uint64_t *value) {
    size_t n_chunks = (n + CHUNK_BYTES - 1) / CHUNK_BYTES;
    whole w = {.data = data, .n = n, .chunks = malloc((n_chunks + 1) * sizeof *w.chunks)};
    if (w.chunks == NULL)
        return no_memory();
    if (pool != NULL && n_chunks > 1)
        xp_pool_run(pool, hash_chunk, &w, (int64_t)n_chunks);
    else
        for (size_t i = 0; i < n_chunks; i++)
            hash_chunk(&w, (int64_t)i, 0);
    *value = XXH3_64bits(w.chunks, n_chunks * sizeof *w.chunks);
    free(w.chunks);
    return XP_OK;
}
