/*
 * The bodies of test_comm.c over callback communicators. XP_TEST_RANKS chooses what the ranks are:
 *   fork     processes, connected by sockets (the default)
 *   threads  of this process, connected by a thread world
 *   nodes    threads that behave as if they ran on two nodes
 *   gather   the same, over a transport that can only gather
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "ranks.h"
#include "sockets.h"
#include "thread_transport.h"

static const char *mode(void) {
    const char *name = getenv("XP_TEST_RANKS");
    return name ? name : "fork";
}

/* Alternating, so that neighbours are on different nodes. */
static const int two_nodes[] = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1};

static void rank_process(xp_comm *comm, void *context, int rank) {
    rank_job *job = (rank_job *)context + rank;
    job->comm = comm;
    job->body(job);
}

static void fork_all(rank_job *jobs, int n_ranks, double timeout_s) {
    const sockets_run run = {
        .n_ranks = n_ranks, .timeout_s = timeout_s, .body = rank_process, .context = jobs};
    assert_int_equal(sockets_run_all(&run), 0);
}

static void *rank_thread(void *context) {
    rank_job *job = context;
    xp_comm *threads = NULL;
    const bool several = strcmp(mode(), "threads") != 0;
    const thread_transport_args args = {.timeout_s = job->seconds,
                                        .gather_only = strcmp(mode(), "gather") == 0,
                                        .nodes = job->nodes ? job->nodes
                                                 : several  ? two_nodes
                                                            : NULL};
    if (xp_thread_world_comm(job->world, job->rank, &threads) != XP_OK ||
        thread_transport_comm(threads, &args, &job->comm) != XP_OK) {
        snprintf(job->first, sizeof job->first, "no communicator: %s", xp_last_error());
        job->n_wrong++;
        return NULL;
    }
    job->seconds = 0;
    job->body(job);
    xp_comm_destroy(job->comm);
    return NULL;
}

static void run_threads(rank_job *jobs, int n_ranks, double timeout_s) {
    xp_thread_world *world = NULL;
    assert_int_equal(xp_thread_world_create(n_ranks, timeout_s, &world), XP_OK);
    for (int r = 0; r < n_ranks; r++) {
        jobs[r].world = world;
        jobs[r].seconds = timeout_s;
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, rank_thread, &jobs[r]), 0);
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(jobs[r].thread, NULL);
    xp_thread_world_destroy(world);
}

rank_job *run_ranks(int n_ranks, double timeout_s, const int *nodes, void (*body)(rank_job *job)) {
    rank_job *jobs = shared_memory((size_t)n_ranks * sizeof *jobs);
    for (int r = 0; r < n_ranks; r++)
        jobs[r] = (rank_job){.rank = r, .n_ranks = n_ranks, .body = body, .nodes = nodes};
    if (strcmp(mode(), "fork") != 0)
        run_threads(jobs, n_ranks, timeout_s);
    else if (!nodes) /* simulated nodes are for threads */
        fork_all(jobs, n_ranks, timeout_s);
    rank_job *results = malloc((size_t)n_ranks * sizeof *results);
    assert_non_null(results);
    memcpy(results, jobs, (size_t)n_ranks * sizeof *jobs);
    shared_memory_free(jobs, (size_t)n_ranks * sizeof *jobs);
    return results;
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
