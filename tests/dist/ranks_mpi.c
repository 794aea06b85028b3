/*
 * The bodies of tests/unit/comm over processes: this process is one rank, and a body made for
 * another number of ranks is passed over. Simulated nodes are for threads.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "../unit/comm/ranks.h"
#include "world.h"

static xp_comm *world;

static void leave(void) {
    test_world_destroy(world);
}

static void enter(void) {
    if (world)
        return;
    if (test_world_create(60, &world) != XP_OK) {
        fprintf(stderr, "%s\n", xp_last_error());
        exit(1);
    }
    atexit(leave);
}

rank_job *run_ranks(int n_ranks, double timeout_s, const int *nodes, void (*body)(rank_job *job)) {
    rank_job *jobs = calloc((size_t)n_ranks, sizeof *jobs);
    assert_non_null(jobs);
    assert_true(timeout_s > 0);
    enter();
    if (n_ranks != xp_comm_size(world) || nodes)
        return jobs;
    rank_job *mine = &jobs[xp_comm_rank(world)];
    mine->comm = world;
    mine->rank = xp_comm_rank(world);
    mine->n_ranks = n_ranks;
    body(mine);
    return jobs;
}

void expect_all(int n_ranks, void (*body)(rank_job *job)) {
    rank_job *jobs = run_ranks(n_ranks, 60, NULL, body);
    int n_wrong = 0;
    for (int r = 0; r < n_ranks; r++) {
        if (jobs[r].n_wrong > 0)
            print_message("%d ranks: %s\n", n_ranks, jobs[r].first);
        n_wrong += jobs[r].n_wrong;
    }
    free(jobs);
    assert_int_equal(n_wrong, 0);
}
