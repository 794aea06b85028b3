#include "ep/common/cpu/plan.h"

#include <string.h>
#include "device/cpu/cpu_device.h"
#include "ep/common/cpu/kernels.h"

/* This rank's counts, in the slot's scratch. */
static const int32_t *count(const xp_ep_call *call, const xp_ep_routing *routing) {
    int32_t *own_counts = xp_ep_call_own_counts(call);
    xp_ep_cpu_route(call->stream, &(xp_ep_route_args){.shape = &call->group->shape,
                                                      .topk_idx = routing->topk_idx,
                                                      .n_tokens = routing->n_tokens,
                                                      .tile_counts = xp_ep_call_tile_counts(call),
                                                      .own_counts = own_counts});
    return own_counts;
}

/* What follows from this rank's counts alone. */
static void find_send_bases(xp_ep_plan *plan, const int32_t *own_counts) {
    const xp_ep_shape *s = &plan->group->shape;
    plan->send_row_base[0] = plan->send_assignment_base[0] = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        plan->send_row_base[r + 1] =
            plan->send_row_base[r] + xp_ep_counts_rows(s, own_counts, 0, r);
        plan->send_assignment_base[r + 1] =
            plan->send_assignment_base[r] + xp_ep_counts_assignments(s, own_counts, 0, r);
    }
}

/* Prefix sums, the number of rounds, tokens of each local expert. */
static void find_offsets(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    const int32_t *c = plan->rank_counts;
    int me = plan->group->rank;
    plan->n_rounds = 1;
    plan->recv_row_base[0] = plan->recv_assignment_base[0] = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        plan->recv_row_base[r + 1] = plan->recv_row_base[r] + xp_ep_counts_rows(s, c, r, me);
        plan->recv_assignment_base[r + 1] =
            plan->recv_assignment_base[r] + xp_ep_counts_assignments(s, c, r, me);
        int64_t assignments = 0;
        plan->dest_row_base[r] = plan->dest_assignment_base[r] = 0;
        plan->source_row_base[r] = plan->source_assignment_base[r] = 0;
        for (int dest = 0; dest < me; dest++) {
            plan->source_row_base[r] += xp_ep_counts_rows(s, c, r, dest);
            plan->source_assignment_base[r] += xp_ep_counts_assignments(s, c, r, dest);
        }
        for (int source = 0; source < s->n_ranks; source++) {
            if (source < me) {
                plan->dest_row_base[r] += xp_ep_counts_rows(s, c, source, r);
                plan->dest_assignment_base[r] += xp_ep_counts_assignments(s, c, source, r);
            }
            assignments += xp_ep_counts_assignments(s, c, source, r);
        }
        int64_t rounds = xp_ep_shape_rounds(s, assignments);
        plan->n_rounds = rounds > plan->n_rounds ? rounds : plan->n_rounds;
    }
    plan->n_recv_rows = plan->recv_row_base[s->n_ranks];
    plan->n_recv_assignments = plan->recv_assignment_base[s->n_ranks];
    for (int e = 0; e < s->n_local; e++) {
        plan->expert_tokens[e] = 0;
        for (int r = 0; r < s->n_ranks; r++)
            plan->expert_tokens[e] += c[(int64_t)r * s->counts_ints + (int64_t)me * s->n_local + e];
    }
}

/* Where the rows of each round to each destination start: the first row whose first assignment, in
 * the destination's numbering, is not below the round's first assignment. */
static void find_send_rounds(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    for (int d = 0; d < s->n_ranks; d++) {
        int64_t total = 0;
        for (int source = 0; source < s->n_ranks; source++)
            total += xp_ep_counts_assignments(s, plan->rank_counts, source, d);
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

/* Lists of rows and assignments; assignments go to where the exchange takes them from. */
static void build_send(const xp_ep_call *call, const xp_ep_routing *routing,
                       const xp_ep_cpu_plan_exchange *exchange) {
    xp_ep_plan *plan = call->plan;
    const int n_ranks = call->group->shape.n_ranks;
    xp_ep_assignment **targets = call->group->targets + (ptrdiff_t)plan->slot * n_ranks;
    for (int d = 0; d < n_ranks; d++)
        targets[d] = exchange->target(call, d);
    xp_ep_cpu_build_send(call->stream,
                         &(xp_ep_send_args){.shape = &call->group->shape,
                                            .topk_idx = routing->topk_idx,
                                            .topk_weight = routing->topk_weight,
                                            .n_tokens = routing->n_tokens,
                                            .tile_counts = xp_ep_call_tile_counts(call),
                                            .row_base = plan->send_row_base,
                                            .assignment_base = plan->send_assignment_base,
                                            .assignments = targets,
                                            .send_token = plan->send_token,
                                            .send_assignment = plan->send_assignment,
                                            .assignment_entry = plan->assignment_entry,
                                            .token_first = plan->token_first,
                                            .token_row = plan->token_row});
}

/* Rounds that this routing does not need read as empty. */
static void clear_empty_rounds(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    int64_t first = plan->n_rounds, n = s->max_rounds - first;
    memset(plan->offsets + first * (s->n_local + 1), 0,
           (size_t)(n * (s->n_local + 1)) * sizeof *plan->offsets);
    memset(plan->n_recv + first, 0, (size_t)n * sizeof *plan->n_recv);
}

/* Within an expert rows are ordered by source. In more than one round all rows count as remote. */
static void find_own_rows(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    const int me = plan->group->rank;
    for (int64_t i = 0; i < s->max_rounds * s->n_local; i++) {
        const int32_t first = plan->offsets[i / s->n_local * (s->n_local + 1) + i % s->n_local];
        plan->own_rows[2 * i] = plan->own_rows[2 * i + 1] = first;
    }
    for (int e = 0; plan->n_rounds == 1 && e < s->n_local; e++) {
        const int32_t *counts = plan->rank_counts + (int64_t)me * s->n_local + e;
        for (int source = 0; source < me; source++)
            plan->own_rows[2 * e] += counts[(int64_t)source * s->counts_ints];
        plan->own_rows[2 * e + 1] = plan->own_rows[2 * e] + counts[(int64_t)me * s->counts_ints];
    }
}

static void build_recv(const xp_ep_call *call, const xp_ep_assignment *assignments) {
    xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    const int me = call->group->rank;
    const int32_t first_own = plan->recv_row_base[me];
    const int64_t n_own = plan->n_rounds == 1 ? plan->recv_row_base[me + 1] - first_own : 0;
    /* One rank: its recv rows are its send rows. Those without assignments could not be found by
     * their first assignment. */
    if (s->n_ranks == 1)
        memcpy(plan->recv_assignment, plan->send_assignment,
               (size_t)(plan->n_recv_rows + 1) * sizeof *plan->recv_assignment);
    xp_ep_cpu_build_recv(call->stream,
                         &(xp_ep_recv_args){.shape = s,
                                            .assignments = assignments,
                                            .n_rows = plan->n_recv_rows,
                                            .n_assignments = plan->n_recv_assignments,
                                            .n_rounds = plan->n_rounds,
                                            .tile_counts = xp_ep_call_tile_counts(call),
                                            .recv_assignment = plan->recv_assignment,
                                            .rows_known = s->n_ranks == 1,
                                            .round_row = plan->round_row,
                                            .assignment_pos = plan->assignment_pos,
                                            .offsets = plan->offsets,
                                            .gather = plan->gather,
                                            .weight = plan->weight,
                                            .n_recv = plan->n_recv,
                                            .first_own = first_own,
                                            .n_own = n_own,
                                            .token = plan->send_token + plan->send_row_base[me],
                                            .own_token = plan->own_token});
    clear_empty_rounds(plan);
    find_own_rows(plan);
}

xp_status xp_ep_cpu_plan_build(const xp_ep_call *call, const xp_ep_routing *routing,
                               const xp_ep_cpu_plan_exchange *exchange) {
    xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    const xp_ep_assignment *assignments = NULL;
    if (exchange->begin)
        XP_TRY(exchange->begin(call));
    const int32_t *own_counts = count(call, routing);
    /* A routing that is wrong sends its error only. */
    if (own_counts[XP_EP_COUNTS_ERROR(s)] == XP_EP_ROUTING_OK) {
        find_send_bases(plan, own_counts);
        build_send(call, routing, exchange);
    }
    XP_TRY(exchange->run(call, own_counts, &assignments));
    XP_TRY(xp_ep_counts_check(call->group, plan->rank_counts));
    find_offsets(plan);
    find_send_rounds(plan);
    build_recv(call, assignments);
    if (exchange->complete)
        XP_TRY(exchange->complete(call));
    plan->valid = true;
    xp_ep_add(&call->group->totals.overflow_rows,
              plan->n_recv_assignments - plan->offsets[s->n_local]);
    return XP_OK;
}

xp_status xp_ep_cpu_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
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
