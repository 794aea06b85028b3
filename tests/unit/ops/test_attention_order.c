/* The order in which the Hopper attention kernels deal out their work. Backward: every pair of tiles is visited
 * once, and an item waits only for items dealt out before it, so that no order of the GPU's blocks
 * can make it wait for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "ops/cuda/attention_forward_hopper.h"

typedef struct shape {
    int64_t n_rows, seq_len;
    int n_heads, n_kv_heads, n_sms;
    int document; /* tokens of a document, the first of a row shorter; 0: whole rows */
} shape;

static int first_key(const shape *s, int query) {
    const int start = (query + s->document / 3) / s->document * s->document - s->document / 3;
    return start < 0 ? 0 : start;
}

/* What find_ranges() of the kernels does. */
static void fill_ranges(const shape *s, xp_attention_hopper *p) {
    const int n_queries = (int)s->seq_len;
    p->first = calloc((size_t)(s->n_rows * p->n_tiles), sizeof *p->first);
    p->last = calloc((size_t)(s->n_rows * p->n_blocks), sizeof *p->last);
    assert_true(p->first != NULL && p->last != NULL);
    for (int b = 0; b < s->n_rows; b++) {
        for (int m = 0; m < p->n_tiles; m++)
            p->first[b * p->n_tiles + m] = first_key(s, m * XP_ATTENTION_TILE) / XP_ATTENTION_BLOCK;
        for (int query = 0; query < n_queries; query++)
            for (int n = first_key(s, query) / XP_ATTENTION_BLOCK; n <= query / XP_ATTENTION_BLOCK;
                 n++)
                p->last[b * p->n_blocks + n] = query / XP_ATTENTION_TILE;
    }
}

/* Key blocks that the queries of tile m see. */
static int blocks_seen(const xp_attention_hopper *p, int b, int m) {
    const int last = m * XP_ATTENTION_TILE / XP_ATTENTION_BLOCK;
    return last + 1 - (p->first == NULL ? 0 : p->first[b * p->n_tiles + m]);
}

static void check(const shape *s) {
    static const int32_t some_start = 0; /* not read */
    xp_attention_hopper p = {.a = {.n_rows = s->n_rows,
                                   .seq_len = s->seq_len,
                                   .n_heads = s->n_heads,
                                   .n_kv_heads = s->n_kv_heads,
                                   .head_dim = 128,
                                   .doc_start = s->document > 0 ? &some_start : NULL}};
    assert_true(xp_attention_hopper_plan(&p, s->n_sms, NULL) > 0);
    if (s->document > 0)
        fill_ranges(s, &p);
    const int n = (int)s->n_rows * s->n_heads * p.n_tiles;
    int *added = calloc((size_t)n, sizeof *added); /* key blocks that have added to a tile's dq */
    char *blocks = calloc((size_t)p.n_items, 1);
    assert_true(added != NULL && blocks != NULL);
    for (int item = 0; item < p.n_items; item++) {
        xp_attention_item t = xp_attention_item_of(&p, item);
        assert_in_range(t.n, 0, p.n_blocks - 1);
        assert_in_range(t.index, 0, p.n_items - 1);
        assert_int_equal(blocks[t.index]++, 0);
        assert_int_equal(t.kv_head, t.first_head / (s->n_heads / s->n_kv_heads));
        for (int i = 0; i < t.n_tiles; i++, xp_attention_item_next(&t)) {
            assert_in_range(t.m, 2 * t.n, p.n_tiles - 1);
            const int at = xp_attention_item_index(&p, &t);
            assert_in_range(at, 0, n - 1);
            /* those before it are items dealt out before */
            assert_int_equal(xp_attention_item_before(&p, &t), added[at]);
            added[at]++;
        }
    }
    for (int at = 0; at < n; at++)
        assert_int_equal(added[at], blocks_seen(&p, at / (s->n_heads * p.n_tiles), at % p.n_tiles));
    free(added);
    free(blocks);
    free(p.first);
    free(p.last);
}

static void whole_rows(void **state) {
    (void)state;
    static const shape shapes[] = {
        {4, 4096, 32, 4, 132, 0}, {1, 4096, 32, 4, 132, 0}, {8, 2048, 32, 4, 132, 0},
        {3, 1, 2, 1, 132, 0},     {2, 129, 6, 2, 132, 0},   {1, 20000, 8, 1, 132, 0},
        {2, 40000, 4, 2, 132, 0}, {5, 1000, 12, 3, 114, 0}, {1, 640, 8, 8, 1, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check(&shapes[i]);
}

static void documents(void **state) {
    (void)state;
    static const shape shapes[] = {{2, 4096, 8, 1, 132, 1},     {4, 4096, 32, 4, 132, 512},
                                   {1, 4095, 4, 2, 132, 700},   {3, 1000, 6, 3, 132, 60},
                                   {2, 20000, 2, 1, 132, 3000}, {1, 512, 2, 2, 132, 100000}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check(&shapes[i]);
}

/* Scratch grows with tokens and heads, not with pairs of tokens. */
static void scratch_is_linear(void **state) {
    (void)state;
    xp_attention_hopper p = {
        .a = {.n_rows = 1, .seq_len = 65536, .n_heads = 32, .n_kv_heads = 4, .head_dim = 128}};
    const size_t half = xp_attention_hopper_plan(&p, 132, NULL);
    p.a.seq_len = 131072;
    assert_true(xp_attention_hopper_plan(&p, 132, NULL) <= 2 * half);
}

/* Forward: every tile of every head once; of the heads dealt out together the longest tiles first,
 * and those that share keys beside each other. */
static void check_forward(const shape *s, size_t l2_bytes) {
    xp_attention_forward_hopper p = {.a = {.n_rows = s->n_rows,
                                           .seq_len = s->seq_len,
                                           .n_heads = s->n_heads,
                                           .n_kv_heads = s->n_kv_heads,
                                           .head_dim = 128}};
    assert_true(xp_attention_forward_plan(&p, l2_bytes));
    assert_int_equal(p.n_tiles, (s->seq_len + 127) / 128);
    assert_int_equal(p.n_items, s->n_rows * s->n_heads * p.n_tiles);
    assert_in_range(p.n_together, 1, s->n_rows * s->n_kv_heads);
    const int share = s->n_heads / s->n_kv_heads;
    const int of_group = p.n_together * share * p.n_tiles;
    char *seen = calloc((size_t)p.n_items, 1);
    assert_true(seen != NULL);
    xp_attention_query_tile before = {0};
    for (int item = 0; item < p.n_items; item++) {
        xp_attention_query_tile t;
        xp_attention_query_tile_of(&p, item, &t);
        assert_in_range(t.m, 0, p.n_tiles - 1);
        assert_in_range(t.h, 0, s->n_heads - 1);
        assert_in_range(t.b, 0, s->n_rows - 1);
        assert_int_equal(seen[(t.b * s->n_heads + t.h) * p.n_tiles + t.m]++, 0);
        const int head = t.b * s->n_kv_heads + t.h / share;
        assert_int_equal(head / p.n_together, item / of_group);
        if (item % of_group != 0)
            assert_true(t.m <= before.m);
        if (item % share != 0)
            assert_int_equal(head, before.b * s->n_kv_heads + before.h / share);
        before = t;
    }
    free(seen);
}

static void forward_tiles(void **state) {
    (void)state;
    static const shape shapes[] = {{4, 4096, 32, 4, 132, 0}, {1, 32768, 8, 1, 132, 0},
                                   {8, 2048, 32, 4, 132, 0}, {3, 1, 2, 1, 132, 0},
                                   {2, 129, 6, 2, 132, 0},   {5, 1000, 12, 3, 114, 0},
                                   {1, 640, 8, 8, 1, 0},     {7, 128, 15, 5, 132, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (size_t l2 = 1 << 16; l2 <= (size_t)64 << 20; l2 *= 4)
            check_forward(&shapes[i], l2);
    /* a tile sees its own block at least, and none before the row */
    for (int m = 0; m < 40; m++)
        for (int start = -1; start < 6000; start++) {
            const int low = xp_attention_first_block(start, m);
            assert_in_range(low, 0, m);
            assert_true(start < 0 || start > m * 128 || low == start / 128);
        }
}

/* More tiles than can be counted are left to other kernels. */
static void forward_refuses_too_many(void **state) {
    (void)state;
    xp_attention_forward_hopper p = {
        .a = {.n_rows = 60000, .seq_len = 4096, .n_heads = 60000, .n_kv_heads = 4, .head_dim = 64}};
    assert_false(xp_attention_forward_plan(&p, 1 << 20));
    p.a.n_rows = 1, p.a.n_heads = 32, p.a.seq_len = 131072;
    assert_true(xp_attention_forward_plan(&p, 1 << 20));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_rows),
        cmocka_unit_test(documents),
        cmocka_unit_test(scratch_is_linear),
        cmocka_unit_test(forward_tiles),
        cmocka_unit_test(forward_refuses_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
