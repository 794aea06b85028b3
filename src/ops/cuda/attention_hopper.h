/**
 * Attention backward for sm_90a: what its kernels share, and where they keep it in scratch.
 *
 * Queries come in tiles of 64, keys in blocks of 128. M tiles and N blocks cover a row of S tokens.
 */
#ifndef XP_OPS_CUDA_ATTENTION_HOPPER_H
#define XP_OPS_CUDA_ATTENTION_HOPPER_H

#include "ops/cuda/hopper_layout.h"
#include "ops/ops.h"

#define XP_ATTENTION_TILE    64
#define XP_ATTENTION_BLOCK   128
#define XP_ATTENTION_HALVES  2 /* of the head dimension of dq: one a consumer warpgroup */
#define XP_ATTENTION_FACTORS 2 /* per query: lse in units of ln 2, delta */

#ifdef __cplusplus
extern "C" {
#endif

/**
 * The order of items (key blocks of a head) and of the query tiles of an item. Two things matter:
 * blocks that run together should read the same queries, which then come from L2, and a block
 * should reach a tile after those that add to its dq before it.
 */
typedef enum xp_attention_order {
    /** Blocks ascend, tiles descend: blocks of a document start together at its end. */
    XP_ATTENTION_DOCUMENTS = 0,
    /**
     * Whole rows, a wave is all blocks of some heads. In even waves blocks and tiles descend: all
     * start together at the row's last tile, the shortest first, each a little behind the one
     * before. In odd waves both ascend: a block starts as a block of the wave before ends, where
     * the blocks before it have just come to.
     */
    XP_ATTENTION_WAVES_OF_HEADS,
    /** Rows of more blocks than run together: blocks ascend, tiles descend in even waves. */
    XP_ATTENTION_WAVES_OF_BLOCKS
} xp_attention_order;

/** Parameters of all three kernels. */
typedef struct xp_attention_hopper {
    xp_attention_args a;
    const void *dout; /* [B * S, H * C], leading dimension a.ldo */
    void *dq, *dk, *dv;
    int64_t lddq, lddk, lddv;
    int n_tiles, n_blocks; /* M, N */
    int n_parts; /* P: of the query heads that share a key/value head, in few-item calls */
    int n_items; /* B * G * P * N: a key block and the query heads of a part */
    xp_attention_order order;
    int n_together; /* parts of key/value heads whose blocks are dealt out alternately */
    int n_wave;     /* items that run at the same time */
    /* in scratch */
    float *factors;   /* [B, H, M, 2, 64]: lse / ln 2, delta; +infinity and 0 past the row */
    float *dq_sums;   /* [B, H, M, 2, 64 * C / 2] in the order of the accumulators */
    float *key_sums;  /* [B, G, P, N, 2, 2, 64 * C]: dk, dv of each half block; NULL if P is 1 */
    int32_t *turns;   /* [B, H, M, 2]: key blocks that have added to the sums */
    int32_t *starts;  /* [B, M * 64]: doc_start; NULL without documents, as the next two */
    int32_t *first;   /* [B, M]: the first key block that the tile's queries see */
    int32_t *last;    /* [B, N]: the last tile of queries that sees the block */
    int32_t *n_taken; /* [1]: items dealt out */
} xp_attention_hopper;

/** Fill the sizes, and the pointers into a scratch buffer. @return the bytes it takes */
size_t xp_attention_hopper_plan(xp_attention_hopper *p, int n_sms, void *scratch);

/**
 * The tiles of one item: query tiles [2 n, last] of every head of the part. Heads run fastest.
 * See xp_attention_order for the order of items and of an item's tiles.
 */
typedef struct xp_attention_item {
    int n, b, kv_head; /* key block, row, key/value head */
    int index;         /* of the part's key block in [B, G, P, N] */
    int first_head, group, step, n_tiles;
    int m, h;    /* current tile, head from first_head on */
    int falling; /* 1: key blocks of this head are dealt out from the last one down */
} xp_attention_item;

static inline XP_HOST_DEVICE xp_attention_item xp_attention_item_of(const xp_attention_hopper *p,
                                                                    int item) {
    xp_attention_item t;
    const int heads = (int)p->a.n_rows * p->a.n_kv_heads * p->n_parts;
    const int chunk = p->n_together * p->n_blocks;
    const int first = item / chunk * p->n_together, r = item % chunk;
    const int together = heads - first < p->n_together ? heads - first : p->n_together;
    const int head = first + r % together;
    const int wave = p->order == XP_ATTENTION_WAVES_OF_HEADS ? item / chunk : r / p->n_wave;
    const int odd = wave % 2;
    t.falling = p->order == XP_ATTENTION_WAVES_OF_HEADS && !odd;
    t.n = t.falling ? p->n_blocks - 1 - r / together : r / together;
    t.index = head * p->n_blocks + t.n;
    t.b = head / (p->a.n_kv_heads * p->n_parts);
    t.kv_head = head / p->n_parts % p->a.n_kv_heads;
    t.group = p->a.n_heads / (p->a.n_kv_heads * p->n_parts);
    t.first_head = head % (p->a.n_kv_heads * p->n_parts) * t.group;
    const int low = t.n * (XP_ATTENTION_BLOCK / XP_ATTENTION_TILE);
    const int high = p->last == NULL ? p->n_tiles - 1 : p->last[t.b * p->n_blocks + t.n];
    t.n_tiles = (high - low + 1) * t.group;
    t.step = p->order == XP_ATTENTION_DOCUMENTS || !odd ? -1 : 1;
    t.m = t.step < 0 ? high : low;
    t.h = 0;
    return t;
}

static inline XP_HOST_DEVICE void xp_attention_item_next(xp_attention_item *t) {
    if (++t->h == t->group) {
        t->h = 0;
        t->m += t->step;
    }
}

/** Of the current tile: index into arrays of [B, H, M]. */
static inline XP_HOST_DEVICE int xp_attention_item_index(const xp_attention_hopper *p,
                                                         const xp_attention_item *t) {
    return (t->b * p->a.n_heads + t->first_head + t->h) * p->n_tiles + t->m;
}

/** Key blocks that add to the current tile before this one. */
static inline XP_HOST_DEVICE int xp_attention_item_before(const xp_attention_hopper *p,
                                                          const xp_attention_item *t) {
    if (t->falling)
        return t->m / (XP_ATTENTION_BLOCK / XP_ATTENTION_TILE) - t->n;
    return t->n - (p->first == NULL ? 0 : p->first[t->b * p->n_tiles + t->m]);
}

#ifdef __cplusplus
}
#endif
#endif
