/* Sizes and order of the attention backward of sm_90a: plain arithmetic, for a machine without a GPU
 * too. */
#include "ops/cuda/attention_hopper.h"

static int ceil_div(int64_t a, int64_t b) {
    return (int)((a + b - 1) / b);
}

/* `n_bytes` of scratch from *at on, in whole 256. */
static void *take(char *scratch, size_t *at, size_t n_bytes) {
    void *data = scratch == NULL ? NULL : scratch + *at;
    *at += (n_bytes + 255) / 256 * 256;
    return data;
}

/*
 * As many heads run together as fill the GPU with one wave of blocks. Two waves even out: what one
 * leaves short the next makes long. Where key/value heads are too few for that, the query heads
 * that share one are split, and the parts' dk and dv summed afterwards.
 */
static void order_items(xp_attention_hopper *p, int n_sms) {
    const int key_heads = (int)p->a.n_rows * p->a.n_kv_heads;
    const int group = p->a.n_heads / p->a.n_kv_heads;
    const bool in_one_wave = p->n_blocks <= n_sms;
    const int fill = in_one_wave ? n_sms / p->n_blocks : 1;
    const int enough = in_one_wave ? 2 * fill : ceil_div(2 * n_sms, p->n_blocks);
    p->n_parts = 1;
    while (key_heads * p->n_parts < enough && group % (2 * p->n_parts) == 0)
        p->n_parts *= 2;
    const int heads = key_heads * p->n_parts;
    p->n_together = fill > heads ? heads : fill;
    p->n_wave = in_one_wave ? p->n_together * p->n_blocks : n_sms;
    p->n_items = heads * p->n_blocks;
    p->order = p->a.doc_start != NULL ? XP_ATTENTION_DOCUMENTS
               : in_one_wave          ? XP_ATTENTION_WAVES_OF_HEADS
                                      : XP_ATTENTION_WAVES_OF_BLOCKS;
}

size_t xp_attention_hopper_plan(xp_attention_hopper *p, int n_sms, void *scratch) {
    const xp_attention_args *a = &p->a;
    p->n_tiles = ceil_div(a->seq_len, XP_ATTENTION_TILE);
    p->n_blocks = ceil_div(a->seq_len, XP_ATTENTION_BLOCK);
    order_items(p, n_sms);
    const size_t tiles = (size_t)a->n_rows * (size_t)a->n_heads * (size_t)p->n_tiles;
    const size_t row_tiles = (size_t)a->n_rows * (size_t)p->n_tiles;
    const bool documents = a->doc_start != NULL;
    size_t at = 0;
    p->dq_sums = take(scratch, &at, tiles * XP_ATTENTION_TILE * (size_t)a->head_dim * 4);
    p->factors = take(scratch, &at, tiles * XP_ATTENTION_FACTORS * XP_ATTENTION_TILE * 4);
    const size_t key_sums = (size_t)p->n_items * 2 * XP_ATTENTION_BLOCK * (size_t)a->head_dim * 4;
    p->key_sums = p->n_parts > 1 ? take(scratch, &at, key_sums) : NULL;
    p->turns = take(scratch, &at, tiles * XP_ATTENTION_HALVES * 4);
    p->n_taken = take(scratch, &at, 4);
    p->starts = documents ? take(scratch, &at, row_tiles * XP_ATTENTION_TILE * 4) : NULL;
    p->first = documents ? take(scratch, &at, row_tiles * 4) : NULL;
    p->last = documents ? take(scratch, &at, (size_t)a->n_rows * (size_t)p->n_blocks * 4) : NULL;
    return at;
}
