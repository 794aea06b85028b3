/** The a2a transport's memory, which its CPU and its GPU backend share. */
#ifndef XP_EP_A2A_A2A_H
#define XP_EP_A2A_A2A_H

#include "ep/common/metadata.h"

typedef struct a2a_slot {
    xp_ep_metadata metadata;
    char
        *send_rows; /* [max_send_assignments, D] a row for each of this rank's assignments: as sent,
                        and as combined rows come back */
    char *recv_rows; /* [P, D] a row for each assignment of this rank's experts in the round */
    int32_t *assignment_token; /* [max_send_assignments] CPU scratch */
    char *copies;              /* the longer of send_rows and recv_rows; with send_copies > 1 */
} a2a_slot;

typedef struct a2a_state {
    a2a_slot *slots;
    void *memory;
} a2a_state;

size_t xp_ep_a2a_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
size_t xp_ep_a2a_comm_bytes(const xp_ep_config *config, int n_ranks);
/** Collective. group->transport_state. */
XP_NODISCARD xp_status xp_ep_a2a_state_create(xp_ep_group *group);
void xp_ep_a2a_state_destroy(xp_ep_group *group);

static inline a2a_slot *xp_ep_a2a_slot(const xp_ep_call *call) {
    return &((const a2a_state *)call->group->transport_state)->slots[call->plan->slot];
}

/** The further copies of the rows that `exchange` has just moved from `send`. */
XP_NODISCARD xp_status xp_ep_a2a_copies(const xp_ep_call *call, const xp_ep_exchange *exchange,
                                        const void *send, xp_stream *stream);

#endif
