/** Run a body on every rank of a thread world; assertions happen on the main thread afterwards. */
#ifndef TESTS_UNIT_COMM_RANKS_H
#define TESTS_UNIT_COMM_RANKS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "comm/failure.h"
#include "expar/comm.h"

typedef struct rank_job {
    xp_thread_world *world;
    xp_comm *comm;
    int rank, n_ranks;
    const int *nodes; /* simulated; NULL: none */
    void (*body)(struct rank_job *job);
    int n_wrong;      /* checks that failed */
    char first[256];  /* the first of them */
    char error[1024]; /* for bodies that keep an error text */
    xp_status status;
    xp_failure failure; /* as error */
    double seconds;
    pthread_t thread;
} rank_job;

#define RANK_CHECK(job, condition)                                                                 \
    do {                                                                                           \
        if (!(condition) && (job)->n_wrong++ == 0)                                                 \
            snprintf((job)->first, sizeof(job)->first, "rank %d line %d: %s [%s]", (job)->rank,    \
                     __LINE__, #condition, xp_last_error());                                       \
    } while (0)

/** Caller frees the jobs. @param nodes NULL: all on one node */
rank_job *run_ranks(int n_ranks, double timeout_s, const int *nodes, void (*body)(rank_job *job));
/** Run, and demand that every check of every rank held. */
void expect_all(int n_ranks, void (*body)(rank_job *job));

#endif
