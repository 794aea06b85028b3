#include "ep/p2p/cuda/launch_locks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct xp_ep_launch_locks {
    _Atomic int n_users;
    int n_ranks;
    pthread_mutex_t locks[]; /* [R] */
};

static xp_ep_launch_locks *create(int n_ranks) {
    xp_ep_launch_locks *l = calloc(1, sizeof *l + (size_t)n_ranks * sizeof l->locks[0]);
    if (l == NULL)
        return NULL;
    atomic_init(&l->n_users, n_ranks);
    l->n_ranks = n_ranks;
    for (int r = 0; r < n_ranks; r++)
        pthread_mutex_init(&l->locks[r], NULL);
    return l;
}

xp_status xp_ep_launch_locks_create(xp_comm *comm, xp_ep_launch_locks **locks) {
    xp_ep_launch_locks *all = xp_comm_rank(comm) == 0 ? create(xp_comm_size(comm)) : NULL;
    /* After a failure the ranks cannot agree who frees: the few bytes stay. */
    XP_TRY(xp_comm_broadcast(comm, &all, sizeof all, 0, NULL));
    if (all == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    *locks = all;
    return XP_OK;
}

void xp_ep_launch_locks_release(xp_ep_launch_locks *locks) {
    if (locks == NULL || atomic_fetch_sub(&locks->n_users, 1) > 1)
        return;
    for (int r = 0; r < locks->n_ranks; r++)
        pthread_mutex_destroy(&locks->locks[r]);
    free(locks);
}

void xp_ep_launch_lock(xp_ep_launch_locks *locks, int rank) {
    if (locks != NULL)
        pthread_mutex_lock(&locks->locks[rank]);
}

void xp_ep_launch_unlock(xp_ep_launch_locks *locks, int rank) {
    if (locks != NULL)
        pthread_mutex_unlock(&locks->locks[rank]);
}

void xp_ep_launch_locks_drain(xp_ep_launch_locks *locks) {
    for (int r = 0; locks != NULL && r < locks->n_ranks; r++) {
        xp_ep_launch_lock(locks, r);
        xp_ep_launch_unlock(locks, r);
    }
}
