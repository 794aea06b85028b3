#include "ep/cuda/gates.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct xp_ep_gates {
    _Atomic int n_users;
    int n_ranks;
    pthread_mutex_t locks[]; /* [R] */
};

static xp_ep_gates *create(int n_ranks) {
    xp_ep_gates *g = calloc(1, sizeof *g + (size_t)n_ranks * sizeof g->locks[0]);
    if (g == NULL)
        return NULL;
    atomic_init(&g->n_users, n_ranks);
    g->n_ranks = n_ranks;
    for (int r = 0; r < n_ranks; r++)
        pthread_mutex_init(&g->locks[r], NULL);
    return g;
}

xp_status xp_ep_gates_open(xp_comm *comm, xp_ep_gates **gates) {
    xp_ep_gates *shared = xp_comm_rank(comm) == 0 ? create(xp_comm_size(comm)) : NULL;
    /* After a failure the ranks cannot agree who frees: the few bytes stay. */
    XP_TRY(xp_comm_broadcast(comm, &shared, sizeof shared, 0, NULL));
    if (shared == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    *gates = shared;
    return XP_OK;
}

void xp_ep_gates_close(xp_ep_gates *gates) {
    if (gates == NULL || atomic_fetch_sub(&gates->n_users, 1) > 1)
        return;
    for (int r = 0; r < gates->n_ranks; r++)
        pthread_mutex_destroy(&gates->locks[r]);
    free(gates);
}

void xp_ep_gates_enter(xp_ep_gates *gates, int rank) {
    if (gates != NULL)
        pthread_mutex_lock(&gates->locks[rank]);
}

void xp_ep_gates_leave(xp_ep_gates *gates, int rank) {
    if (gates != NULL)
        pthread_mutex_unlock(&gates->locks[rank]);
}

void xp_ep_gates_wait(xp_ep_gates *gates) {
    for (int r = 0; gates != NULL && r < gates->n_ranks; r++) {
        xp_ep_gates_enter(gates, r);
        xp_ep_gates_leave(gates, r);
    }
}
