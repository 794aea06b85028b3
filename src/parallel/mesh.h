/**
 * A rank's groups. world = replicate x shard; EP groups are ep_size consecutive ranks of the shard
 * dimension; ranks with the same EP rank hold the same experts and form the expert-data group.
 *
 *   world rank = replica * n_shard + shard_rank
 *   shard_rank = expert_shard_rank * ep_size + ep_rank
 */
#ifndef XP_PARALLEL_MESH_H
#define XP_PARALLEL_MESH_H

#include "config/config.h"
#include "expar/comm.h"

/** A communicator of one rank is NULL. */
typedef struct xp_mesh {
    xp_comm *world;            /* borrowed */
    xp_comm *shard;            /* this replica's ranks: dense optimizer state is sharded over it */
    xp_comm *replicate;        /* ranks with the same shard_rank in all replicas */
    xp_comm *ep;               /* this rank's EP group */
    xp_comm *expert_shard;     /* inside the replica, same ep_rank: expert optimizer
                                  state is sharded over it */
    xp_comm *expert_replicate; /* the same as replicate, for experts */
    int n_replicate, n_shard, ep_size, n_expert_shard;
    int n_ranks, rank; /* of the world */
    int replica, shard_rank, ep_rank, expert_shard_rank;
    int ep_nodes; /* nodes that an EP group spans, 0 = 1: in predictions for the caller to say */
    bool separate_processes; /* ranks of a node are processes; xp_mesh_layout() says false */
    bool shares_gpus;        /* several ranks on one GPU; in predictions for the caller to say */
} xp_mesh;

/**
 * Sizes and ranks only, all communicators NULL: for predictions.
 * @return XP_OK; XP_ECONFIG names the degrees that do not fit n_ranks and what would
 */
XP_NODISCARD xp_status xp_mesh_layout(const xp_config *config, int n_ranks, int rank,
                                      xp_mesh *mesh);
/** How many of n_nodes equal nodes, whose ranks count on one after the other, this rank's EP group
 * lies on. */
int xp_mesh_ep_nodes(const xp_mesh *mesh, int n_nodes);
/**
 * Layout and communicators. Collective.
 * @param world NULL: one rank. Borrowed; must outlive the mesh
 */
XP_NODISCARD xp_status xp_mesh_create(xp_comm *world, const xp_config *config, xp_mesh *mesh);
void xp_mesh_destroy(xp_mesh *mesh);

#endif
