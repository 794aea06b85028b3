/* One rank on a CPU: rows stay where they are, and the two levels of the sum are one. */
#include "ep/local/local.h"

#include <string.h>
#include "ep/backends.h"
#include "ep/common/cpu/combine.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/plan.h"
#include "ep/common/cpu/queue.h"
#include "ep/common/defaults.h"

static xp_ep_assignment *target(const xp_ep_call *call, int dest) {
    (void)dest; /* this rank */
    return xp_ep_local_assignments(call);
}

static xp_status keep(const xp_ep_call *call, const int32_t *own_counts,
                      const xp_ep_assignment **assignments) {
    memcpy(call->plan->rank_counts, own_counts,
           (size_t)call->group->shape.counts_ints * sizeof *own_counts);
    *assignments = xp_ep_local_assignments(call);
    return XP_OK;
}

static xp_status run_dispatch(const xp_ep_call *call, const void *x, void *recv) {
    xp_ep_group *group = call->group;
    const xp_ep_plan *plan = call->plan;
    const xp_ep_span rows = xp_ep_plan_send_rows(plan, 0, call->round);
    /* A local group's recv rows are the token rows, and the caller may pass the same memory. */
    if (recv == x && group->shape.local)
        return XP_OK;
    const int32_t *token = group->shape.local ? NULL : plan->send_token + rows.first;
    xp_ep_cpu_copy_rows(call->stream, &(xp_ep_copy_args){.n_rows = rows.n,
                                                         .row_bytes = group->shape.row_bytes,
                                                         .dst = recv,
                                                         .src = x,
                                                         .src_index = token});
    xp_ep_count_bytes(group, group->rank, rows.n * (int64_t)group->shape.row_bytes);
    return XP_OK;
}

static xp_status run_combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_ep_group *group = call->group;
    const xp_ep_plan *plan = call->plan;
    const xp_ep_reduce_args own = xp_ep_cpu_reduce_for(call, 0, args->y, args->out);
    const xp_ep_expert_rows rows = xp_ep_cpu_expert_rows_for(call, 0, args->y);
    if (group->shape.local)
        xp_ep_cpu_reduce_rows(call->stream, &own);
    else
        xp_ep_cpu_sum_tokens(call, NULL, NULL, &rows, args->out);
    xp_ep_count_bytes(group, group->rank, own.n_rows * (int64_t)group->shape.row_bytes);
    if (!args->d_topk_weight || !args->d_weight)
        return XP_OK;
    const xp_ep_span span = xp_ep_plan_recv_assignments(plan, 0, call->round);
    xp_ep_cpu_copy_floats(
        call->stream, &(xp_ep_copy_floats_args){.n = span.n,
                                                .dst = args->d_topk_weight,
                                                .dst_index = plan->assignment_entry + span.first,
                                                .src = args->d_weight,
                                                .src_index = plan->assignment_pos + span.first});
    return XP_OK;
}

static const xp_ep_cpu_transport transport = {
    .exchange = {.target = target, .run = keep}, .dispatch = run_dispatch, .combine = run_combine};

const xp_ep_backend xp_ep_cpu_local = {
    .name = "local/cpu",
    .cpu = &transport,
    .group_bytes = xp_ep_local_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_no_comm_bytes,
    .group_create = xp_ep_local_state_create,
    .group_destroy = xp_ep_local_state_destroy,
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
