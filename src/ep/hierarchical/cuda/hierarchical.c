/*
 * hierarchical on GPUs: the sequence of hierarchical.c with kernels that copy and add rows and
 * exchanges of device memory. The host reads the plan's rows and makes the forwarding lists, as on a
 * CPU; what kernels read of them is copied to the device once a plan.
 */
#include "ep/hierarchical/hierarchical.h"

#include "ep/common/cuda/metadata.h"
#include "ep/common/defaults.h"
#include "ep/cuda/backends.h"
#include "ep/hierarchical/cuda/kernels.h"

static const xp_ep_row_kernels kernels = {.copy_rows = xp_ep_cuda_copy_rows,
                                          .reduce_rows = xp_ep_cuda_reduce_rows,
                                          .sum_rows = xp_ep_cuda_sum_rows,
                                          .weights = xp_ep_cuda_metadata_weights,
                                          .on_stream = true};

/* ---- life ---------------------------------------------------------------------------------- */

static xp_status group_create(xp_ep_group *group) {
    XP_TRY(xp_ep_cuda_state_create(group, sizeof(xp_ep_cuda_state)));
    /* The communicators inside the group see only some of the ranks that share a GPU. */
    if (xp_ep_cuda_state_of(group)->gpus_shared)
        xp_device_set_gpu_shared(group->device, true);
    XP_TRY(xp_ep_cuda_load_hierarchical_rows());
    XP_TRY(xp_ep_hier_state_create(group));
    return xp_ep_cuda_ready(group);
}

static void group_destroy(xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    if (state != NULL && state->ready)
        (void)xp_ep_cuda_stop(group, XP_OK);
    xp_ep_hier_state_destroy(group);
    xp_ep_cuda_state_destroy(group);
}

static xp_status plan_create(xp_ep_plan *plan) {
    XP_TRY(xp_ep_cuda_plan_create(plan));
    return xp_ep_forwarding_create(plan);
}

static void plan_destroy(xp_ep_plan *plan) {
    xp_ep_forwarding_destroy(plan);
    xp_ep_cuda_plan_destroy(plan);
}

/* ---- calls --------------------------------------------------------------------------------- */

static xp_ep_cuda_fetch ints(int32_t *to, const int32_t *from, int64_t n) {
    return (xp_ep_cuda_fetch){to, from, (size_t)n * sizeof(int32_t)};
}

static xp_status plan_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    const xp_ep_shape *s = &call->group->shape;
    xp_ep_plan *plan = call->plan;
    xp_ep_forwarding *forwarding = plan->forwarding;
    cudaStream_t stream;
    xp_ep_cuda_plan v = xp_ep_cuda_plan_start(call, routing);
    /* How many rows there are comes in the same wait: so all that there can be. */
    const int64_t most = plan->n_tokens * (s->top_k < s->n_ranks ? s->top_k : s->n_ranks);
    const xp_ep_cuda_fetch first[] = {ints(forwarding->send_token, plan->send_token, most)};
    const xp_ep_cuda_fetch last[] = {
        ints(forwarding->send_round, plan->send_round, (s->max_rounds + 1) * s->n_ranks),
        ints(forwarding->round_row, plan->round_row, s->max_rounds + 1)};
    const xp_ep_cuda_more more = {.first = first, .last = last, .n_first = 1, .n_last = 2};
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    XP_TRY(xp_ep_cuda_metadata_build(call, stream, &v, &xp_ep_hier_slot(call)->metadata, &more));
    XP_TRY(xp_ep_forwarding_build_fetched(call, plan->host->rank_counts));
    return xp_ep_cuda_plan_finish(call, &v);
}

static xp_status dispatch(const xp_ep_call *call, const void *x, void *recv) {
    xp_ep_cuda_launch launch = {.rows = xp_ep_cuda_rows_of(call)};
    XP_TRY(xp_ep_call_check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    xp_ep_add(&call->group->totals.n_dispatches, 1);
    XP_TRY(xp_ep_cuda_enter(call, &launch.stream));
    return xp_ep_hier_dispatch(call, &kernels, &launch, x, recv);
}

static xp_status combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_ep_cuda_launch launch = {.rows = xp_ep_cuda_rows_of(call)};
    if (xp_ep_call_is_empty(call))
        return xp_ep_call_check_plan(call);
    XP_TRY(xp_ep_call_check_order(call));
    XP_TRY(xp_ep_call_check_plan(call));
    xp_ep_add(&call->group->totals.n_combines, 1);
    XP_TRY(xp_ep_cuda_enter(call, &launch.stream));
    XP_TRY(xp_ep_cuda_clear_weights(call, launch.stream, args));
    return xp_ep_hier_combine(call, &kernels, &launch, args);
}

const xp_ep_backend xp_ep_cuda_hierarchical = {
    .name = "hierarchical/cuda",
    .group_bytes = xp_ep_hier_group_bytes,
    .plan_bytes = xp_ep_hier_plan_bytes,
    .comm_bytes = xp_ep_hier_comm_bytes,
    .group_create = group_create,
    .group_destroy = group_destroy,
    .plan_create = plan_create,
    .plan_destroy = plan_destroy,
    .plan_build = plan_build,
    .plan_wait = xp_ep_cuda_plan_wait,
    .dispatch = dispatch,
    .combine = combine,
    .combine_send = xp_ep_no_combine_send,
    .combine_recv = combine,
    .async_error = xp_ep_cuda_routing_error,
    .abort_flags = xp_ep_cuda_abort_flags_of,
    .add_stats = xp_ep_cuda_add_stats,
    .reset_stats = xp_ep_cuda_reset_stats,
};
