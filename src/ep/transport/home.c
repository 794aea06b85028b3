/* What every transport does at the two ends of bringing rows home. */
#include "ep/transport/transport.h"

void xp_ep_sum_home(const xp_ep_step *step, const void *rows, const int32_t *row_assignments,
                    const xp_ep_expert_rows *near, void *out) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &group->shape;
    const int32_t *round = plan->send_round + step->round * s->n_ranks;
    bool rounds = plan->n_rounds > 1;
    group->kernels->sum_rows(step->stream,
                             &(xp_ep_sum_args){.n_tokens = plan->n_tokens,
                                               .dim = s->dim,
                                               .dtype = s->dtype,
                                               .token_first = plan->token_first,
                                               .token_row = plan->token_row,
                                               .row_base = plan->send_row_base,
                                               .fresh = rounds ? round : NULL,
                                               .seen = rounds ? round + s->n_ranks : NULL,
                                               .n_dests = s->n_ranks,
                                               .write_all = step->round == 0,
                                               .rows = rows,
                                               .row_assignments = row_assignments,
                                               .near = near,
                                               .out = out});
}

xp_ep_expert_rows xp_ep_expert_rows_for(const xp_ep_step *step, int source, const void *y) {
    const xp_ep_plan *plan = step->plan;
    return (xp_ep_expert_rows){.y = y,
                               .first = plan->recv_assignment + plan->recv_row_base[source],
                               .pos = plan->assignment_pos};
}

void xp_ep_place_weights(const xp_ep_step *step, xp_ep_span assignments, const float *values,
                         float *d_topk_weight) {
    step->group->kernels->move(
        step->stream,
        &(xp_ep_move_args){.n = assignments.n,
                           .dst = d_topk_weight,
                           .dst_index = step->plan->assignment_entry + assignments.first,
                           .src = values});
}

xp_ep_reduce_args xp_ep_partial_rows(const xp_ep_step *step, int source, const void *y, void *dst) {
    const xp_ep_shape *s = &step->group->shape;
    const xp_ep_plan *plan = step->plan;
    xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, step->round);
    return (xp_ep_reduce_args){.n_rows = rows.n,
                               .dim = s->dim,
                               .dtype = s->dtype,
                               .y = y,
                               .first = plan->recv_assignment + rows.first,
                               .pos = plan->assignment_pos,
                               .dst = dst};
}
