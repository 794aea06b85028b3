/** The shared memory of a communicator's ranks on one node, and the barrier in it. */
#ifndef XP_COMM_CALLBACKS_AREA_H
#define XP_COMM_CALLBACKS_AREA_H

#include "comm/callbacks/state.h"

/** How a rank's offer of memory travels. */
typedef struct xp_node_offer {
    int32_t pid, fd; /* fd -1: none */
} xp_node_offer;

/** Which ranks share it: those of this rank's node. Sets n, index and ranks of the area. */
XP_NODISCARD xp_status xp_node_area_members(xp_callback_comm *comm);
/** The node's first rank makes the memory and offers it; for others fd is -1. */
XP_NODISCARD xp_status xp_node_area_offer(xp_callback_comm *comm, xp_node_offer *offer);
/** The others open what their first rank has offered. */
XP_NODISCARD xp_status xp_node_area_open(xp_callback_comm *comm, const xp_node_offer *offer);
void xp_node_area_close(xp_node_area *area);

/** Returns when all ranks of the area are here. XP_ECOMM: one does not come, or the world failed. */
XP_NODISCARD xp_status xp_node_barrier(xp_callback_comm *comm, const xp_comm_call *call);
/** See xp_comm_provider.final_barrier. */
bool xp_node_final_barrier(xp_callback_comm *comm, int64_t id);
/** Rank i of the area's buffer; i == n: the results. */
char *xp_node_buffer(const xp_node_area *area, int i);

#endif
