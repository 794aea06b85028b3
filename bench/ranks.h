/** Rank threads for a bench (or this process as one rank under mpirun), and a meeting point where
 * they sleep. */
#ifndef XP_BENCH_RANKS_H
#define XP_BENCH_RANKS_H

#include "expar/comm.h"

typedef struct xp_bench_team xp_bench_team;

typedef struct xp_bench_rank {
    int rank, n_ranks;
    int n_local;    /* ranks on this machine */
    xp_comm *world; /* NULL: one rank */
    xp_bench_team *team;
} xp_bench_rank;

/** What a rank does. @return its failure ends the other ranks too */
typedef xp_status (*xp_bench_rank_fn)(xp_bench_rank *rank, void *context);

/**
 * Run fn on every rank with the same context.
 * @param n_ranks  threads; when a launcher made this process a rank its number of ranks counts
 * instead
 * @return XP_OK, or the first rank's failure, the rank named in the error
 */
XP_NODISCARD xp_status xp_bench_run_ranks(int n_ranks, xp_bench_rank_fn fn, void *context);

/** Wait for all ranks, asleep, so that one of them can use all cores. XP_ECOMM when another rank
 * failed. */
XP_NODISCARD xp_status xp_bench_meet(xp_bench_rank *rank);

#endif
