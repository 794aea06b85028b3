/* Which GPU a rank takes, and what follows from where all are. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/gpu_placement.h"

#define MOST 16

/* A machine room: `n_nodes` nodes with `gpus` each and `per_node` ranks. Ranks are numbered node by node; with one_visible a launcher
 * shows each process only the GPU of its own. */
typedef struct room {
    int n_nodes, gpus, per_node;
    bool one_visible;
    int n;
    xp_rank_gpu ranks[MOST];
} room;

static void fill(room *m) {
    m->n = m->n_nodes * m->per_node;
    assert_true(m->n <= MOST);
    for (int r = 0; r < m->n; r++) {
        const int local = r % m->per_node, node = r / m->per_node;
        const int index = xp_gpu_choose(local, m->one_visible ? 1 : m->gpus);
        const int physical = m->one_visible ? local % m->gpus : index;
        xp_rank_gpu *gpu = &m->ranks[r];
        *gpu = (xp_rank_gpu){.on_gpu = 1, .index = index, .node = node};
        gpu->id[0] = (char)('a' + node);
        gpu->id[15] = (char)('0' + physical);
        snprintf(gpu->name, sizeof gpu->name, "cuda:%d", index);
    }
}

static void expect(room m, xp_gpu_layout layout, int n_gpus, int n_on_mine, const char *line) {
    fill(&m);
    for (int r = 0; r < m.n; r++) {
        const xp_gpu_placement p = xp_gpu_placement_of(m.ranks, m.n, r);
        assert_int_equal(p.layout, layout);
        assert_int_equal(p.n_gpus, n_gpus);
        assert_int_equal(p.n_on_mine, n_on_mine);
        assert_int_equal(p.any_shared, n_on_mine > 1);
    }
    xp_text text = {0};
    xp_gpu_placement_print(m.ranks, m.n, m.n_nodes > 1, &text);
    assert_string_equal(text.data ? text.data : "", line);
    xp_text_free(&text);
}

static void layouts(void **state) {
    (void)state;
    expect((room){.n_nodes = 1, .gpus = 8, .per_node = 8}, XP_GPUS_OWN, 8, 1, "");
    expect((room){.n_nodes = 1, .gpus = 8, .per_node = 2}, XP_GPUS_OWN, 2, 1, "");
    expect((room){.n_nodes = 1, .gpus = 8, .per_node = 8, .one_visible = true}, XP_GPUS_OWN, 8, 1,
           "");
    expect((room){.n_nodes = 2, .gpus = 4, .per_node = 4}, XP_GPUS_OWN, 8, 1, "");
    expect((room){.n_nodes = 1, .gpus = 1, .per_node = 4}, XP_GPUS_ONE, 1, 4,
           "ranks 0, 1, 2, 3 share cuda:0");
    expect((room){.n_nodes = 1, .gpus = 2, .per_node = 4}, XP_GPUS_MIXED, 2, 2,
           "ranks 0, 2 share cuda:0; ranks 1, 3 share cuda:1");
    expect((room){.n_nodes = 2, .gpus = 1, .per_node = 2}, XP_GPUS_MIXED, 2, 2,
           "ranks 0, 1 share cuda:0 of node 0; ranks 2, 3 share cuda:0 of node 1");
    expect((room){.n_nodes = 1, .gpus = 2, .per_node = 4, .one_visible = true}, XP_GPUS_MIXED, 2, 2,
           "ranks 0, 2 share cuda:0; ranks 1, 3 share cuda:0");
    expect((room){.n_nodes = 1, .gpus = 1, .per_node = 1}, XP_GPUS_ONE, 1, 1, "");
}

static void gpus_that_others_use(void **state) {
    (void)state;
    room m = {.n_nodes = 1, .gpus = 2, .per_node = 2};
    fill(&m);
    m.ranks[1].used_by_others = 1;
    assert_int_equal(xp_gpu_placement_of(m.ranks, 2, 0).layout, XP_GPUS_MIXED);
    m = (room){.n_nodes = 1, .gpus = 1, .per_node = 2};
    fill(&m);
    m.ranks[1].used_by_others = 1;
    assert_int_equal(xp_gpu_placement_of(m.ranks, 2, 0).layout, XP_GPUS_ONE);
}

static void ranks_on_the_cpu(void **state) {
    (void)state;
    xp_rank_gpu ranks[3] = {{.on_gpu = 0}, {.on_gpu = 0}, {.on_gpu = 1}};
    const xp_gpu_placement p = xp_gpu_placement_of(ranks, 3, 0);
    assert_int_equal(p.layout, XP_GPUS_MIXED);
    assert_int_equal(p.n_gpus, 1);
    assert_int_equal(p.n_on_mine, 1);
    assert_false(p.any_shared);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts),
        cmocka_unit_test(gpus_that_others_use),
        cmocka_unit_test(ranks_on_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
