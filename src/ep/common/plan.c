/* A plan's memory, its spans, and what its counts say. */
#include "ep/common/plan.h"

#include "comm/provider.h"
#include "device/device_internal.h"

/* Lay the plan's arrays out from carver->base on; with a NULL base only carver->used counts. */
static void carve_plan(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_plan *p) {
    int64_t n_ranks = s->n_ranks, rounds = s->max_rounds;
    p->rank_counts = xp_ep_carve_ints(c, n_ranks * s->counts_ints);
    p->send_row_base = xp_ep_carve_ints(c, n_ranks + 1);
    p->send_assignment_base = xp_ep_carve_ints(c, n_ranks + 1);
    p->recv_row_base = xp_ep_carve_ints(c, n_ranks + 1);
    p->recv_assignment_base = xp_ep_carve_ints(c, n_ranks + 1);
    p->dest_row_base = xp_ep_carve_ints(c, n_ranks);
    p->dest_assignment_base = xp_ep_carve_ints(c, n_ranks);
    p->source_row_base = xp_ep_carve_ints(c, n_ranks);
    p->source_assignment_base = xp_ep_carve_ints(c, n_ranks);
    p->send_token = xp_ep_carve_ints(c, s->max_send_rows);
    p->send_assignment = xp_ep_carve_ints(c, s->max_send_rows + 1);
    p->assignment_entry = xp_ep_carve_ints(c, s->max_send_assignments);
    p->token_first = xp_ep_carve_ints(c, s->max_tokens + 1);
    p->token_row = xp_ep_carve_ints(c, s->max_send_rows);
    p->send_round = xp_ep_carve_ints(c, (rounds + 1) * n_ranks);
    p->dest_slot = xp_ep_carve_ints(c, rounds * n_ranks);
    p->recv_assignment = xp_ep_carve_ints(c, s->max_recv_rows + 1);
    p->round_row = xp_ep_carve_ints(c, rounds + 1);
    p->assignment_pos = xp_ep_carve_ints(c, s->max_recv_assignments);
    p->offsets = xp_ep_carve_ints(c, rounds * (s->n_local + 1));
    p->gather = xp_ep_carve_ints(c, rounds * s->assignment_capacity);
    p->n_recv = xp_ep_carve_ints(c, rounds);
    p->own_rows = xp_ep_carve_ints(c, rounds * s->n_local * 2);
    p->own_token = xp_ep_carve_ints(c, rounds * s->assignment_capacity);
    p->weight = xp_ep_carve(c, (size_t)(rounds * s->assignment_capacity) * sizeof(float));
    p->expert_tokens = xp_ep_carve(c, (size_t)s->n_local * sizeof(int64_t));
    p->totals = xp_ep_carve_ints(c, 4 + n_ranks);
    p->round_assignments = xp_ep_carve_ints(c, (rounds + 1) * 2 * n_ranks);
}

size_t xp_ep_plan_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    (void)config; /* every transport and device needs the same */
    xp_ep_plan plan;
    xp_ep_carver carver = {0};
    carve_plan(shape, &carver, &plan);
    return carver.used;
}

xp_status xp_ep_plan_reserve(xp_ep_plan *plan) {
    const xp_ep_group *group = plan->group;
    const size_t n_bytes = xp_ep_plan_bytes(&group->shape, &group->config);
    XP_TRY(xp_device_alloc(group->device, n_bytes, "ep", &plan->memory));
    XP_TRY(xp_device_clear(group->device, plan->memory, n_bytes));
    xp_ep_carver carver = {.base = plan->memory};
    carve_plan(&group->shape, &carver, plan);
    return XP_OK;
}

void xp_ep_plan_release(xp_ep_plan *plan) {
    xp_device_free(plan->group->device, plan->memory);
    plan->memory = NULL;
}

/* ---- spans --------------------------------------------------------------------------------- */

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

xp_ep_span xp_ep_plan_send_rows(const xp_ep_plan *plan, int dest, int64_t round) {
    const int32_t *at = plan->send_round + round * plan->group->shape.n_ranks + dest;
    return (xp_ep_span){.first = at[0], .n = at[plan->group->shape.n_ranks] - at[0]};
}

xp_ep_span xp_ep_plan_send_assignments(const xp_ep_plan *plan, int dest, int64_t round) {
    xp_ep_span rows = xp_ep_plan_send_rows(plan, dest, round);
    /* The row after the last may be another destination's; its first assignment still ends this
     * one's. */
    int32_t first = plan->send_assignment[rows.first];
    return (xp_ep_span){.first = first, .n = plan->send_assignment[rows.first + rows.n] - first};
}

xp_ep_span xp_ep_plan_recv_rows(const xp_ep_plan *plan, int source, int64_t round) {
    int32_t low = plan->recv_row_base[source], high = plan->recv_row_base[source + 1];
    int32_t first = clamp(plan->round_row[round], low, high);
    return (xp_ep_span){.first = first, .n = clamp(plan->round_row[round + 1], low, high) - first};
}

xp_ep_span xp_ep_plan_recv_assignments(const xp_ep_plan *plan, int source, int64_t round) {
    xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, round);
    int32_t first = plan->recv_assignment[rows.first];
    return (xp_ep_span){.first = first, .n = plan->recv_assignment[rows.first + rows.n] - first};
}

/* ---- counts -------------------------------------------------------------------------------- */

int32_t xp_ep_counts_assignments(const xp_ep_shape *s, const int32_t *rank_counts, int source,
                                 int dest) {
    const int32_t *counts =
        rank_counts + (int64_t)source * s->counts_ints + (int64_t)dest * s->n_local;
    int32_t n = 0;
    for (int e = 0; e < s->n_local; e++)
        n += counts[e];
    return n;
}

int32_t xp_ep_counts_rows(const xp_ep_shape *s, const int32_t *rank_counts, int source, int dest) {
    return rank_counts[(int64_t)source * s->counts_ints + XP_EP_COUNTS_ROWS(s) + dest];
}

xp_status xp_ep_routing_explain(const xp_ep_group *group, int rank, const int32_t error[3]) {
    const xp_ep_shape *s = &group->shape;
    const int world = group->comm ? xp_comm_world_rank(group->comm, rank) : 0;
    switch ((xp_ep_routing_error)error[0]) {
    case XP_EP_ROUTING_OK:
        return XP_OK;
    case XP_EP_ROUTING_DUPLICATE:
        return xp_error(
            XP_EINVAL,
            "routing of rank %d, token %d: expert %d is selected twice; nothing was sent", world,
            error[1], error[2]);
    case XP_EP_ROUTING_RANGE:
        return xp_error(XP_EINVAL,
                        "routing of rank %d, token %d: %d is no expert (0 to %d, or -1 for no "
                        "assignment); nothing was sent",
                        world, error[1], error[2], s->n_experts - 1);
    case XP_EP_ROUTING_TOO_MANY:
        return xp_error(XP_EINVAL,
                        "routing of rank %d: %d tokens, but the group was made for 0 to %lld; "
                        "nothing was sent",
                        world, error[2], (long long)s->max_tokens);
    default:
        return xp_error(XP_EINVAL, "routing of rank %d: topk_idx is NULL; nothing was sent", world);
    }
}

xp_status xp_ep_counts_check(const xp_ep_group *group, const int32_t *rank_counts) {
    const xp_ep_shape *s = &group->shape;
    for (int r = 0; r < s->n_ranks; r++)
        XP_TRY(xp_ep_routing_explain(
            group, r, rank_counts + (int64_t)r * s->counts_ints + XP_EP_COUNTS_ERROR(s)));
    return XP_OK;
}
