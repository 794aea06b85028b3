/* One rank: rows stay where they are, and the two levels of the sum are one. */
#include <stdlib.h>
#include "ep/transport/transport.h"

typedef struct local_state {
    xp_ep_assignment **assignments; /* [n_slots] */
    void *memory;
} local_state;

static size_t carve(const xp_ep_shape *shape, char *base, xp_ep_assignment **assignments) {
    xp_ep_carver carver = {.base = base};
    for (int i = 0; i < shape->n_slots; i++) {
        void *at =
            xp_ep_carve(&carver, (size_t)shape->max_send_assignments * sizeof(xp_ep_assignment));
        if (assignments)
            assignments[i] = at;
    }
    return carver.used;
}

static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    (void)config; /* every kind of local group needs the same */
    return carve(shape, NULL, NULL);
}

static xp_status create(xp_ep_group *group) {
    local_state *state = calloc(1, sizeof *state);
    group->state = state;
    if (state)
        state->assignments = calloc((size_t)group->shape.n_slots, sizeof *state->assignments);
    if (!state || !state->assignments)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_device_alloc(group->device, carve(&group->shape, NULL, NULL), "ep", &state->memory));
    carve(&group->shape, state->memory, state->assignments);
    return XP_OK;
}

static void destroy(xp_ep_group *group) {
    local_state *state = group->state;
    if (!state)
        return;
    xp_device_free(group->device, state->memory);
    free(state->assignments);
    free(state);
}

static xp_status share_blocks(const xp_ep_step *step, const int32_t *block) {
    for (int i = 0; i < step->group->shape.block_ints; i++)
        step->plan->blocks[i] = block[i];
    return XP_OK;
}

static void aim_assignments(const xp_ep_step *step, xp_ep_assignment **targets) {
    const local_state *state = step->group->state;
    targets[0] = state->assignments[step->plan->slot];
}

static xp_status share_assignments(const xp_ep_step *step, const xp_ep_assignment **assignments) {
    const local_state *state = step->group->state;
    *assignments = state->assignments[step->plan->slot];
    return XP_OK;
}

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    xp_ep_span rows = xp_ep_plan_send_rows(plan, 0, step->round);
    /* A caller of a local group may pass the same memory: its recv rows are the token rows. */
    if (recv == x && group->shape.local)
        return XP_OK;
    group->kernels->copy_rows(
        step->stream,
        &(xp_ep_copy_args){.n_rows = rows.n,
                           .row_bytes = group->shape.row_bytes,
                           .dst = recv,
                           .src = x,
                           .src_index = group->shape.local ? NULL : plan->send_token + rows.first});
    xp_ep_add(&step->group->totals.bytes_kept, rows.n * (int64_t)group->shape.row_bytes);
    return XP_OK;
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    xp_ep_plan *plan = step->plan;
    xp_ep_reduce_args own = xp_ep_partial_rows(step, 0, home->y, home->out);
    const xp_ep_expert_rows near = xp_ep_expert_rows_for(step, 0, home->y);
    if (group->shape.local)
        group->kernels->reduce_rows(step->stream, &own);
    else
        xp_ep_sum_home(step, NULL, NULL, &near, home->out);
    xp_ep_add(&step->group->totals.bytes_kept, own.n_rows * (int64_t)group->shape.row_bytes);
    if (home->d_topk_weight && home->d_weight) {
        xp_ep_span assignments = xp_ep_plan_recv_assignments(plan, 0, step->round);
        group->kernels->move(
            step->stream,
            &(xp_ep_move_args){.n = assignments.n,
                               .dst = home->d_topk_weight,
                               .dst_index = plan->assignment_entry + assignments.first,
                               .src = home->d_weight,
                               .src_index = plan->assignment_pos + assignments.first});
    }
    return XP_OK;
}

const xp_ep_transport_ops xp_ep_local_ops = {
    .name = "local",
    .measure = measure,
    .create = create,
    .destroy = destroy,
    .share_blocks = share_blocks,
    .aim_assignments = aim_assignments,
    .share_assignments = share_assignments,
    .dispatch = dispatch,
    .bring_home = bring_home,
};
