/* Plans: memory, building from routing, and what callers read. */
#include "ep/plan.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"
#include "ep/device_ops.h"
#include "ep/transport/hierarchical.h"
#include "ep/transport/transport.h"

static int32_t *carve_ints(xp_ep_carver *carver, int64_t n) {
    return xp_ep_carve(carver, (size_t)n * sizeof(int32_t));
}

/* Lay the plan's arrays out from carver->base on; with a NULL base only carver->used means
 * something. */
static void carve_plan(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_plan *p) {
    int64_t n_ranks = s->n_ranks, rounds = s->max_rounds;
    p->blocks = carve_ints(c, n_ranks * s->block_ints);
    p->send_row_base = carve_ints(c, n_ranks + 1);
    p->send_assignment_base = carve_ints(c, n_ranks + 1);
    p->recv_row_base = carve_ints(c, n_ranks + 1);
    p->recv_assignment_base = carve_ints(c, n_ranks + 1);
    p->dest_row_base = carve_ints(c, n_ranks);
    p->dest_assignment_base = carve_ints(c, n_ranks);
    p->source_row_base = carve_ints(c, n_ranks);
    p->source_assignment_base = carve_ints(c, n_ranks);
    p->send_token = carve_ints(c, s->max_send_rows);
    p->send_assignment = carve_ints(c, s->max_send_rows + 1);
    p->assignment_entry = carve_ints(c, s->max_send_assignments);
    p->token_first = carve_ints(c, s->max_tokens + 1);
    p->token_row = carve_ints(c, s->max_send_rows);
    p->send_round = carve_ints(c, (rounds + 1) * n_ranks);
    p->dest_slot = carve_ints(c, rounds * n_ranks);
    p->recv_assignment = carve_ints(c, s->max_recv_rows + 1);
    p->round_row = carve_ints(c, rounds + 1);
    p->assignment_pos = carve_ints(c, s->max_recv_assignments);
    p->offsets = carve_ints(c, rounds * (s->n_local + 1));
    p->gather = carve_ints(c, rounds * s->assignment_capacity);
    p->n_recv = carve_ints(c, rounds);
    p->weight = xp_ep_carve(c, (size_t)(rounds * s->assignment_capacity) * sizeof(float));
    p->expert_tokens = xp_ep_carve(c, (size_t)s->n_local * sizeof(int64_t));
    p->totals = carve_ints(c, 4 + n_ranks);
    p->round_assignments = carve_ints(c, (rounds + 1) * 2 * n_ranks);
}

/* What the host fetches comes into page-locked memory: a copy into other memory may wait while
 * another rank's kernels wait for this one. */
static xp_status create_host(xp_ep_group *group, xp_ep_host_plan **host) {
    const xp_ep_shape *s = &group->shape;
    const size_t each = sizeof(int32_t), n_ranks = (size_t)s->n_ranks;
    xp_ep_carver c = {0};
    xp_ep_host_plan h;
    void *memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        c.used = 0;
        xp_ep_carve(&c, sizeof h);
        h.expert_tokens = xp_ep_carve(&c, (size_t)s->n_local * sizeof *h.expert_tokens);
        h.blocks = xp_ep_carve(&c, n_ranks * (size_t)s->block_ints * each);
        h.totals = xp_ep_carve(&c, (4 + n_ranks) * each);
        h.round_assignments = xp_ep_carve(&c, (size_t)(s->max_rounds + 1) * 2 * n_ranks * each);
        if (pass == 0)
            XP_TRY(xp_host_alloc(group->device, c.used, "ep", &memory));
        c.base = memory;
    }
    *host = memory;
    **host = h;
    return XP_OK;
}

size_t xp_ep_plan_measure(const xp_ep_shape *shape) {
    xp_ep_plan plan;
    xp_ep_carver carver = {0};
    carve_plan(shape, &carver, &plan);
    return carver.used;
}

xp_status xp_ep_plan_create(xp_ep_group *group, xp_ep_plan **plan) {
    if (!group || !plan)
        return xp_error(XP_EINVAL, "xp_ep_plan_create: group and plan must not be NULL");
    xp_ep_plan *p = calloc(1, sizeof *p);
    if (!p)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel plan");
    xp_status status = XP_OK;
    size_t n_bytes = xp_ep_plan_measure(&group->shape);
    XP_TRY_GOTO(status, xp_device_alloc(group->device, n_bytes, "ep", &p->memory), fail_plan);
    p->group = group;
    if (xp_device_get_kind(group->device) != XP_DEVICE_NULL) {
        XP_TRY_GOTO(status, xp_device_clear(group->device, p->memory, n_bytes), fail_memory);
        xp_ep_carver carver = {.base = p->memory};
        carve_plan(&group->shape, &carver, p);
    }
    if (group->device_ops)
        XP_TRY_GOTO(status, create_host(group, &p->host), fail_memory);
    if (group->transport == XP_EP_HIERARCHICAL && group->shape.n_ranks > 1)
        XP_TRY_GOTO(status, xp_ep_relay_create(group, &p->relay), fail_memory);
    atomic_fetch_add(&group->n_plans, 1);
    *plan = p;
    return XP_OK;
fail_memory:
    xp_host_free(group->device, p->host);
    xp_device_free(group->device, p->memory);
fail_plan:
    free(p);
    return status;
}

void xp_ep_plan_destroy(xp_ep_plan *plan) {
    if (!plan)
        return;
    xp_ep_relay_destroy(plan->group, plan->relay);
    xp_device_free(plan->group->device, plan->memory);
    xp_host_free(plan->group->device, plan->host);
    atomic_fetch_sub(&plan->group->n_plans, 1);
    free(plan);
}

xp_status xp_ep_plan_set_slot(xp_ep_plan *plan, int slot) {
    if (!plan || slot < 0 || slot >= plan->group->shape.n_slots)
        return xp_error(
            XP_EINVAL,
            "xp_ep_plan_set_slot: no slot %d; xp_ep_config.n_slots says how many there are", slot);
    plan->slot = slot;
    return XP_OK;
}

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

xp_ep_span xp_ep_plan_send_rows(const xp_ep_plan *plan, int dest, int64_t round) {
    const int32_t *at = plan->send_round + round * plan->group->shape.n_ranks + dest;
    return (xp_ep_span){.first = at[0], .n = at[plan->group->shape.n_ranks] - at[0]};
}

xp_ep_span xp_ep_plan_send_assignments(const xp_ep_plan *plan, int dest, int64_t round) {
    xp_ep_span rows = xp_ep_plan_send_rows(plan, dest, round);
    /* The row after the last one may be another destination's: its first assignment still ends this
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

static bool has_error(const xp_ep_shape *s, const int32_t *blocks) {
    for (int r = 0; r < s->n_ranks; r++) {
        if (blocks[(int64_t)r * s->block_ints + XP_EP_BLOCK_ERROR(s)] != XP_EP_ROUTING_OK)
            return true;
    }
    return false;
}

xp_status xp_ep_plan_explain_rank(const xp_ep_group *group, int rank, const int32_t error[3]) {
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

/* The first rank with bad routing decides the error of all. */
xp_status xp_ep_plan_explain(const xp_ep_group *group, const int32_t *blocks) {
    const xp_ep_shape *s = &group->shape;
    for (int r = 0; r < s->n_ranks; r++)
        XP_TRY(xp_ep_plan_explain_rank(group, r,
                                       blocks + (int64_t)r * s->block_ints + XP_EP_BLOCK_ERROR(s)));
    return XP_OK;
}

static int32_t assignments_between(const xp_ep_shape *s, const int32_t *blocks, int source,
                                   int dest) {
    const int32_t *counts = blocks + (int64_t)source * s->block_ints + (int64_t)dest * s->n_local;
    int32_t n = 0;
    for (int e = 0; e < s->n_local; e++)
        n += counts[e];
    return n;
}

static int32_t rows_between(const xp_ep_shape *s, const int32_t *blocks, int source, int dest) {
    return blocks[(int64_t)source * s->block_ints + XP_EP_BLOCK_ROWS(s) + dest];
}

/* Everything that follows from the counts alone, the number of rounds among it. */
static void derive_bases(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    const int32_t *b = plan->blocks;
    int me = plan->group->rank;
    plan->n_rounds = 1;
    plan->send_row_base[0] = plan->send_assignment_base[0] = plan->recv_row_base[0] =
        plan->recv_assignment_base[0] = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        plan->send_row_base[r + 1] = plan->send_row_base[r] + rows_between(s, b, me, r);
        plan->send_assignment_base[r + 1] =
            plan->send_assignment_base[r] + assignments_between(s, b, me, r);
        plan->recv_row_base[r + 1] = plan->recv_row_base[r] + rows_between(s, b, r, me);
        plan->recv_assignment_base[r + 1] =
            plan->recv_assignment_base[r] + assignments_between(s, b, r, me);
        int64_t assignments = 0;
        plan->dest_row_base[r] = plan->dest_assignment_base[r] = 0;
        plan->source_row_base[r] = plan->source_assignment_base[r] = 0;
        for (int dest = 0; dest < me; dest++) {
            plan->source_row_base[r] += rows_between(s, b, r, dest);
            plan->source_assignment_base[r] += assignments_between(s, b, r, dest);
        }
        for (int source = 0; source < s->n_ranks; source++) {
            if (source < me) {
                plan->dest_row_base[r] += rows_between(s, b, source, r);
                plan->dest_assignment_base[r] += assignments_between(s, b, source, r);
            }
            assignments += assignments_between(s, b, source, r);
        }
        int64_t rounds = xp_ep_shape_rounds(s, assignments);
        plan->n_rounds = rounds > plan->n_rounds ? rounds : plan->n_rounds;
    }
    plan->n_recv_rows = plan->recv_row_base[s->n_ranks];
    plan->n_recv_assignments = plan->recv_assignment_base[s->n_ranks];
    for (int e = 0; e < s->n_local; e++) {
        plan->expert_tokens[e] = 0;
        for (int r = 0; r < s->n_ranks; r++)
            plan->expert_tokens[e] += b[(int64_t)r * s->block_ints + (int64_t)me * s->n_local + e];
    }
}

/* Where each round's rows to each destination start: the first row whose first assignment, in the
 * destination's numbering, is not below the round's first assignment. */
static void derive_send_rounds(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    for (int d = 0; d < s->n_ranks; d++) {
        int64_t total = 0;
        for (int source = 0; source < s->n_ranks; source++)
            total += assignments_between(s, plan->blocks, source, d);
        int32_t base = plan->send_row_base[d], end = plan->send_row_base[d + 1];
        int64_t shift = (int64_t)plan->dest_assignment_base[d] - plan->send_assignment_base[d];
        plan->send_round[d] = base;
        for (int64_t r = 1; r < plan->n_rounds; r++) {
            int64_t start = xp_ep_shape_round_start(s, total, r);
            int32_t low = plan->send_round[(r - 1) * s->n_ranks + d], high = end;
            while (low < high) {
                int32_t middle = low + (high - low) / 2;
                if (plan->send_assignment[middle] + shift < start)
                    low = middle + 1;
                else
                    high = middle;
            }
            plan->send_round[r * s->n_ranks + d] = low;
        }
        plan->send_round[plan->n_rounds * s->n_ranks + d] = end;
    }
}

/* Rounds that this routing does not need read as empty. */
static void clear_empty_rounds(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    int64_t first = plan->n_rounds, n = s->max_rounds - first;
    memset(plan->offsets + first * (s->n_local + 1), 0,
           (size_t)(n * (s->n_local + 1)) * sizeof *plan->offsets);
    memset(plan->n_recv + first, 0, (size_t)n * sizeof *plan->n_recv);
}

xp_status xp_ep_plan_run(const xp_ep_step *step, const int32_t *topk_idx, const float *topk_weight,
                         int64_t n_tokens) {
    xp_ep_group *group = step->group;
    xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &group->shape;
    int32_t *tiles = group->tile_counts[plan->slot];
    int32_t *block = tiles + s->n_tiles * (s->n_experts + s->n_ranks + 3);
    plan->valid = false;
    plan->n_tokens = n_tokens;
    group->kernels->route(step->stream, &(xp_ep_route_args){.shape = s,
                                                            .topk_idx = topk_idx,
                                                            .n_tokens = n_tokens,
                                                            .tile_counts = tiles,
                                                            .block = block});
    XP_TRY(group->ops->share_blocks(step, block));
    if (has_error(s, plan->blocks)) {
        if (group->ops->refuse)
            XP_TRY(group->ops->refuse(step));
        return xp_ep_plan_explain(group, plan->blocks);
    }
    derive_bases(plan);
    xp_ep_assignment **targets = group->targets[plan->slot];
    group->ops->aim_assignments(step, targets);
    group->kernels->build_send(step->stream,
                               &(xp_ep_send_args){.shape = s,
                                                  .topk_idx = topk_idx,
                                                  .topk_weight = topk_weight,
                                                  .n_tokens = n_tokens,
                                                  .tile_counts = tiles,
                                                  .row_base = plan->send_row_base,
                                                  .assignment_base = plan->send_assignment_base,
                                                  .assignments = targets,
                                                  .send_token = plan->send_token,
                                                  .send_assignment = plan->send_assignment,
                                                  .assignment_entry = plan->assignment_entry,
                                                  .token_first = plan->token_first,
                                                  .token_row = plan->token_row});
    derive_send_rounds(plan);
    const xp_ep_assignment *assignments = NULL;
    XP_TRY(group->ops->share_assignments(step, &assignments));
    /* One rank: the rows are its own, and those without assignments could not be found by their first
     * assignment. */
    if (s->n_ranks == 1)
        memcpy(plan->recv_assignment, plan->send_assignment,
               (size_t)(plan->n_recv_rows + 1) * sizeof *plan->recv_assignment);
    group->kernels->build_recv(step->stream,
                               &(xp_ep_recv_args){.shape = s,
                                                  .assignments = assignments,
                                                  .n_rows = plan->n_recv_rows,
                                                  .n_assignments = plan->n_recv_assignments,
                                                  .n_rounds = plan->n_rounds,
                                                  .tile_counts = tiles,
                                                  .recv_assignment = plan->recv_assignment,
                                                  .rows_known = s->n_ranks == 1,
                                                  .round_row = plan->round_row,
                                                  .assignment_pos = plan->assignment_pos,
                                                  .offsets = plan->offsets,
                                                  .gather = plan->gather,
                                                  .weight = plan->weight,
                                                  .n_recv = plan->n_recv});
    clear_empty_rounds(plan);
    if (group->ops->finish_plan)
        XP_TRY(group->ops->finish_plan(step));
    plan->valid = true;
    int64_t first_round = plan->offsets[s->n_local];
    xp_ep_add(&group->totals.overflow_rows, plan->n_recv_assignments - first_round);
    return XP_OK;
}

xp_status xp_ep_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    if (!plan || !counts || !plan->stream)
        return xp_error(XP_EINVAL,
                        "xp_ep_plan_wait: no plan, no counts, or the plan was never built");
    if (xp_device_get_kind(plan->group->device) == XP_DEVICE_NULL) {
        *counts = (xp_ep_counts){.n_rounds = 1};
        return XP_OK;
    }
    if (plan->group->device_ops)
        return plan->group->device_ops->wait(plan, counts);
    if (!xp_cpu_stream_is_inline(plan->stream)) {
        xp_ep_add(&plan->group->totals.n_host_waits, 1);
        XP_TRY(xp_stream_sync(plan->stream));
    }
    if (!plan->valid)
        return xp_error(XP_EINVAL, "xp_ep_plan_wait: the last build of this plan failed");
    *counts = (xp_ep_counts){.n_rounds = plan->n_rounds,
                             .expert_tokens = plan->expert_tokens,
                             .n_recv = plan->n_recv_rows,
                             .n_assignments = plan->n_recv_assignments};
    return XP_OK;
}

xp_status xp_ep_plan_view(const xp_ep_plan *plan, int64_t round, xp_ep_view *view) {
    if (!plan || !view || round < 0 || round >= plan->group->shape.max_rounds)
        return xp_error(XP_EINVAL, "xp_ep_plan_view: no round %lld; the group has at most %lld",
                        (long long)round, plan ? (long long)plan->group->shape.max_rounds : 0LL);
    const xp_ep_shape *s = &plan->group->shape;
    *view = (xp_ep_view){0};
    if (xp_device_get_kind(plan->group->device) == XP_DEVICE_NULL)
        return XP_OK;
    view->offsets = plan->offsets + round * (s->n_local + 1);
    view->gather = plan->gather + round * s->assignment_capacity;
    view->weight = plan->weight + round * s->assignment_capacity;
    view->n_recv = plan->n_recv + round;
    return XP_OK;
}
