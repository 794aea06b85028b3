/** The cases of test_comm_device: what one rank does. */
#ifndef TESTS_DIST_DEVICE_CASES_H
#define TESTS_DIST_DEVICE_CASES_H

#include <pthread.h>
#include "comm/device/backend.h"

#define MAX_RANKS 16

typedef struct options {
    int ranks, n_nodes;
    bool cuda, mpi;
    const char *fault;
} options;

typedef struct worker {
    const options *o;
    xp_thread_world *world;
    xp_comm *comm;
    xp_device *device;
    xp_stream *stream;
    int me, n, n_failed, n_checks;
    const char *carrier;
    pthread_t thread;
} worker;

void check(worker *r, bool ok, const char *what, int64_t n);
/** Memory of the device, with room behind it. */
void *reserve(worker *r, size_t n_bytes);

/** Every collective over types and lengths. */
void all_cases(worker *r);
/** The same on communicators of half of the ranks. */
void halves(worker *r);
void windows(worker *r);

#endif
