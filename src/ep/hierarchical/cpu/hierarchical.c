/* hierarchical on a CPU. */
#include "ep/hierarchical/hierarchical.h"

#include "ep/backends.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/metadata.h"
#include "ep/common/cpu/plan.h"
#include "ep/common/cpu/queue.h"
#include "ep/common/defaults.h"

static xp_status copy_rows(void *stream, const xp_ep_copy_args *args) {
    xp_ep_cpu_copy_rows(stream, args);
    return XP_OK;
}

static xp_status reduce_rows(void *stream, const xp_ep_reduce_args *args) {
    xp_ep_cpu_reduce_rows(stream, args);
    return XP_OK;
}

static xp_status sum_rows(void *stream, const xp_ep_sum_args *args) {
    xp_ep_cpu_sum_rows(stream, args);
    return XP_OK;
}

static const xp_ep_row_kernels kernels = {.copy_rows = copy_rows,
                                          .reduce_rows = reduce_rows,
                                          .sum_rows = sum_rows,
                                          .weights = xp_ep_cpu_metadata_weights};

static xp_ep_assignment *target(const xp_ep_call *call, int dest) {
    return xp_ep_cpu_metadata_target(call, &xp_ep_hier_slot(call)->metadata, dest);
}

static xp_status exchange_metadata(const xp_ep_call *call, const int32_t *own_counts,
                                   const xp_ep_assignment **assignments) {
    return xp_ep_cpu_metadata_exchange(call, &xp_ep_hier_slot(call)->metadata, own_counts,
                                       assignments);
}

static xp_status run_dispatch(const xp_ep_call *call, const void *x, void *recv) {
    return xp_ep_hier_dispatch(call, &kernels, call->stream, x, recv);
}

static xp_status run_combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    return xp_ep_hier_combine(call, &kernels, call->stream, args);
}

static xp_status plan_create(xp_ep_plan *plan) {
    XP_TRY(xp_ep_plan_reserve(plan));
    return xp_ep_forwarding_create(plan);
}

static void plan_destroy(xp_ep_plan *plan) {
    xp_ep_forwarding_destroy(plan);
    xp_ep_plan_release(plan);
}

static const xp_ep_cpu_transport transport = {
    .exchange = {.target = target, .run = exchange_metadata, .complete = xp_ep_forwarding_build},
    .dispatch = run_dispatch,
    .combine = run_combine};

const xp_ep_backend xp_ep_cpu_hierarchical = {
    .name = "hierarchical/cpu",
    .cpu = &transport,
    .group_bytes = xp_ep_hier_group_bytes,
    .plan_bytes = xp_ep_hier_plan_bytes,
    .comm_bytes = xp_ep_hier_comm_bytes,
    .group_create = xp_ep_hier_state_create,
    .group_destroy = xp_ep_hier_state_destroy,
    .plan_create = plan_create,
    .plan_destroy = plan_destroy,
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
