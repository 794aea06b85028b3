/**
 * Inter-node forwarding of a failure: which rank tells which. Pure logic, no MPI.
 *
 * Every rank of the node where the failure was found sends to two ranks of each other node; within
 * a node the shared-memory liveness table tells the rest. So a sender or a receiver that is dead,
 * stuck or the culprit itself keeps nobody from hearing, and a rank sends at most 2 (n_nodes - 1)
 * messages however large the job is.
 */
#ifndef XP_COMM_MPI_FORWARD_H
#define XP_COMM_MPI_FORWARD_H

#include "expar/status.h"

/** Where the ranks run. Made once, so that nothing is allocated when a failure has happened. */
typedef struct xp_forward_map {
    int size, n_nodes;
    const int *nodes; /* [size] 0-based node of each rank; borrowed */
    int *index;       /* [size] each rank's position among those of its node */
    int *n_ranks;     /* [n_nodes] ranks of each node */
    int max_targets;  /* 2 (n_nodes - 1) */
} xp_forward_map;

XP_NODISCARD xp_status xp_forward_map_create(const int *nodes, int size, xp_forward_map *map);
/** A zeroed map is accepted. */
void xp_forward_map_destroy(xp_forward_map *map);

/**
 * The ranks that `rank` tells about a failure that `reporter` has found.
 * @param[out] targets  [max_targets]
 * @return how many; 0 when `rank` is on another node than the reporter
 */
int xp_forward_targets(const xp_forward_map *map, int rank, int reporter, int *targets);

#endif
