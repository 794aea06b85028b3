/** Counts, assignments and gradients of weights over collectives: what the a2a and the hierarchical
 * transport have in common. */
#ifndef XP_EP_TRANSPORT_MAILBOX_H
#define XP_EP_TRANSPORT_MAILBOX_H

#include "ep/transport/exchange.h"
#include "ep/transport/transport.h"

/** One slot. The communicator is the slot's own, so that two slots can be in a collective at the
 * same time. */
typedef struct xp_ep_mailbox {
    xp_comm *comm;
    xp_ep_assignment *assignments_out; /* [max_send_assignments] */
    xp_ep_assignment *assignments_in;  /* [max_recv_assignments] */
    float *weights_out;                /* [P] */
    float *weights_in;                 /* [max_send_assignments] */
    xp_ep_exchange exchange; /* [R] the one being made; on GPUs the device's state has it */
} xp_ep_mailbox;

void xp_ep_mailbox_carve(const xp_ep_shape *shape, xp_ep_carver *carver, xp_ep_mailbox *box);
/** Collective. */
xp_status xp_ep_mailbox_open(xp_ep_group *group, xp_ep_mailbox *box);
void xp_ep_mailbox_close(xp_ep_mailbox *box);

/** The transport functions of the same names. */
xp_status xp_ep_mailbox_share_blocks(const xp_ep_step *step, const xp_ep_mailbox *box,
                                     const int32_t *block);
void xp_ep_mailbox_aim_assignments(const xp_ep_step *step, const xp_ep_mailbox *box,
                                   xp_ep_assignment **targets);
xp_status xp_ep_mailbox_share_assignments(const xp_ep_step *step, const xp_ep_mailbox *box,
                                          const xp_ep_assignment **assignments);
/** Gradients of weights to their sources and into d_topk_weight; nothing when home has none. */
xp_status xp_ep_mailbox_weights(const xp_ep_step *step, const xp_ep_mailbox *box,
                                const xp_ep_home *home);

#endif
