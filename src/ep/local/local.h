/** Groups of one rank: the assignments of a slot, nothing is exchanged. */
#ifndef XP_EP_LOCAL_LOCAL_H
#define XP_EP_LOCAL_LOCAL_H

#include "ep/common/call.h"

typedef struct xp_ep_local_state {
    void **assignments; /* [n_slots] xp_ep_assignment, on GPUs xp_ep_gpu_assignment */
    void *memory;
} xp_ep_local_state;

size_t xp_ep_local_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
/** group->transport_state. */
XP_NODISCARD xp_status xp_ep_local_state_create(xp_ep_group *group);
void xp_ep_local_state_destroy(xp_ep_group *group);

static inline void *xp_ep_local_assignments(const xp_ep_call *call) {
    return ((const xp_ep_local_state *)call->group->transport_state)->assignments[call->plan->slot];
}

#endif
