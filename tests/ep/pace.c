#include "pace.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { N_BARRIERS = 50 };

typedef struct measurement {
    pthread_barrier_t barrier;
    double longest_s; /* of thread 0's barriers */
} measurement;

typedef struct member {
    measurement *m;
    pthread_t thread;
    int number;
} member;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *take_part(void *context) {
    const member *one = context;
    for (int i = 0; i < N_BARRIERS; i++) {
        const double began = now_s();
        pthread_barrier_wait(&one->m->barrier);
        const double took = now_s() - began;
        if (one->number == 0 && took > one->m->longest_s)
            one->m->longest_s = took;
    }
    return NULL;
}

double ep_time_limit(int n_ranks, double least_s) {
    measurement m = {.longest_s = 0};
    member *members = calloc((size_t)n_ranks, sizeof *members);
    if (!members || pthread_barrier_init(&m.barrier, NULL, (unsigned)n_ranks) != 0)
        abort();
    for (int r = 0; r < n_ranks; r++) {
        members[r] = (member){.m = &m, .number = r};
        if (pthread_create(&members[r].thread, NULL, take_part, &members[r]) != 0)
            abort();
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(members[r].thread, NULL);
    pthread_barrier_destroy(&m.barrier);
    free(members);
    const double limit = 20 * m.longest_s;
    return limit < least_s ? least_s : limit > 5 ? 5 : limit;
}
