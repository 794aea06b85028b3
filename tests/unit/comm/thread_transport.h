/** A callback transport over a communicator of rank threads, with simulated nodes if wanted. */
#ifndef TESTS_UNIT_COMM_THREAD_TRANSPORT_H
#define TESTS_UNIT_COMM_THREAD_TRANSPORT_H

#include "expar/comm.h"

typedef struct thread_transport_args {
    double timeout_s;
    bool gather_only; /* no all_to_allv */
    bool no_split;    /* as with the public table */
    const int *nodes; /* [size] simulated; NULL: all on one */
} thread_transport_args;

/** A callback communicator whose transport is `threads`, which it owns. */
xp_status thread_transport_comm(xp_comm *threads, const thread_transport_args *args,
                                xp_comm **comm);

/** Calls of transports so far by a thread other than the one that made the communicator. */
int thread_transport_n_strangers(void);

#endif
