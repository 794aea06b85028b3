#include "ep/common/cpu/combine.h"

#include "ep/common/cpu/kernels.h"

void xp_ep_cpu_sum_tokens(const xp_ep_call *call, const void *rows, const int32_t *row_assignments,
                          const xp_ep_expert_rows *expert_rows, void *out) {
    const xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    const int32_t *round = plan->send_round + call->round * s->n_ranks;
    const bool rounds = plan->n_rounds > 1;
    xp_ep_cpu_sum_rows(call->stream, &(xp_ep_sum_args){.n_tokens = plan->n_tokens,
                                                       .dim = s->dim,
                                                       .dtype = s->dtype,
                                                       .token_first = plan->token_first,
                                                       .token_row = plan->token_row,
                                                       .row_base = plan->send_row_base,
                                                       .fresh = rounds ? round : NULL,
                                                       .seen = rounds ? round + s->n_ranks : NULL,
                                                       .n_dests = s->n_ranks,
                                                       .write_all = call->round == 0,
                                                       .rows = rows,
                                                       .row_assignments = row_assignments,
                                                       .expert_rows = expert_rows,
                                                       .out = out});
}

xp_ep_expert_rows xp_ep_cpu_expert_rows_for(const xp_ep_call *call, int source, const void *y) {
    const xp_ep_plan *plan = call->plan;
    return (xp_ep_expert_rows){.y = y,
                               .first = plan->recv_assignment + plan->recv_row_base[source],
                               .pos = plan->assignment_pos};
}

xp_ep_reduce_args xp_ep_cpu_reduce_for(const xp_ep_call *call, int source, const void *y,
                                       void *dst) {
    const xp_ep_shape *s = &call->group->shape;
    const xp_ep_plan *plan = call->plan;
    xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, call->round);
    return (xp_ep_reduce_args){.n_rows = rows.n,
                               .dim = s->dim,
                               .dtype = s->dtype,
                               .y = y,
                               .first = plan->recv_assignment + rows.first,
                               .pos = plan->assignment_pos,
                               .dst = dst};
}

void xp_ep_cpu_scatter_weights(const xp_ep_call *call, const float *values, float *d_topk_weight) {
    const xp_ep_plan *plan = call->plan;
    for (int d = 0; d < call->group->shape.n_ranks && d_topk_weight; d++) {
        const xp_ep_span span = xp_ep_plan_send_assignments(plan, d, call->round);
        xp_ep_cpu_copy_floats(call->stream, &(xp_ep_copy_floats_args){
                                                .n = span.n,
                                                .dst = d_topk_weight,
                                                .dst_index = plan->assignment_entry + span.first,
                                                .src = values + span.first});
    }
}
