#include <stdlib.h>
#include "comm/provider.h"
#include "device/plugin.h"
#include "ep/p2p/p2p.h"

static const char *const point_names[P2P_N_POINTS] = {
    [P2P_COUNTS] = "counts",
    [P2P_ASSIGNMENTS] = "assignments",
    [P2P_STARTS] = "starts of rounds",
    [P2P_READY] = "ready",
    [P2P_DATA] = "rows",
    [P2P_BUSY] = "end of use",
};

const char *xp_ep_p2p_point_name(p2p_point point) {
    return (unsigned)point < P2P_N_POINTS ? point_names[point] : "?";
}

static size_t carve(const xp_ep_shape *s, bool direct, char *base, p2p_area *a) {
    xp_ep_carver c = {.base = base};
    const size_t n_ranks = (size_t)s->n_ranks;
    a->wait = xp_ep_carve(&c, sizeof *a->wait);
    a->flags = xp_ep_carve(&c, P2P_N_POINTS * n_ranks * sizeof *a->flags);
    a->recv_at = xp_ep_carve(&c, n_ranks * sizeof *a->recv_at);
    a->expert_rows = xp_ep_carve(&c, n_ranks * sizeof *a->expert_rows);
    a->rank_counts = xp_ep_carve_ints(&c, (int64_t)s->n_ranks * s->counts_ints);
    a->starts = xp_ep_carve_ints(&c, s->n_ranks * s->max_rounds);
    const int64_t n_assignments = s->on_gpu ? s->max_send_assignments : s->max_recv_assignments;
    a->assignments = xp_ep_carve(&c, (size_t)n_assignments * xp_ep_assignment_bytes(s));
    a->weights = xp_ep_carve(&c, (size_t)s->max_send_assignments * sizeof *a->weights);
    a->combine_rows = xp_ep_carve(&c, (size_t)s->max_send_rows * s->row_bytes);
    const size_t n_words = n_ranks * (size_t)xp_ep_p2p_arrival_words(s);
    a->arrived = direct ? NULL : xp_ep_carve(&c, n_words * sizeof *a->arrived);
    a->recv = direct ? NULL : xp_ep_carve(&c, (size_t)s->recv_capacity * s->row_bytes);
    const size_t copies = s->send_copies > 1 ? (n_ranks - 1) * (size_t)s->max_tokens : 0;
    a->copies = copies > 0 ? xp_ep_carve(&c, copies * s->row_bytes) : NULL;
    return c.used;
}

static size_t area_bytes(const xp_ep_shape *s, bool direct) {
    p2p_area area;
    return carve(s, direct, NULL, &area);
}

size_t xp_ep_p2p_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    const size_t unit =
        config->separate_processes && config->on_gpu ? XP_GPU_SHARED_BLOCK_BYTES : 1;
    const size_t n_bytes = area_bytes(shape, !config->separate_processes) * (size_t)shape->n_slots;
    return (n_bytes + unit - 1) / unit * unit;
}

xp_status xp_ep_p2p_windows_create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    p2p_state *state = calloc(1, sizeof *state);
    group->transport_state = state;
    if (!state)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    state->direct = xp_comm_same_process(group->comm);
    state->areas = calloc((size_t)s->n_slots * (size_t)s->n_ranks, sizeof *state->areas);
    state->epochs = calloc((size_t)s->n_slots, sizeof *state->epochs);
    state->last_epochs = calloc((size_t)s->n_slots, sizeof *state->last_epochs);
    if (!state->areas || !state->epochs || !state->last_epochs)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    const size_t each = area_bytes(s, state->direct);
    XP_TRY(xp_comm_window_create(group->comm, group->device, each * (size_t)s->n_slots, "ep",
                                 &state->window));
    for (int slot = 0; slot < s->n_slots; slot++) {
        for (int r = 0; r < s->n_ranks; r++)
            carve(s, state->direct, (char *)xp_window_peer(state->window, r) + each * (size_t)slot,
                  &state->areas[slot * s->n_ranks + r]);
    }
    return XP_OK;
}

void xp_ep_p2p_windows_destroy(xp_ep_group *group) {
    p2p_state *state = group->transport_state;
    if (!state)
        return;
    xp_comm_window_destroy(state->window);
    free(state->areas);
    free(state->epochs);
    free(state->last_epochs);
    free(state);
    group->transport_state = NULL;
}

void xp_ep_p2p_begin(const xp_ep_call *call) {
    p2p_state *state = call->group->transport_state;
    xp_comm_show_phase(call->group->comm, call->phase);
    uint32_t *epoch = &state->epochs[call->plan->slot];
    *epoch = xp_ep_p2p_next_epoch(*epoch);
}

uint32_t xp_ep_p2p_epoch(const xp_ep_call *call) {
    const p2p_state *state = call->group->transport_state;
    return state->epochs[call->plan->slot];
}
