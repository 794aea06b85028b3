/** Ranks as processes of a test: forked, connected by sockets, with communicators made from the
 * public callback table. What a guest program with a transport of its own looks like. */
#ifndef TESTS_UNIT_COMM_SOCKETS_H
#define TESTS_UNIT_COMM_SOCKETS_H

#include <stddef.h>
#include <sys/types.h>
#include "expar/comm.h"

#define SOCKETS_MAX_RANKS 16

typedef struct sockets {
    int rank, n_ranks;
    int to[SOCKETS_MAX_RANKS]; /* a socket to each other rank */
    int n_calls;               /* of all_gather */
} sockets;

/** Callbacks over `sockets`; all_to_allv stays NULL. */
xp_comm_callbacks sockets_callbacks(sockets *s, double timeout_s);

typedef struct sockets_run {
    int n_ranks;
    double timeout_s;
    /** Runs in each process; the communicator is destroyed afterwards. */
    void (*body)(xp_comm *comm, void *context, int rank);
    /** Instead of body: makes its communicators itself. */
    void (*raw)(sockets *s, void *context);
    void *context; /* results go into memory of shared_memory() */
} sockets_run;

/** Fork the processes. @param[out] pids  [n_ranks] */
void sockets_start(const sockets_run *run, pid_t *pids);
/** Wait for one. @return its exit code; 128 + the signal that has killed it */
int sockets_wait(pid_t pid);
/** Start all and wait for all. @return how many did not exit with 0 */
int sockets_run_all(const sockets_run *run);

/** Zeroed memory that this process and those forked later share. */
void *shared_memory(size_t n_bytes);
void shared_memory_free(void *data, size_t n_bytes);

#endif
