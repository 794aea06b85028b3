/** The part of a plan that only the hierarchical transport needs. */
#ifndef XP_EP_TRANSPORT_HIERARCHICAL_H
#define XP_EP_TRANSPORT_HIERARCHICAL_H

#include "ep/plan.h"

/** Device bytes of one plan's relay part. */
size_t xp_ep_relay_measure(const xp_ep_shape *shape, int n_nodes);
XP_NODISCARD xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay);
void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay);

#endif
