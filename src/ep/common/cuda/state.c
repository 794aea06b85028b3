#include "ep/common/cuda/state.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/gpu_placement.h"
#include "ep/common/plan.h"

xp_cuda_device *xp_ep_cuda_device(const xp_ep_group *group) {
    return (xp_cuda_device *)group->device;
}

/* ---- create -------------------------------------------------------------------------------- */

static void use_placement(xp_ep_group *group, const xp_rank_gpu *gpus) {
    xp_ep_cuda_state *state = group->device_state;
    const int n = group->shape.n_ranks;
    const xp_gpu_placement placement = xp_gpu_placement_of(gpus, n, group->rank);
    for (int r = 0; r < n; r++)
        state->gpus[r] = gpus[r].index;
    state->gpus_shared = group->config.shares_gpus || placement.any_shared;
    const int half = xp_ep_cuda_device(group)->n_sms / 2 / placement.n_on_mine;
    state->n_row_blocks = group->config.num_sms > 0 ? group->config.num_sms : half > 1 ? half : 1;
}

static xp_status place_ranks(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    const size_t n = (size_t)group->shape.n_ranks;
    struct cudaDeviceProp p;
    XP_TRY(xp_cuda_check(cudaGetDeviceProperties(&p, xp_ep_cuda_device(group)->index), "GPU"));
    xp_rank_gpu mine = {.on_gpu = 1, .index = xp_ep_cuda_device(group)->index};
    memcpy(mine.id, p.uuid.bytes, sizeof mine.id);
    state->gpus = calloc(n, sizeof *state->gpus);
    state->bytes = calloc(4 * n, sizeof *state->bytes);
    xp_rank_gpu *gpus = calloc(n, sizeof *gpus);
    if (state->bytes != NULL)
        state->exchange = (xp_ep_exchange){state->bytes, state->bytes + n, state->bytes + 2 * n,
                                           state->bytes + 3 * n};
    const xp_status status =
        state->gpus == NULL || state->bytes == NULL || gpus == NULL
            ? xp_error(XP_ENOMEM, "no memory for an expert parallel group")
            : xp_comm_all_gather(group->comm, &mine, gpus, sizeof mine, XP_U8, NULL);
    if (status == XP_OK)
        use_placement(group, gpus);
    free(gpus);
    return status;
}

static xp_status create_status(xp_ep_cuda_state *state) {
    XP_TRY(xp_cuda_check(cudaHostAlloc((void **)&state->status, sizeof *state->status,
                                       cudaHostAllocMapped | cudaHostAllocPortable),
                         "expert parallel group"));
    memset(state->status, 0, sizeof *state->status);
    return xp_cuda_check(cudaHostGetDevicePointer((void **)&state->device_status, state->status, 0),
                         "expert parallel group");
}

/* Fills and copies are kernels of the driver: they are loaded here, too. */
static xp_status warm_up(const xp_ep_group *group) {
    int32_t *words = group->scratch;
    cudaStream_t stream;
    XP_TRY(xp_cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                         "expert parallel group"));
    cudaError_t result = cudaMemsetAsync(words, 0, sizeof *words, stream);
    if (result == cudaSuccess)
        result = cudaMemcpyAsync(words + 1, words, sizeof *words, cudaMemcpyDeviceToDevice, stream);
    if (result == cudaSuccess)
        result = cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
    return xp_cuda_check(result, "expert parallel group");
}

static xp_status load_kernels(const xp_ep_group *group) {
    XP_TRY(xp_ep_cuda_load_plan());
    XP_TRY(xp_ep_cuda_load_weights());
    return warm_up(group);
}

xp_status xp_ep_cuda_state_create(xp_ep_group *group, size_t n_bytes) {
    xp_cuda_device *device = xp_ep_cuda_device(group);
    xp_ep_cuda_state *state = calloc(1, n_bytes);
    group->device_state = state;
    if (state == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_ep_shape_check_gpu(&group->shape));
    XP_TRY(xp_cuda_check(cudaSetDevice(device->index), device->base.name));
    XP_TRY(create_status(state));
    /* What plan kernels count down they leave at 0, and find it there. */
    XP_TRY(xp_device_clear(group->device, group->scratch,
                           xp_ep_scratch_bytes(&group->shape) * (size_t)group->shape.n_slots));
    XP_TRY(load_kernels(group));
    /* num_sms bounds what runs beside the experts of other ranks; one rank has no others. */
    state->n_row_blocks = state->n_local_blocks = device->n_sms * 8;
    if (group->shape.n_ranks == 1)
        return XP_OK;
    const xp_status status = place_ranks(group);
    if (status != XP_OK) /* the others may not have met it */
        xp_comm_abort(group->comm, xp_last_error());
    return status;
}

xp_status xp_ep_cuda_ready(xp_ep_group *group) {
    XP_TRY(xp_comm_barrier(group->comm, NULL));
    xp_ep_cuda_state_of(group)->ready = true;
    return XP_OK;
}

/* ---- destroy ------------------------------------------------------------------------------- */

xp_status xp_ep_cuda_stop(const xp_ep_group *group, xp_status status) {
    if (cudaSetDevice(xp_ep_cuda_device(group)->index) == cudaSuccess)
        cudaDeviceSynchronize();
    if (status == XP_OK)
        status = xp_comm_async_error(group->comm);
    if (status == XP_OK)
        status = xp_comm_barrier(group->comm, NULL);
    cudaGetLastError(); /* whatever went wrong is nobody's error any more */
    return status;
}

void xp_ep_cuda_state_destroy(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    if (state == NULL)
        return;
    if (state->status != NULL)
        cudaFreeHost(state->status);
    free(state->gpus);
    free(state->bytes);
    free(state);
    group->device_state = NULL;
}

/* ---- calls --------------------------------------------------------------------------------- */

xp_status xp_ep_cuda_enter(const xp_ep_call *call, cudaStream_t *stream) {
    XP_TRY(xp_cuda_enter(call->stream, stream));
    return call->group->comm != NULL ? xp_comm_async_error(call->group->comm) : XP_OK;
}

xp_ep_cuda_rows xp_ep_cuda_rows_of(const xp_ep_call *call) {
    const xp_ep_shape *s = &call->group->shape;
    const xp_ep_cuda_state *state = xp_ep_cuda_state_of(call->group);
    xp_ep_cuda_rows rows = {.dim = s->dim,
                            .row_bytes = s->row_bytes,
                            .bf16 = s->dtype == XP_BF16,
                            .round = call->round,
                            .n_blocks = state->n_row_blocks,
                            .n_local_blocks = state->n_local_blocks,
                            .n_waiting_blocks = state->n_waiting_blocks,
                            .bulk = state->bulk};
    /* Of what runs beside other work, as many blocks wait for peers as send to them. */
    const int at_most = xp_ep_cuda_device(call->group)->n_sms / 2 / s->n_slots;
    if (call->group->call_sms > 0) {
        rows.n_blocks = call->group->call_sms < at_most ? call->group->call_sms : at_most;
        if (rows.n_waiting_blocks > rows.n_blocks)
            rows.n_waiting_blocks = rows.n_blocks;
    }
    return rows;
}

xp_status xp_ep_cuda_clear_weights(const xp_ep_call *call, cudaStream_t stream,
                                   const xp_ep_combine_args *args) {
    const size_t n = (size_t)(call->plan->n_tokens * call->group->shape.top_k);
    if (args->d_topk_weight == NULL || call->round > 0 || n == 0)
        return XP_OK;
    return xp_cuda_check(cudaMemsetAsync(args->d_topk_weight, 0, n * sizeof(float), stream),
                         call->phase);
}

/* ---- reports ------------------------------------------------------------------------------- */

xp_status xp_ep_cuda_routing_error(const xp_ep_group *group) {
    const volatile int32_t *error = xp_ep_cuda_state_of(group)->status->error;
    const int32_t refused[3] = {error[0], error[2], error[3]};
    return xp_ep_routing_explain(group, error[1], refused);
}

void xp_ep_cuda_abort_flags_of(const xp_ep_group *group, const int32_t *flags[2]) {
    const xp_ep_cuda_status *status = xp_ep_cuda_state_of(group)->device_status;
    flags[0] = &status->error[0];
    flags[1] = &status->failure.kind;
}

void xp_ep_cuda_add_stats(const xp_ep_group *group, xp_ep_stats *stats) {
    const xp_ep_cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_status *now = state->status;
    const xp_ep_cuda_status *then = &state->at_reset;
    const int64_t row_bytes = (int64_t)group->shape.row_bytes;
    stats->overflow_rows += (int64_t)(now->overflow_rows - then->overflow_rows);
    stats->bytes_kept += (int64_t)(now->rows_kept - then->rows_kept) * row_bytes;
    stats->bytes_sent_remote += (int64_t)(now->rows_sent - then->rows_sent) * row_bytes;
    stats->wait_s += (double)(now->wait_ns - then->wait_ns) * 1e-9;
}

void xp_ep_cuda_reset_stats(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_status *now = state->status;
    state->at_reset.overflow_rows = now->overflow_rows;
    state->at_reset.rows_kept = now->rows_kept;
    state->at_reset.rows_sent = now->rows_sent;
    state->at_reset.wait_ns = now->wait_ns;
}
