/** The a2a transport's memory, which both devices' ways to it use. */
#ifndef XP_EP_TRANSPORT_A2A_H
#define XP_EP_TRANSPORT_A2A_H

#include "ep/transport/mailbox.h"

typedef struct a2a_slot {
    xp_ep_mailbox box;
    char *
        out; /* [max_send_picks, D] a row for each of this rank's picks, as sent and as come home */
    char *in;            /* [P, D] a row for each pick of this rank's experts in the round */
    int32_t *pick_token; /* [max_send_picks] */
} a2a_slot;

typedef struct a2a_state {
    a2a_slot *slots;
    void *memory;
} a2a_state;

a2a_slot *xp_ep_a2a_slot(const xp_ep_step *step);

#endif
