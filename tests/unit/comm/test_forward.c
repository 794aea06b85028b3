/* Inter-node forwarding of a failure among 600 simulated ranks: whoever is lost, every rank that
 * lives is told. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdbool.h>
#include <string.h>
#include "comm/mpi/forward.h"

#define N_RANKS 600

typedef struct job {
    int nodes[N_RANKS];
    bool dead[N_RANKS];
    xp_forward_map map;
} job;

/* What the processes do: the reporter's node knows through its shared memory; each rank that lives
 * there sends; a rank that receives shows it to its node. */
static int count_untold(const job *j, int reporter) {
    static int targets[2 * N_RANKS];
    bool told[N_RANKS] = {false};
    int n_untold = 0;
    told[j->nodes[reporter]] = true;
    for (int r = 0; r < N_RANKS; r++) {
        if (j->dead[r])
            continue;
        const int n = xp_forward_targets(&j->map, r, reporter, targets);
        assert_true(n <= j->map.max_targets);
        for (int i = 0; i < n; i++) {
            assert_in_range(targets[i], 0, N_RANKS - 1);
            if (!j->dead[targets[i]])
                told[j->nodes[targets[i]]] = true;
        }
    }
    for (int r = 0; r < N_RANKS; r++)
        n_untold += !j->dead[r] && !told[j->nodes[r]];
    return n_untold;
}

static void expect_told(const job *j, int reporter, const char *what, int culprit) {
    const int n = count_untold(j, reporter);
    if (n > 0)
        fail_msg("%s %d lost, found by rank %d, %d nodes: %d ranks hear nothing", what, culprit,
                 reporter, j->map.n_nodes, n);
}

/* The reporter: the rank itself (it gives up and lives), a neighbour, a rank far away. */
static void lose_each_rank(job *j) {
    const int step = j->map.n_ranks[0] > 8 ? 7 : 1; /* many senders take long to simulate */
    for (int culprit = 0; culprit < N_RANKS; culprit += step) {
        const int reporters[] = {culprit, (culprit + 1) % N_RANKS, (culprit + 299) % N_RANKS};
        for (int i = 0; i < 3; i++) {
            memset(j->dead, 0, sizeof j->dead);
            j->dead[culprit] = reporters[i] != culprit;
            expect_told(j, reporters[i], "rank", culprit);
        }
    }
}

/* A whole node, and all but one rank of the node that reports. */
static void lose_each_node(job *j) {
    for (int node = 0; node < j->map.n_nodes; node++) {
        memset(j->dead, 0, sizeof j->dead);
        int reporter = -1, last = -1;
        for (int r = 0; r < N_RANKS; r++) {
            j->dead[r] = j->nodes[r] == node;
            if (j->dead[r])
                last = r;
            else if (reporter < 0)
                reporter = r;
        }
        expect_told(j, reporter, "node", node);
        j->dead[last] = false;
        expect_told(j, last, "all but one of node", node);
    }
}

static void run(job *j) {
    assert_int_equal(xp_forward_map_create(j->nodes, N_RANKS, &j->map), XP_OK);
    lose_each_rank(j);
    lose_each_node(j);
    xp_forward_map_destroy(&j->map);
}

static void test_blocks(void **state) {
    (void)state;
    static job j;
    const int per_node[] = {1, 2, 8, 72, 300};
    for (int k = 0; k < 5; k++) {
        for (int r = 0; r < N_RANKS; r++)
            j.nodes[r] = r / per_node[k];
        run(&j);
    }
}

static void test_round_robin(void **state) {
    (void)state;
    static job j;
    for (int r = 0; r < N_RANKS; r++)
        j.nodes[r] = r % 75;
    run(&j);
}

/* Nodes of 1, 2, ... 13 ranks, and again. */
static void test_uneven(void **state) {
    (void)state;
    static job j;
    for (int r = 0, node = 0, left = 1; r < N_RANKS; r++) {
        j.nodes[r] = node;
        if (--left == 0)
            left = ++node % 13 + 1;
    }
    run(&j);
}

static void test_one_node(void **state) {
    (void)state;
    static job j;
    int none[1];
    assert_int_equal(xp_forward_map_create(j.nodes, N_RANKS, &j.map), XP_OK);
    assert_int_equal(j.map.max_targets, 0);
    assert_int_equal(xp_forward_targets(&j.map, 3, 3, none), 0);
    xp_forward_map_destroy(&j.map);
}

/* As few messages as the job has nodes, not ranks. */
static void test_bounded(void **state) {
    (void)state;
    static job j;
    int targets[2 * 74];
    for (int r = 0; r < N_RANKS; r++)
        j.nodes[r] = r / 8;
    assert_int_equal(xp_forward_map_create(j.nodes, N_RANKS, &j.map), XP_OK);
    assert_int_equal(j.map.max_targets, 2 * 74);
    assert_int_equal(xp_forward_targets(&j.map, 9, 8, targets), 2 * 74);
    assert_int_equal(xp_forward_targets(&j.map, 0, 8, targets), 0);
    xp_forward_map_destroy(&j.map);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),  cmocka_unit_test(test_round_robin),
        cmocka_unit_test(test_uneven),  cmocka_unit_test(test_one_node),
        cmocka_unit_test(test_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
