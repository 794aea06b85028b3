/** What a hierarchical group reserves: buffers and communicators of each slot. */
#ifndef XP_EP_HIERARCHICAL_STATE_H
#define XP_EP_HIERARCHICAL_STATE_H

#include "ep/common/metadata.h"
#include "ep/hierarchical/forwarding_lists.h"

typedef struct hier_slot {
    xp_ep_metadata metadata;
    xp_comm *intra_node, *inter_node; /* ranks of this node; ranks with this local rank */
    char *send_rows; /* [max_send_rows, D] this rank's node rows, as sent and as they come back */
    char *forward_rows; /* [N * M, D] node rows of a round that this rank forwards */
    char *fan_out_rows; /* [max_in_rows, D] the same, one for each local rank that needs it */
    char *recv_rows;    /* [recv_capacity, D] recv rows by (local rank, node) of their source */
    char *copies;       /* the longest of the four; with send_copies > 1 */
    /* Host memory: */
    uint64_t *token_mask;            /* [M] scratch, zero between uses */
    int32_t *cursor;                 /* [M] scratch */
    int32_t *counts_out, *counts_in; /* [N, max_rounds] node rows by node and round */
    xp_ep_exchange exchange;         /* [R] the one being made */
} hier_slot;

typedef struct hier_state {
    xp_ep_node_grid grid;
    hier_slot *slots;
    void *memory, *host_memory; /* as in xp_ep_forwarding */
} hier_state;

size_t xp_ep_hier_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
size_t xp_ep_hier_comm_bytes(const xp_ep_config *config, int n_ranks);
/** Collective. group->transport_state. XP_ENOTSUP: the nodes do not have equally many ranks. */
XP_NODISCARD xp_status xp_ep_hier_state_create(xp_ep_group *group);
void xp_ep_hier_state_destroy(xp_ep_group *group);

static inline const hier_state *xp_ep_hier_state(const xp_ep_call *call) {
    return call->group->transport_state;
}
static inline hier_slot *xp_ep_hier_slot(const xp_ep_call *call) {
    return &xp_ep_hier_state(call)->slots[call->plan->slot];
}

#endif
