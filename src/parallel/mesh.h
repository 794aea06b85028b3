/**
 * Where a rank stands. world = replicate x shard; EP groups are ep_size consecutive ranks of the shard dimension; ranks with
 * the same place in their EP groups hold the same experts and form the expert-data group.
 */
#ifndef XP_PARALLEL_MESH_H
#define XP_PARALLEL_MESH_H

#include "config/config.h"
#include "expar/comm.h"

typedef struct xp_mesh {
    xp_comm *world;         /* borrowed */
    xp_comm *shard;         /* this replica's ranks: dense optimizer state is sharded over it */
    xp_comm *replicate;     /* ranks with the same place in their replicas */
    xp_comm *ep;            /* this rank's EP group */
    xp_comm *expert_shard;  /* inside the replica, same place in the EP groups: expert optimizer state is sharded over it */
    xp_comm *expert_replicate;
    int n_replicate, n_shard, ep_size, n_expert_shard;
} xp_mesh;

/** Collective. XP_ECONFIG names the degrees that do not fit the world and what would. */
XP_NODISCARD xp_status xp_mesh_create(xp_comm *world, const xp_config *config, xp_mesh *mesh);
void xp_mesh_destroy(xp_mesh *mesh);

#endif
