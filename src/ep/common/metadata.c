#include "ep/common/metadata.h"

void xp_ep_metadata_carve(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_metadata *metadata) {
    const size_t each = xp_ep_assignment_bytes(s);
    metadata->assignments_out = xp_ep_carve(c, (size_t)s->max_send_assignments * each);
    metadata->assignments_in = xp_ep_carve(c, (size_t)s->max_recv_assignments * each);
    metadata->weights_out = xp_ep_carve(c, (size_t)s->assignment_capacity * sizeof(float));
    metadata->weights_in = xp_ep_carve(c, (size_t)s->max_send_assignments * sizeof(float));
    const size_t at_once = s->metadata_bytes * (size_t)s->n_ranks;
    metadata->at_once_out = at_once > 0 ? xp_ep_carve(c, at_once) : NULL;
    metadata->at_once_in = at_once > 0 ? xp_ep_carve(c, at_once) : NULL;
    xp_ep_exchange_carve(c, s->n_ranks, &metadata->exchange);
}

xp_status xp_ep_metadata_open(xp_ep_group *group, xp_ep_metadata *metadata) {
    XP_TRY(xp_comm_split(group->comm, 0, &metadata->comm));
    return xp_comm_prepare(metadata->comm, group->device, XP_EP_A2A_PIECE_BYTES);
}

void xp_ep_metadata_close(xp_ep_metadata *metadata) {
    xp_comm_destroy(metadata->comm);
    metadata->comm = NULL;
}
