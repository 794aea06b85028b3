/* One rank on a GPU: nothing is exchanged. */
#include "ep/local/local.h"

#include "ep/common/cuda/plan.h"
#include "ep/common/defaults.h"
#include "ep/cuda/backends.h"
#include "ep/local/cuda/kernels.h"

static xp_status group_create(xp_ep_group *group) {
    XP_TRY(xp_ep_cuda_state_create(group, sizeof(xp_ep_cuda_state)));
    XP_TRY(xp_ep_cuda_load_local_rows());
    return xp_ep_local_state_create(group);
}

static void group_destroy(xp_ep_group *group) {
    xp_ep_local_state_destroy(group);
    xp_ep_cuda_state_destroy(group);
}

static xp_status plan_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    cudaStream_t stream;
    xp_ep_cuda_plan v = xp_ep_cuda_plan_start(call, routing);
    if (v.bad_kind != XP_EP_ROUTING_OK)
        return xp_ep_cuda_plan_finish(call, &v);
    v.assignments_out = xp_ep_local_assignments(call);
    v.assignments_in[0] = v.assignments_out;
    v.own_counts = call->plan->rank_counts; /* its counts are all there are */
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    XP_TRY(xp_ep_cuda_count_plan(stream, &v));
    XP_TRY(xp_ep_cuda_list_plan(stream, &v));
    XP_TRY(xp_ep_cuda_place_plan(stream, &v));
    return xp_ep_cuda_plan_finish(call, &v);
}

static xp_status dispatch(const xp_ep_call *call, const void *x, void *recv) {
    cudaStream_t stream;
    XP_TRY(xp_ep_call_check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    xp_ep_add(&call->group->totals.n_dispatches, 1);
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    /* A local group's recv rows are the token rows, and may be the same memory. If they are not, the
     * device decides: it alone knows whether the plan was refused. */
    if (call->group->shape.local && recv == x)
        return XP_OK;
    const xp_ep_cuda_plan v = xp_ep_cuda_plan_view(call);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    return xp_ep_cuda_local_dispatch(stream, &v, &rows, x, recv);
}

static xp_status combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    cudaStream_t stream;
    if (xp_ep_call_is_empty(call))
        return xp_ep_call_check_plan(call);
    XP_TRY(xp_ep_call_check_order(call));
    XP_TRY(xp_ep_call_check_plan(call));
    xp_ep_add(&call->group->totals.n_combines, 1);
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    const xp_ep_cuda_plan v = xp_ep_cuda_plan_view(call);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    const xp_ep_cuda_local_sums sums = {.y = args->y,
                                        .d_weight = args->d_weight,
                                        .out = args->out,
                                        .d_topk_weight = args->d_topk_weight};
    const bool has_weights = args->d_topk_weight != NULL && args->d_weight != NULL;
    const bool at_once = has_weights && v.max_rounds == 1;
    if (!at_once)
        XP_TRY(xp_ep_cuda_clear_weights(call, stream, args));
    XP_TRY(xp_ep_cuda_local_combine(stream, &v, &rows, &sums));
    if (!has_weights || at_once)
        return XP_OK;
    return xp_ep_cuda_local_weights(stream, &v, call->round, args->d_weight, args->d_topk_weight);
}

const xp_ep_backend xp_ep_cuda_local = {
    .name = "local/cuda",
    .group_bytes = xp_ep_local_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_no_comm_bytes,
    .group_create = group_create,
    .group_destroy = group_destroy,
    .plan_create = xp_ep_cuda_plan_create,
    .plan_destroy = xp_ep_cuda_plan_destroy,
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
