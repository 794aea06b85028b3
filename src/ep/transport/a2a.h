/** The a2a transport's memory, which both devices' ways to it use. */
#ifndef XP_EP_TRANSPORT_A2A_H
#define XP_EP_TRANSPORT_A2A_H

#include "ep/transport/mailbox.h"

typedef struct a2a_slot {
    xp_ep_mailbox box;
    char *
        out; /* [max_send_assignments, D] a row for each of this rank's assignments, as sent and as come home */
    char *in; /* [P, D] a row for each assignment of this rank's experts in the round */
    int32_t *assignment_token; /* [max_send_assignments] */
} a2a_slot;

typedef struct a2a_state {
    a2a_slot *slots;
    void *memory;
} a2a_state;

a2a_slot *xp_ep_a2a_slot(const xp_ep_step *step);

#endif
