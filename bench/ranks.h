/** Rank threads for a bench (or this process as one rank under a launcher), and a host barrier where they sleep. */
#ifndef XP_BENCH_RANKS_H
#define XP_BENCH_RANKS_H

#include <stdbool.h>
#include "expar/comm.h"

typedef struct xp_bench_team xp_bench_team;

/** Where ranks come from: this process's threads, or the launcher's processes. */
typedef struct xp_bench_host {
    xp_comm *world; /* NULL: ranks are threads */
} xp_bench_host;
/** Collective under a launcher. */
XP_NODISCARD xp_status xp_bench_host_open(xp_bench_host *host);
void xp_bench_host_close(xp_bench_host *host);
/** Whether this process prints. */
bool xp_bench_host_leads(const xp_bench_host *host);
/** Ranks of a run that asks for so many: the launcher decides where there is one. */
int xp_bench_host_n_ranks(const xp_bench_host *host, int asked);

typedef struct xp_bench_rank {
    int rank, n_ranks;
    int n_local;    /* ranks on this machine */
    xp_comm *world; /* NULL: one rank */
    xp_bench_team *team;
} xp_bench_rank;

/** What a rank does. @return its failure ends the other ranks too */
typedef xp_status (*xp_bench_rank_fn)(xp_bench_rank *rank, void *context);

/**
 * Run fn on every rank with the same context. Processes cannot be used again after a failure.
 * @param n_ranks  as xp_bench_host_n_ranks() says
 * @return XP_OK, or the first rank's failure, the rank named in the error
 */
XP_NODISCARD xp_status xp_bench_run_ranks(const xp_bench_host *host, int n_ranks,
                                          xp_bench_rank_fn fn, void *context);

/** Wait for all ranks, threads asleep, so that one of them can use all cores. XP_ECOMM when another
 * rank failed. */
XP_NODISCARD xp_status xp_bench_barrier(xp_bench_rank *rank);

#endif
