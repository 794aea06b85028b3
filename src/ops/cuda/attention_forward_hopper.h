/**
 * Attention forward for sm_90a: the order of its work, as plain arithmetic that the CPU can test.
 *
 * An item is a tile of 128 queries of one head of one row. It sees key blocks [low, m]: those of its
 * documents up to its own place.
 */
#ifndef XP_OPS_CUDA_ATTENTION_FORWARD_HOPPER_H
#define XP_OPS_CUDA_ATTENTION_FORWARD_HOPPER_H

#include "ops/cuda/attention_hopper.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Parameters of the kernel. */
typedef struct xp_attention_forward_hopper {
    xp_attention_args a;
    int n_tiles;       /* M: tiles of 128 queries in a row of S tokens */
    int n_together;    /* key/value heads dealt out together */
    int n_items;       /* B * H * M */
    uint32_t *counter; /* items dealt out, 0 before and after */
} xp_attention_forward_hopper;

/**
 * Fill the sizes. Key/value heads come in groups whose keys and values stay in L2: a third of it.
 * @return false when there are too many items to count
 */
static inline bool xp_attention_forward_plan(xp_attention_forward_hopper *p, size_t l2_bytes) {
    const xp_attention_args *a = &p->a;
    const int64_t n_tiles = (a->seq_len + XP_ATTENTION_BLOCK - 1) / XP_ATTENTION_BLOCK;
    const int64_t head_bytes = 2 * 2 * a->seq_len * a->head_dim; /* k and v of one head */
    const int64_t heads = a->n_rows * a->n_kv_heads;
    const int64_t fit = (int64_t)(l2_bytes / 3) / head_bytes;
    if (a->n_rows * a->n_heads > INT32_MAX / 4 / n_tiles)
        return false;
    const int64_t n_groups = fit < 1 ? heads : (heads + fit - 1) / fit;
    p->n_tiles = (int)n_tiles;
    p->n_together = (int)((heads + n_groups - 1) / n_groups);
    p->n_items = (int)(a->n_rows * a->n_heads * n_tiles);
    return true;
}

/** A tile of queries. */
typedef struct xp_attention_query_tile {
    int m, h, b, low; /* tile, head, row, first key block */
} xp_attention_query_tile;

/**
 * Item number to tile; `low` is left alone. In a group of key/value heads the last tiles, which see
 * most keys, come first, so that the ends of all blocks fall together; heads that share keys run at
 * the same time.
 */
static inline XP_HOST_DEVICE void xp_attention_query_tile_of(const xp_attention_forward_hopper *p,
                                                             int item, xp_attention_query_tile *t) {
    const int share = p->a.n_heads / p->a.n_kv_heads;
    const int heads = (int)p->a.n_rows * p->a.n_kv_heads;
    const int in_group = p->n_together * share * p->n_tiles;
    const int first = item / in_group * p->n_together, r = item % in_group;
    const int together = heads - first < p->n_together ? heads - first : p->n_together;
    const int at_once = together * share;
    const int head = first + r % at_once / share; /* of B * G */
    t->m = p->n_tiles - 1 - r / at_once;
    t->b = head / p->a.n_kv_heads;
    t->h = head % p->a.n_kv_heads * share + r % at_once % share;
}

/** First key block of a tile whose first query's document starts at `start`. */
static inline XP_HOST_DEVICE int xp_attention_first_block(int start, int m) {
    const int low = start < 0 ? 0 : start / XP_ATTENTION_BLOCK;
    return low < m ? low : m; /* at least one block, whatever the array says */
}

#ifdef __cplusplus
}
#endif
#endif
