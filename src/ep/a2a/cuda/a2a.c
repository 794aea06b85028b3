/*
 * a2a on GPUs: kernels pack one row an assignment, the communicator exchanges device memory, kernels
 * unpack and add. How many bytes go where the host must know: it waits for the plan once a layer,
 * and once more when the plan has several rounds.
 */
#include "ep/a2a/a2a.h"

#include "ep/a2a/cuda/kernels.h"
#include "ep/common/cuda/metadata.h"
#include "ep/common/defaults.h"
#include "ep/cuda/backends.h"

static xp_status group_create(xp_ep_group *group) {
    XP_TRY(xp_ep_cuda_state_create(group, sizeof(xp_ep_cuda_state)));
    XP_TRY(xp_ep_cuda_load_a2a_rows());
    XP_TRY(xp_ep_a2a_state_create(group));
    return xp_ep_cuda_ready(group);
}

static void group_destroy(xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    if (state != NULL && state->ready)
        (void)xp_ep_cuda_stop(group, XP_OK);
    xp_ep_a2a_state_destroy(group);
    xp_ep_cuda_state_destroy(group);
}

static xp_status plan_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    const xp_ep_cuda_more nothing = {0};
    cudaStream_t stream;
    xp_ep_cuda_plan v = xp_ep_cuda_plan_start(call, routing);
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    XP_TRY(xp_ep_cuda_metadata_build(call, stream, &v, &xp_ep_a2a_slot(call)->metadata, &nothing));
    return xp_ep_cuda_plan_finish(call, &v);
}

static xp_status dispatch(const xp_ep_call *call, const void *x, void *recv) {
    cudaStream_t stream;
    XP_TRY(xp_ep_call_check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    xp_ep_add(&call->group->totals.n_dispatches, 1);
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    const xp_ep_cuda_plan v = xp_ep_cuda_plan_view(call);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const int64_t row_bytes = (int64_t)rows.row_bytes;
    XP_TRY(xp_ep_cuda_pack_rows(stream, &v, &rows, x, slot->send_rows));
    for (int r = 0; r < v.n_ranks; r++)
        xp_ep_count_bytes(call->group, r, xp_ep_cuda_send_assignments(call, r).n * row_bytes);
    XP_TRY(xp_ep_cuda_exchange_items(call, &slot->metadata, false, row_bytes, slot->send_rows,
                                     slot->recv_rows));
    XP_TRY(xp_ep_a2a_copies(call, &xp_ep_cuda_state_of(call->group)->exchange, slot->send_rows,
                            call->stream));
    return xp_ep_cuda_unpack_rows(stream, &v, &rows, slot->recv_rows, recv);
}

static xp_status combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    cudaStream_t stream;
    if (xp_ep_call_is_empty(call))
        return xp_ep_call_check_plan(call);
    XP_TRY(xp_ep_call_check_order(call));
    XP_TRY(xp_ep_call_check_plan(call));
    xp_ep_add(&call->group->totals.n_combines, 1);
    XP_TRY(xp_ep_cuda_enter(call, &stream));
    XP_TRY(xp_ep_cuda_clear_weights(call, stream, args));
    const xp_ep_cuda_plan v = xp_ep_cuda_plan_view(call);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    const a2a_slot *slot = xp_ep_a2a_slot(call);
    const int64_t row_bytes = (int64_t)rows.row_bytes;
    XP_TRY(xp_ep_cuda_pack_assignments(stream, &v, &rows, args->y, slot->recv_rows));
    for (int r = 0; r < v.n_ranks; r++)
        xp_ep_count_bytes(call->group, r, xp_ep_cuda_recv_assignments(call, r).n * row_bytes);
    /* Rows of earlier rounds lie elsewhere in send_rows and are still there for the sum. */
    XP_TRY(xp_ep_cuda_exchange_items(call, &slot->metadata, true, row_bytes, slot->recv_rows,
                                     slot->send_rows));
    XP_TRY(xp_ep_a2a_copies(call, &xp_ep_cuda_state_of(call->group)->exchange, slot->recv_rows,
                            call->stream));
    XP_TRY(xp_ep_cuda_combine_assignments(stream, &v, &rows, slot->send_rows, args->out));
    return xp_ep_cuda_metadata_weights(call, &slot->metadata, args);
}

const xp_ep_backend xp_ep_cuda_a2a = {
    .name = "a2a/cuda",
    .group_bytes = xp_ep_a2a_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_a2a_comm_bytes,
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
