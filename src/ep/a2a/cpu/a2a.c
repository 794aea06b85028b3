/*
 * a2a on a CPU: one row an assignment, packed, exchanged by an all-to-all, unpacked. It works over
 * every communicator and is the baseline. What arrives and how it is added up is the same as over
 * p2p, bit for bit.
 */
#include "ep/a2a/a2a.h"

#include "ep/backends.h"
#include "ep/common/cpu/combine.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/metadata.h"
#include "ep/common/cpu/plan.h"
#include "ep/common/cpu/queue.h"
#include "ep/common/defaults.h"

static xp_ep_assignment *target(const xp_ep_call *call, int dest) {
    return xp_ep_cpu_metadata_target(call, &xp_ep_a2a_slot(call)->metadata, dest);
}

static xp_status exchange_metadata(const xp_ep_call *call, const int32_t *own_counts,
                                   const xp_ep_assignment **assignments) {
    return xp_ep_cpu_metadata_exchange(call, &xp_ep_a2a_slot(call)->metadata, own_counts,
                                       assignments);
}

/* Bytes of the assignment rows to and from each rank in this round: send rows lie at their indices
 * among all send assignments, recv rows lie packed. Own rows are packed where they would arrive. */
static void set_exchange(const xp_ep_call *call, bool combine, int32_t first_recv) {
    const xp_ep_exchange *exchange = &xp_ep_a2a_slot(call)->metadata.exchange;
    const int64_t size = (int64_t)call->group->shape.row_bytes;
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_plan_send_assignments(call->plan, r, call->round),
                         in = xp_ep_plan_recv_assignments(call->plan, r, call->round);
        const int64_t out_at = out.first * size, in_at = (in.first - first_recv) * size;
        if (r == call->group->rank)
            xp_ep_exchange_set(exchange, r, 0, 0, 0, 0);
        else if (combine)
            xp_ep_exchange_set(exchange, r, in.n * size, in_at, out.n * size, out_at);
        else
            xp_ep_exchange_set(exchange, r, out.n * size, out_at, in.n * size, in_at);
        xp_ep_count_bytes(call->group, r, (combine ? in.n : out.n) * size);
    }
}

static void pack_rows(const xp_ep_call *call, int32_t first_recv, const void *x) {
    const xp_ep_shape *s = &call->group->shape;
    const xp_ep_plan *plan = call->plan;
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    for (int d = 0; d < s->n_ranks; d++) {
        const xp_ep_span span = xp_ep_plan_send_assignments(plan, d, call->round);
        const xp_ep_span in = xp_ep_plan_recv_assignments(plan, d, call->round);
        char *to = d == call->group->rank
                       ? slot->recv_rows + (size_t)(in.first - first_recv) * s->row_bytes
                       : slot->send_rows + (size_t)span.first * s->row_bytes;
        for (int32_t i = span.first; i < span.first + span.n; i++)
            slot->assignment_token[i] = plan->assignment_entry[i] / s->top_k;
        xp_ep_cpu_copy_rows(call->stream,
                            &(xp_ep_copy_args){.n_rows = span.n,
                                               .row_bytes = s->row_bytes,
                                               .dst = to,
                                               .src = x,
                                               .src_index = slot->assignment_token + span.first});
    }
}

static xp_status run_dispatch(const xp_ep_call *call, const void *x, void *recv) {
    const xp_ep_plan *plan = call->plan;
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const int32_t first_row = plan->round_row[call->round];
    const int32_t first = plan->recv_assignment[first_row];
    pack_rows(call, first, x);
    set_exchange(call, false, first);
    XP_TRY(xp_ep_exchange_run(call, &slot->metadata.exchange, slot->metadata.comm, slot->send_rows,
                              slot->recv_rows, NULL));
    XP_TRY(xp_ep_a2a_copies(call, &slot->metadata.exchange, slot->send_rows, NULL));
    xp_ep_cpu_copy_rows(call->stream,
                        &(xp_ep_copy_args){.n_rows = plan->n_recv[call->round],
                                           .row_bytes = call->group->shape.row_bytes,
                                           .dst = recv,
                                           .src = slot->recv_rows,
                                           .src_index = plan->recv_assignment + first_row,
                                           .src_first = first});
    return XP_OK;
}

/* Expert rows in the order of their assignments, for each source. */
static void pack_assignments(const xp_ep_call *call, int32_t first_recv, const void *y) {
    const xp_ep_plan *plan = call->plan;
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const size_t row_bytes = call->group->shape.row_bytes;
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const xp_ep_span in = xp_ep_plan_recv_assignments(plan, r, call->round),
                         out = xp_ep_plan_send_assignments(plan, r, call->round);
        char *to = r == call->group->rank
                       ? slot->send_rows + (size_t)out.first * row_bytes
                       : slot->recv_rows + (size_t)(in.first - first_recv) * row_bytes;
        xp_ep_cpu_copy_rows(call->stream,
                            &(xp_ep_copy_args){.n_rows = in.n,
                                               .dst = to,
                                               .src = y,
                                               .row_bytes = row_bytes,
                                               .src_index = plan->assignment_pos + in.first});
    }
}

static xp_status run_combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    const xp_ep_plan *plan = call->plan;
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const int32_t first = plan->recv_assignment[plan->round_row[call->round]];
    pack_assignments(call, first, args->y);
    set_exchange(call, true, first);
    /* Rows of earlier rounds lie elsewhere in send_rows and are still there for the sum. */
    XP_TRY(xp_ep_exchange_run(call, &slot->metadata.exchange, slot->metadata.comm, slot->recv_rows,
                              slot->send_rows, NULL));
    XP_TRY(xp_ep_a2a_copies(call, &slot->metadata.exchange, slot->recv_rows, NULL));
    xp_ep_cpu_sum_tokens(call, slot->send_rows, plan->send_assignment, NULL, args->out);
    return xp_ep_cpu_metadata_weights(call, &slot->metadata, args);
}

static const xp_ep_cpu_transport transport = {
    .exchange = {.target = target, .run = exchange_metadata},
    .dispatch = run_dispatch,
    .combine = run_combine};

const xp_ep_backend xp_ep_cpu_a2a = {
    .name = "a2a/cpu",
    .cpu = &transport,
    .group_bytes = xp_ep_a2a_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_a2a_comm_bytes,
    .group_create = xp_ep_a2a_state_create,
    .group_destroy = xp_ep_a2a_state_destroy,
    .plan_create = xp_ep_plan_reserve,
    .plan_destroy = xp_ep_plan_release,
    .plan_build = xp_ep_cpu_queue_build,
    .plan_wait = xp_ep_cpu_plan_wait,
    .dispatch = xp_ep_cpu_queue_dispatch,
    .combine = xp_ep_cpu_queue_combine,
    .combine_send = xp_ep_no_combine_send,
    .combine_recv = xp_ep_cpu_queue_combine,
    .async_error = xp_ep_no_device_error,
    .abort_flags = xp_ep_no_abort_flags,
    .add_stats = xp_ep_no_device_stats,
    .reset_stats = xp_ep_no_device_stats_reset,
};
