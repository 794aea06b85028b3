#include "ep/local/local.h"

#include <stdlib.h>

static size_t carve(const xp_ep_shape *shape, char *base, void **assignments) {
    xp_ep_carver carver = {.base = base};
    for (int i = 0; i < shape->n_slots; i++) {
        void *at = xp_ep_carve(&carver,
                               (size_t)shape->max_send_assignments * xp_ep_assignment_bytes(shape));
        if (assignments)
            assignments[i] = at;
    }
    return carver.used;
}

size_t xp_ep_local_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    (void)config; /* the shape says all */
    return carve(shape, NULL, NULL);
}

xp_status xp_ep_local_state_create(xp_ep_group *group) {
    xp_ep_local_state *state = calloc(1, sizeof *state);
    group->transport_state = state;
    if (state)
        state->assignments = calloc((size_t)group->shape.n_slots, sizeof *state->assignments);
    if (!state || !state->assignments)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_device_alloc(group->device, carve(&group->shape, NULL, NULL), "ep", &state->memory));
    carve(&group->shape, state->memory, state->assignments);
    return XP_OK;
}

void xp_ep_local_state_destroy(xp_ep_group *group) {
    xp_ep_local_state *state = group->transport_state;
    if (!state)
        return;
    xp_device_free(group->device, state->memory);
    free(state->assignments);
    free(state);
    group->transport_state = NULL;
}
