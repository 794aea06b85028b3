#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "comm/thread/simulate_nodes.h"
#include "ranks.h"

static void *rank_thread(void *context) {
    rank_job *job = context;
    if (xp_thread_world_comm(job->world, job->rank, &job->comm) != XP_OK) {
        job->n_wrong++;
        return NULL;
    }
    job->body(job);
    xp_comm_destroy(job->comm);
    return NULL;
}

rank_job *run_ranks(int n_ranks, double timeout_s, const int *nodes, void (*body)(rank_job *job)) {
    rank_job *jobs = calloc((size_t)n_ranks, sizeof *jobs);
    xp_thread_world *world = NULL;
    assert_non_null(jobs);
    assert_int_equal(xp_thread_world_create(n_ranks, timeout_s, &world), XP_OK);
    if (nodes)
        assert_int_equal(xp_thread_world_simulate_nodes(world, nodes), XP_OK);
    for (int r = 0; r < n_ranks; r++) {
        jobs[r].world = world;
        jobs[r].rank = r;
        jobs[r].n_ranks = n_ranks;
        jobs[r].body = body;
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, rank_thread, &jobs[r]), 0);
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(jobs[r].thread, NULL);
    xp_thread_world_destroy(world);
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
