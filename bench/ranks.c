#include "ranks.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "launch/shim.h"

#define TIMEOUT_S 120.0

struct xp_bench_team {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_ranks, n_waiting;
    long barrier; /* how many there have been */
    bool failed;
    xp_status status; /* of the rank that failed first */
    char error[1024];
};

typedef struct rank_thread {
    pthread_t thread;
    xp_bench_rank rank;
    xp_thread_world *world;
    xp_bench_rank_fn fn;
    void *context;
} rank_thread;

static void note_failure(xp_bench_team *team, const xp_bench_rank *rank, xp_status status) {
    pthread_mutex_lock(&team->lock);
    if (!team->failed) {
        team->failed = true;
        team->status = status;
        if (rank->n_ranks > 1)
            snprintf(team->error, sizeof team->error, "rank %d: %s", rank->rank, xp_last_error());
        else
            snprintf(team->error, sizeof team->error, "%s", xp_last_error());
    }
    pthread_cond_broadcast(&team->changed);
    pthread_mutex_unlock(&team->lock);
}

xp_status xp_bench_barrier(xp_bench_rank *rank) {
    xp_bench_team *team = rank->team;
    if (!team)
        return rank->world ? xp_comm_barrier(rank->world, NULL) : XP_OK;
    pthread_mutex_lock(&team->lock);
    const long barrier = team->barrier;
    if (++team->n_waiting == team->n_ranks) {
        team->n_waiting = 0;
        team->barrier++;
        pthread_cond_broadcast(&team->changed);
    }
    while (barrier == team->barrier && !team->failed)
        pthread_cond_wait(&team->changed, &team->lock);
    const bool failed = team->failed;
    pthread_mutex_unlock(&team->lock);
    return failed ? xp_error(XP_ECOMM, "another rank failed") : XP_OK;
}

static xp_status run_rank(rank_thread *r) {
    if (r->world)
        XP_TRY(xp_thread_world_comm(r->world, r->rank.rank, &r->rank.world));
    xp_status status = r->fn(&r->rank, r->context);
    if (status != XP_OK) {
        note_failure(r->rank.team, &r->rank, status);
        if (r->rank.world)
            xp_comm_abort(r->rank.world, NULL);
    }
    xp_comm_destroy(r->rank.world);
    return status;
}

static void *rank_main(void *context) {
    rank_thread *r = context;
    const xp_status status = run_rank(r);
    if (status != XP_OK)
        note_failure(r->rank.team, &r->rank, status);
    return NULL;
}

static xp_status run_threads(xp_bench_team *team, rank_thread *ranks, int n) {
    int n_started = 0;
    while (n_started < n &&
           pthread_create(&ranks[n_started].thread, NULL, rank_main, &ranks[n_started]) == 0)
        n_started++;
    if (n_started < n) {
        xp_error(XP_ENOMEM, "cannot start rank thread %d of %d", n_started, n);
        note_failure(team, &ranks[n_started].rank, XP_ENOMEM);
    }
    for (int i = 0; i < n_started; i++)
        pthread_join(ranks[i].thread, NULL);
    return team->failed ? xp_error(team->status, "%s", team->error) : XP_OK;
}

static xp_status run_team(int n, xp_bench_rank_fn fn, void *context) {
    xp_thread_world *world = NULL;
    if (n > 1)
        XP_TRY(xp_thread_world_create(n, TIMEOUT_S, &world));
    xp_bench_team team = {.n_ranks = n};
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.changed, NULL);
    rank_thread *ranks = calloc((size_t)n, sizeof *ranks);
    xp_status status = ranks ? XP_OK : xp_error(XP_ENOMEM, "no memory for %d ranks", n);
    if (ranks) {
        for (int i = 0; i < n; i++)
            ranks[i] = (rank_thread){.rank = {.rank = i, .n_ranks = n, .n_local = n, .team = &team},
                                     .world = world,
                                     .fn = fn,
                                     .context = context};
        status = run_threads(&team, ranks, n);
    }
    free(ranks);
    pthread_cond_destroy(&team.changed);
    pthread_mutex_destroy(&team.lock);
    xp_thread_world_destroy(world);
    return status;
}

static xp_status run_process(xp_comm *world, xp_bench_rank_fn fn, void *context) {
    xp_bench_rank rank = {
        .rank = xp_comm_rank(world), .n_ranks = xp_comm_size(world), .world = world};
    for (int r = 0; r < rank.n_ranks; r++)
        rank.n_local += xp_comm_node(world, r) == xp_comm_node(world, rank.rank);
    xp_status status = fn(&rank, context);
    if (status == XP_OK)
        return XP_OK;
    xp_comm_abort(world, NULL);
    return xp_rank_has_shim() ? xp_comm_final_error(world, status) : status;
}

xp_status xp_bench_run_ranks(const xp_bench_host *host, int n_ranks, xp_bench_rank_fn fn,
                             void *context) {
    return host->world ? run_process(host->world, fn, context) : run_team(n_ranks, fn, context);
}

xp_status xp_bench_host_open(xp_bench_host *host) {
    host->world = NULL;
    const xp_mpi_args args = {.init_timeout_s = TIMEOUT_S,
                              .timeout_s = TIMEOUT_S,
                              .rendezvous_folder = getenv(XP_LAUNCH_FOLDER)};
    return xp_mpi_launched() ? xp_mpi_world_create(&args, &host->world) : XP_OK;
}

void xp_bench_host_close(xp_bench_host *host) {
    xp_comm_destroy(host->world);
    host->world = NULL;
}

bool xp_bench_host_leads(const xp_bench_host *host) {
    return !host->world || xp_comm_rank(host->world) == 0;
}

int xp_bench_host_n_ranks(const xp_bench_host *host, int asked) {
    return host->world ? xp_comm_size(host->world) : asked;
}
