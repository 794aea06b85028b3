#include "ep/a2a/a2a.h"

#include <stdlib.h>
#include "comm/provider.h"

static size_t carve(const xp_ep_shape *s, xp_ep_carver *c, a2a_slot *slot) {
    xp_ep_metadata_carve(s, c, &slot->metadata);
    slot->send_rows = xp_ep_carve(c, (size_t)s->max_send_assignments * s->row_bytes);
    slot->recv_rows = xp_ep_carve(c, (size_t)s->assignment_capacity * s->row_bytes);
    slot->assignment_token = xp_ep_carve_ints(c, s->max_send_assignments);
    const int64_t longer = s->max_send_assignments > s->assignment_capacity
                               ? s->max_send_assignments
                               : s->assignment_capacity;
    slot->copies = s->send_copies > 1 ? xp_ep_carve(c, (size_t)longer * s->row_bytes) : NULL;
    return c->used;
}

size_t xp_ep_a2a_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    (void)config; /* the same wherever the ranks are */
    a2a_slot slot = {0};
    xp_ep_carver carver = {0};
    return carve(shape, &carver, &slot) * (size_t)shape->n_slots;
}

size_t xp_ep_a2a_comm_bytes(const xp_ep_config *config, int n_ranks) {
    (void)config; /* the same wherever the ranks are */
    return xp_comm_device_bytes(n_ranks, XP_EP_A2A_PIECE_BYTES);
}

xp_status xp_ep_a2a_copies(const xp_ep_call *call, const xp_ep_exchange *exchange, const void *send,
                           xp_stream *stream) {
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const xp_ep_exchange_copy copy = {.exchange = exchange,
                                      .comm = slot->metadata.comm,
                                      .own = call->group->rank,
                                      .send = send,
                                      .copies = slot->copies};
    return xp_ep_exchange_copies(call, &copy, stream);
}

xp_status xp_ep_a2a_state_create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    a2a_state *state = calloc(1, sizeof *state);
    group->transport_state = state;
    if (state)
        state->slots = calloc((size_t)s->n_slots, sizeof *state->slots);
    if (!state || !state->slots)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_device_alloc(group->device, xp_ep_a2a_group_bytes(s, &group->config), "ep",
                           &state->memory));
    xp_ep_carver carver = {.base = state->memory};
    for (int i = 0; i < s->n_slots; i++) {
        carve(s, &carver, &state->slots[i]);
        XP_TRY(xp_ep_metadata_open(group, &state->slots[i].metadata));
    }
    return XP_OK;
}

void xp_ep_a2a_state_destroy(xp_ep_group *group) {
    a2a_state *state = group->transport_state;
    if (!state)
        return;
    for (int i = 0; i < group->shape.n_slots && state->slots; i++)
        xp_ep_metadata_close(&state->slots[i].metadata);
    xp_device_free(group->device, state->memory);
    free(state->slots);
    free(state);
    group->transport_state = NULL;
}
