#include "comm/mpi/forward.h"

#include <stdlib.h>

/* How many ranks of a node each sender tells: one of them may be the culprit. */
#define N_EACH 2

xp_status xp_forward_map_create(const int *nodes, int size, xp_forward_map *map) {
    xp_forward_map m = {.size = size, .nodes = nodes};
    for (int r = 0; r < size; r++)
        m.n_nodes = nodes[r] >= m.n_nodes ? nodes[r] + 1 : m.n_nodes;
    m.max_targets = N_EACH * (m.n_nodes - 1);
    m.index = calloc((size_t)size, sizeof *m.index);
    m.n_ranks = calloc((size_t)m.n_nodes, sizeof *m.n_ranks);
    if (!m.index || !m.n_ranks) {
        xp_forward_map_destroy(&m);
        return xp_error(XP_ENOMEM, "no memory for a map of %d ranks", size);
    }
    for (int r = 0; r < size; r++)
        m.index[r] = m.n_ranks[nodes[r]]++;
    *map = m;
    return XP_OK;
}

void xp_forward_map_destroy(xp_forward_map *map) {
    free(map->index);
    free(map->n_ranks);
    *map = (xp_forward_map){0};
}

int xp_forward_targets(const xp_forward_map *map, int rank, int reporter, int *targets) {
    const int mine = map->nodes[rank];
    int n = 0;
    if (mine != map->nodes[reporter])
        return 0;
    /* Senders start with different ranks, so that no node hears from all of them at once. */
    for (int i = 1; i < map->size; i++) {
        const int r = (rank + i) % map->size, n_there = map->n_ranks[map->nodes[r]];
        const int distance = (map->index[r] - map->index[rank] % n_there + n_there) % n_there;
        if (map->nodes[r] != mine && distance < N_EACH)
            targets[n++] = r;
    }
    return n;
}
