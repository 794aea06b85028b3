/** For tests: rank threads that behave as if they ran on several nodes. */
#ifndef XP_COMM_THREAD_SIMULATE_NODES_H
#define XP_COMM_THREAD_SIMULATE_NODES_H

#include "expar/comm.h"

/**
 * Pretend that rank r runs on node nodes[r] (any numbers). Ranks of different nodes then share no
 * memory and see nothing of each other's waits, as far as the communicators can tell. Before the
 * first xp_thread_world_comm().
 * @param nodes  [n_ranks], copied
 * @return XP_OK; XP_EINVAL; XP_ENOMEM
 */
XP_NODISCARD xp_status xp_thread_world_simulate_nodes(xp_thread_world *world, const int *nodes);

#endif
