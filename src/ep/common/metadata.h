/**
 * The metadata of a plan over collectives: counts, assignments, and later the gradients of weights.
 * What the a2a and the hierarchical transport share. Memory and communicator of one slot; the
 * exchange itself is the device's: common/cpu/metadata.h, common/cuda/metadata.h.
 */
#ifndef XP_EP_COMMON_METADATA_H
#define XP_EP_COMMON_METADATA_H

#include "ep/common/exchange.h"

typedef struct xp_ep_metadata {
    xp_comm *comm; /* the slot's own, so that two slots can be in a collective at the same time */
    /* xp_ep_assignment, on GPUs xp_ep_gpu_assignment: */
    void *assignments_out;          /* [max_send_assignments] */
    void *assignments_in;           /* [max_recv_assignments] */
    float *weights_out;             /* [P] */
    float *weights_in;              /* [max_send_assignments] */
    char *at_once_out, *at_once_in; /* [R] of metadata_bytes: counts, then assignments */
    xp_ep_exchange exchange; /* [R] CPU: the exchange being made. A GPU's is in its device state */
} xp_ep_metadata;

void xp_ep_metadata_carve(const xp_ep_shape *shape, xp_ep_carver *carver, xp_ep_metadata *metadata);
/** Collective: the communicator, ready for exchanges. */
XP_NODISCARD xp_status xp_ep_metadata_open(xp_ep_group *group, xp_ep_metadata *metadata);
void xp_ep_metadata_close(xp_ep_metadata *metadata);

#endif
