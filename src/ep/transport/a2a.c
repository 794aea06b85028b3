/*
 * a2a: one row an assignment, packed, exchanged by an all-to-all, unpacked: works over every communicator,
 * and is the baseline. What arrives and how it is added up is the same as over p2p, bit for bit.
 */
#include "ep/transport/a2a.h"

#include <stdlib.h>

static void carve(const xp_ep_shape *s, xp_ep_carver *c, a2a_slot *slot) {
    xp_ep_mailbox_carve(s, c, &slot->box);
    slot->out = xp_ep_carve(c, (size_t)s->max_send_assignments * s->row_bytes);
    slot->in = xp_ep_carve(c, (size_t)s->assignment_capacity * s->row_bytes);
    slot->assignment_token = xp_ep_carve(c, (size_t)s->max_send_assignments * sizeof(int32_t));
}

static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    (void)config; /* the same wherever the ranks are */
    a2a_slot slot = {0};
    xp_ep_carver carver = {0};
    carve(shape, &carver, &slot);
    return carver.used * (size_t)shape->n_slots;
}

static xp_status create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    a2a_state *state = calloc(1, sizeof *state);
    group->state = state;
    if (state)
        state->slots = calloc((size_t)s->n_slots, sizeof *state->slots);
    if (!state || !state->slots)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_device_alloc(group->device, measure(s, &group->config), "ep", &state->memory));
    xp_ep_carver carver = {.base = state->memory};
    for (int i = 0; i < s->n_slots; i++) {
        carve(s, &carver, &state->slots[i]);
        XP_TRY(xp_ep_mailbox_open(group, &state->slots[i].box));
    }
    return XP_OK;
}

static void destroy(xp_ep_group *group) {
    a2a_state *state = group->state;
    if (!state)
        return;
    for (int i = 0; i < group->shape.n_slots && state->slots; i++)
        xp_ep_mailbox_close(&state->slots[i].box);
    xp_device_free(group->device, state->memory);
    free(state->slots);
    free(state);
}

a2a_slot *xp_ep_a2a_slot(const xp_ep_step *step) {
    const a2a_state *state = step->group->state;
    return &state->slots[step->plan->slot];
}

static xp_status share_blocks(const xp_ep_step *step, const int32_t *block) {
    return xp_ep_mailbox_share_blocks(step, &xp_ep_a2a_slot(step)->box, block);
}

static void aim_assignments(const xp_ep_step *step, xp_ep_assignment **targets) {
    xp_ep_mailbox_aim_assignments(step, &xp_ep_a2a_slot(step)->box, targets);
}

static xp_status share_assignments(const xp_ep_step *step, const xp_ep_assignment **assignments) {
    return xp_ep_mailbox_share_assignments(step, &xp_ep_a2a_slot(step)->box, assignments);
}

/* Bytes of the assignments to and from each rank in this round: out at their places among all send assignments,
 * in packed. */
static void set_exchange(const xp_ep_step *step, bool home, int32_t first_recv) {
    const xp_ep_group *group = step->group;
    const xp_ep_exchange *exchange = &xp_ep_a2a_slot(step)->box.exchange;
    int64_t size = (int64_t)group->shape.row_bytes;
    for (int r = 0; r < group->shape.n_ranks; r++) {
        xp_ep_span out = xp_ep_plan_send_assignments(step->plan, r, step->round);
        xp_ep_span in = xp_ep_plan_recv_assignments(step->plan, r, step->round);
        int64_t out_at = out.first * size, in_at = (in.first - first_recv) * size;
        if (home)
            xp_ep_exchange_set(exchange, r, in.n * size, in_at, out.n * size, out_at);
        else
            xp_ep_exchange_set(exchange, r, out.n * size, out_at, in.n * size, in_at);
        xp_ep_totals *totals = &step->group->totals;
        xp_ep_add(r == group->rank ? &totals->bytes_kept : &totals->bytes_sent_remote,
                  (home ? in.n : out.n) * size);
    }
}

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    a2a_slot *slot = xp_ep_a2a_slot(step);
    size_t row_bytes = group->shape.row_bytes;
    for (int d = 0; d < group->shape.n_ranks; d++) {
        xp_ep_span assignments = xp_ep_plan_send_assignments(plan, d, step->round);
        for (int32_t i = assignments.first; i < assignments.first + assignments.n; i++)
            slot->assignment_token[i] = plan->assignment_entry[i] / group->shape.top_k;
        group->kernels->copy_rows(
            step->stream,
            &(xp_ep_copy_args){.n_rows = assignments.n,
                               .row_bytes = row_bytes,
                               .dst = slot->out + (size_t)assignments.first * row_bytes,
                               .src = x,
                               .src_index = slot->assignment_token + assignments.first});
    }
    int32_t first_row = plan->round_row[step->round], first = plan->recv_assignment[first_row];
    set_exchange(step, false, first);
    XP_TRY(
        xp_ep_exchange_run(step, &slot->box.exchange, slot->box.comm, slot->out, slot->in, NULL));
    group->kernels->copy_rows(step->stream,
                              &(xp_ep_copy_args){.n_rows = plan->n_recv[step->round],
                                                 .row_bytes = row_bytes,
                                                 .dst = recv,
                                                 .src = slot->in,
                                                 .src_index = plan->recv_assignment + first_row,
                                                 .src_first = first});
    return XP_OK;
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    a2a_slot *slot = xp_ep_a2a_slot(step);
    int32_t first = plan->recv_assignment[plan->round_row[step->round]];
    int32_t end = plan->recv_assignment[plan->round_row[step->round + 1]];
    group->kernels->copy_rows(step->stream,
                              &(xp_ep_copy_args){.n_rows = end - first,
                                                 .dst = slot->in,
                                                 .src = home->y,
                                                 .row_bytes = group->shape.row_bytes,
                                                 .src_index = plan->assignment_pos + first});
    set_exchange(step, true, first);
    /* Rows of earlier rounds lie at other places of `out` and are still there for the sum. */
    XP_TRY(
        xp_ep_exchange_run(step, &slot->box.exchange, slot->box.comm, slot->in, slot->out, NULL));
    xp_ep_sum_home(step, slot->out, plan->send_assignment, NULL, home->out);
    return xp_ep_mailbox_weights(step, &slot->box, home);
}

const xp_ep_transport_ops xp_ep_a2a_ops = {
    .name = "a2a",
    .measure = measure,
    .create = create,
    .destroy = destroy,
    .share_blocks = share_blocks,
    .aim_assignments = aim_assignments,
    .share_assignments = share_assignments,
    .dispatch = dispatch,
    .bring_home = bring_home,
};
