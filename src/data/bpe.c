#include "data/bpe_internal.h"

#include <stdlib.h>
#include <string.h>

/* Up to here a scan for the best pair beats every queue. */
#define SHORT_BYTES 96
#define CACHE_WORD  30
#define CACHE_IDS   8
#define CACHE_MIN   64
#define CACHE_MAX   32768

typedef struct cached_word {
    uint8_t n, n_ids; /* n = 0: free */
    char word[CACHE_WORD];
    int32_t ids[CACHE_IDS];
} cached_word;

struct xp_bpe_scratch {
    cached_word *cache; /* [mask + 1] one place a hash, the newest word wins */
    uint64_t mask;
};

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    return x;
}

static uint64_t hash_bytes(const char *s, size_t n) {
    uint64_t hash = n * 0xff51afd7ed558ccdu;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t chunk;
        memcpy(&chunk, s, 8);
        hash = mix(hash ^ chunk) * 0xc4ceb9fe1a85ec53u;
    }
    uint64_t tail = 0;
    memcpy(&tail, s, n);
    return mix(mix(hash ^ tail) * 0xc4ceb9fe1a85ec53u);
}

/* A power of two with room for n at a load of at most two thirds. */
static uint64_t table_size(uint64_t n) {
    uint64_t size = 16;
    while (size * 2 < n * 3)
        size *= 2;
    return size;
}

const xp_bpe_pair *xp_bpe_find_pair(const xp_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint64_t i = mix(key) & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask) {
        const xp_bpe_pair *pair = &bpe->pairs[i];
        if (pair->key == key)
            return pair;
        if (pair->key == UINT64_MAX)
            return NULL;
    }
}

static xp_status fill_pairs(xp_bpe *bpe, const xp_bpe_args *args) {
    uint64_t size = table_size((uint64_t)args->n_merges);
    bpe->pairs = malloc(size * sizeof(*bpe->pairs));
    if (!bpe->pairs)
        return xp_error(XP_ENOMEM, "no memory for %d merges", args->n_merges);
    bpe->pair_mask = size - 1;
    for (uint64_t i = 0; i < size; i++)
        bpe->pairs[i].key = UINT64_MAX;
    for (int32_t m = 0; m < args->n_merges; m++) {
        const xp_bpe_merge *merge = &args->merges[m];
        uint64_t key = (uint64_t)(uint32_t)merge->left << 32 | (uint32_t)merge->right;
        uint64_t i = mix(key) & bpe->pair_mask;
        while (bpe->pairs[i].key != key && bpe->pairs[i].key != UINT64_MAX)
            i = (i + 1) & bpe->pair_mask;
        bpe->pairs[i] = (xp_bpe_pair){key, (uint32_t)m, merge->result};
    }
    return XP_OK;
}

/* The merges of a short word: ranks[i] belongs to the pair (i, i + 1). @return how many tokens are
 * left in ids */
static int merge_short(const xp_bpe *bpe, const char *word, int n, int32_t *ids) {
    const xp_bpe_pair *pairs[SHORT_BYTES];
    uint32_t ranks[SHORT_BYTES];
    for (int i = 0; i < n; i++)
        ids[i] = bpe->byte_ids[(unsigned char)word[i]];
    for (int i = 0; i + 1 < n; i++) {
        pairs[i] = xp_bpe_find_pair(bpe, ids[i], ids[i + 1]);
        ranks[i] = pairs[i] ? pairs[i]->rank : UINT32_MAX;
    }
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == UINT32_MAX)
            break;
        ids[best] = pairs[best]->result;
        n--;
        for (int i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            if (i + 1 < n) {
                pairs[i] = pairs[i + 1];
                ranks[i] = ranks[i + 1];
            }
        }
        for (int i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            pairs[i] = xp_bpe_find_pair(bpe, ids[i], ids[i + 1]);
            ranks[i] = pairs[i] ? pairs[i]->rank : UINT32_MAX;
        }
    }
    return n;
}

static xp_status merge_word(const xp_bpe *bpe, const char *word, size_t n, xp_token_list *out) {
    if (n > SHORT_BYTES)
        return xp_bpe_merge_long(bpe, word, n, out);
    XP_TRY(xp_token_list_reserve(out, SHORT_BYTES));
    out->n += merge_short(bpe, word, (int)n, out->ids + out->n);
    return XP_OK;
}

static int32_t find_word(const xp_bpe *bpe, uint64_t hash, const char *word, size_t n) {
    if (n > bpe->longest_word)
        return -1;
    for (uint64_t i = hash & bpe->word_mask;; i = (i + 1) & bpe->word_mask) {
        int32_t id = bpe->words[i];
        if (id < 0)
            return -1;
        const char *token = bpe->bytes + bpe->offsets[id];
        if ((size_t)(bpe->offsets[id + 1] - bpe->offsets[id]) == n && !memcmp(token, word, n))
            return id;
    }
}

/* Tokens that their own merges lead to (nearly all of a trained vocabulary): a word equal to one
 * needs no merging. */
static xp_status fill_words(xp_bpe *bpe, const xp_bpe_args *args) {
    uint64_t size = table_size((uint64_t)args->n_tokens);
    bpe->words = malloc(size * sizeof(*bpe->words));
    if (!bpe->words)
        return xp_error(XP_ENOMEM, "no memory for %d tokens", args->n_tokens);
    bpe->word_mask = size - 1;
    memset(bpe->words, 0xff, size * sizeof(*bpe->words));
    xp_token_list merged = {0};
    xp_status status = XP_OK;
    for (int32_t id = 0; id < args->n_tokens && status == XP_OK; id++) {
        const char *token = args->bytes + args->offsets[id];
        size_t n = (size_t)(args->offsets[id + 1] - args->offsets[id]);
        if (n == 0)
            continue;
        merged.n = 0;
        if (!args->ignore_merges && n > 1) {
            status = merge_word(bpe, token, n, &merged);
            if (status != XP_OK || merged.n != 1 || merged.ids[0] != id)
                continue;
        }
        uint64_t i = hash_bytes(token, n) & bpe->word_mask;
        while (bpe->words[i] >= 0)
            i = (i + 1) & bpe->word_mask;
        bpe->words[i] = id;
        if (n > bpe->longest_word)
            bpe->longest_word = n;
    }
    xp_token_list_free(&merged);
    return status;
}

xp_status xp_bpe_create(const xp_bpe_args *args, xp_bpe **bpe) {
    xp_bpe *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "no memory for a tokenizer model");
    made->bytes = args->bytes;
    made->offsets = args->offsets;
    memcpy(made->byte_ids, args->byte_ids, sizeof(made->byte_ids));
    xp_status status = fill_pairs(made, args);
    if (status == XP_OK)
        status = fill_words(made, args);
    if (status != XP_OK) {
        xp_bpe_destroy(made);
        return status;
    }
    *bpe = made;
    return XP_OK;
}

void xp_bpe_destroy(xp_bpe *bpe) {
    if (!bpe)
        return;
    free(bpe->pairs);
    free(bpe->words);
    free(bpe);
}

xp_status xp_bpe_scratch_create(size_t n_bytes, xp_bpe_scratch **scratch) {
    uint64_t n = CACHE_MIN;
    while (n < CACHE_MAX && n < n_bytes / 16)
        n *= 2;
    xp_bpe_scratch *made = calloc(1, sizeof(*made));
    if (made)
        made->cache = calloc(n, sizeof(*made->cache));
    if (!made || !made->cache) {
        xp_bpe_scratch_destroy(made);
        return xp_error(XP_ENOMEM, "no memory for the cache of words");
    }
    made->mask = n - 1;
    *scratch = made;
    return XP_OK;
}

void xp_bpe_scratch_destroy(xp_bpe_scratch *scratch) {
    if (!scratch)
        return;
    free(scratch->cache);
    free(scratch);
}

xp_status xp_bpe_encode(const xp_bpe *bpe, xp_bpe_scratch *scratch, const char *word, size_t n,
                        xp_token_list *out) {
    if (n == 0)
        return XP_OK;
    uint64_t hash = hash_bytes(word, n);
    int32_t id = n == 1 ? bpe->byte_ids[(unsigned char)word[0]] : find_word(bpe, hash, word, n);
    if (id >= 0) {
        XP_TRY(xp_token_list_reserve(out, 1));
        out->ids[out->n++] = id;
        return XP_OK;
    }
    if (n > CACHE_WORD)
        return merge_word(bpe, word, n, out);
    cached_word *place = &scratch->cache[hash >> 32 & scratch->mask];
    if (place->n == n && !memcmp(place->word, word, n)) {
        XP_TRY(xp_token_list_reserve(out, CACHE_IDS));
        memcpy(out->ids + out->n, place->ids, place->n_ids * sizeof(int32_t));
        out->n += place->n_ids;
        return XP_OK;
    }
    int64_t before = out->n;
    XP_TRY(merge_word(bpe, word, n, out));
    if (out->n - before <= CACHE_IDS) {
        place->n = (uint8_t)n;
        place->n_ids = (uint8_t)(out->n - before);
        memcpy(place->word, word, n);
        memcpy(place->ids, out->ids + before, place->n_ids * sizeof(int32_t));
    }
    return XP_OK;
}
