/* Reading a token cache: nothing of it is believed before it was checked. */
#include <stddef.h>
#include <string.h>

#include "data/chunk_hash.h"
#include "data/token_cache.h"
#include "data/token_cache_file.h"

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash ^= value + 0x9e3779b97f4a7c15U + (hash << 6) + (hash >> 2);
    hash *= 0xff51afd7ed558ccdU;
    return hash ^ (hash >> 33);
}

static uint64_t mix_text(uint64_t hash, const char *text) {
    for (; *text != '\0'; text++)
        hash = mix(hash, (unsigned char)*text);
    return mix(hash, 0x100);
}

uint64_t xp_token_cache_key(const xp_token_cache_args *args) {
    const xp_data_files *files = args->documents.files;
    uint64_t key = mix(XP_TOKEN_CACHE_MAGIC, xp_tokenizer_hash(args->tokenizer));
    key = mix_text(key, args->documents.text_field != NULL ? args->documents.text_field : "text");
    key = mix(key, args->documents.skip_bad_lines);
    for (int i = 0; i < files->n; i++) {
        key = mix_text(key, files->files[i].path);
        key = mix(mix(key, (uint64_t)files->files[i].n_bytes), (uint64_t)files->files[i].mtime_ns);
    }
    return key;
}

static xp_status damaged(const char *path, const char *what) {
    return xp_error(XP_EFORMAT, "the token cache %s is damaged (%s)", path, what);
}

static xp_status check_header(const char *path, uint64_t key, const xp_file_map *map,
                              xp_token_cache_header *head) {
    if (map->n_bytes < sizeof *head)
        return damaged(path, "shorter than its header");
    memcpy(head, map->data, sizeof *head);
    uint64_t hash;
    XP_TRY(xp_chunk_hash_of(head, offsetof(xp_token_cache_header, header_hash), NULL, &hash));
    if (head->magic != XP_TOKEN_CACHE_MAGIC || hash != head->header_hash || head->key != key)
        return damaged(path, "its header");
    uint64_t room = map->n_bytes - sizeof *head;
    if (head->n_tokens < 0 || head->n_documents < 1 || head->n_bad_lines < 0 ||
        (uint64_t)head->n_tokens > room / 4 || (uint64_t)head->n_documents >= room / 8)
        return damaged(path, "its counts");
    uint64_t token_bytes = ((uint64_t)head->n_tokens * 4 + 7) / 8 * 8;
    if (token_bytes + ((uint64_t)head->n_documents + 1) * 8 != room)
        return damaged(path, "its length");
    return XP_OK;
}

/* Also where the checksum fits: it is no signature, and everything below indexes memory by these. */
static xp_status check_values(const char *path, const xp_token_cache *cache, int64_t vocab_size) {
    if (cache->starts[0] != 0 || cache->starts[cache->n_documents] != cache->n_tokens)
        return damaged(path, "its document starts");
    for (int64_t i = 0; i < cache->n_documents; i++)
        if (cache->starts[i] > cache->starts[i + 1])
            return damaged(path, "its document starts");
    uint32_t most = 0;
    for (int64_t i = 0; i < cache->n_tokens; i++)
        most = cache->tokens[i] > most ? cache->tokens[i] : most;
    return cache->n_tokens > 0 && (int64_t)most >= vocab_size ? damaged(path, "its token ids")
                                                              : XP_OK;
}

static xp_status check(const char *path, uint64_t key, int64_t vocab_size, xp_pool *pool,
                       xp_token_cache *cache) {
    xp_token_cache_header head;
    XP_TRY(check_header(path, key, &cache->map, &head));
    const unsigned char *body = cache->map.data + sizeof head;
    uint64_t hash;
    XP_TRY(xp_chunk_hash_of(body, cache->map.n_bytes - sizeof head, pool, &hash));
    if (hash != head.body_hash)
        return damaged(path, "its checksum");
    cache->tokens = (const uint32_t *)(const void *)body;
    cache->starts = (const int64_t *)(const void *)(body + ((size_t)head.n_tokens * 4 + 7) / 8 * 8);
    cache->n_tokens = head.n_tokens;
    cache->n_documents = head.n_documents;
    cache->n_bad_lines = head.n_bad_lines;
    return check_values(path, cache, vocab_size);
}

xp_status xp_token_cache_map(const char *path, uint64_t key, int64_t vocab_size, xp_pool *pool,
                             xp_token_cache *cache) {
    xp_token_cache made = {0};
    XP_TRY(xp_file_map_open(path, &made.map));
    xp_status status = check(path, key, vocab_size, pool, &made);
    if (status != XP_OK) {
        xp_file_map_close(&made.map);
        return status;
    }
    *cache = made;
    return XP_OK;
}

void xp_token_cache_close(xp_token_cache *cache) {
    xp_file_map_close(&cache->map);
    *cache = (xp_token_cache){0};
}
