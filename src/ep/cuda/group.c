/* Groups on GPUs: what they reserve, how they end, and what they report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/device_internal.h"
#include "device/gpu_placement.h"
#include "ep/cuda/cuda_group.h"
#include "ep/transport/p2p.h"

_Static_assert(sizeof(xp_ep_assignment) == sizeof(xp_ep_cuda_assignment),
               "the same assignment for both devices");

static const char *const phases[] = {"plan", "dispatch", "combine", "combine backward",
                                     "dispatch backward"};
#define N_PHASES ((int)(sizeof phases / sizeof phases[0]))

int xp_ep_cuda_phase(const char *phase) {
    int n = 0;
    while (n < N_PHASES - 1 && strcmp(phases[n], phase) != 0)
        n++;
    return n;
}

static xp_cuda_device *device_of(const xp_ep_group *group) {
    return (xp_cuda_device *)group->device;
}

/* ---- create ------------------------------------------------------------------------------ */

static xp_status let_address(int mine, int theirs) {
    int can = 0;
    if (mine == theirs)
        return XP_OK;
    XP_TRY(xp_cuda_check(cudaDeviceCanAccessPeer(&can, mine, theirs), "peer access"));
    if (can == 0)
        return xp_error(XP_ENOTSUP,
                        "the p2p transport needs GPUs that can address each other, and cuda:%d "
                        "cannot address cuda:%d; use transport a2a",
                        mine, theirs);
    const cudaError_t result = cudaDeviceEnablePeerAccess(theirs, 0);
    if (result == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError(); /* as good */
        return XP_OK;
    }
    return xp_cuda_check(result, "peer access");
}

/* Who can address whom, and how many share a GPU. */
static xp_status use_placement(xp_ep_group *group, const xp_rank_gpu *gpus) {
    xp_ep_cuda_state *state = group->device_state;
    const xp_cuda_device *device = device_of(group);
    const int n = group->shape.n_ranks;
    const xp_gpu_placement placement = xp_gpu_placement_of(gpus, n, group->rank);
    const bool p2p = group->transport == XP_EP_P2P;
    const bool threads = xp_comm_shares_addresses(group->comm);
    const bool any_shared = group->config.shares_gpus || placement.any_shared;
    for (int r = 0; r < n; r++) {
        state->devices[r] = gpus[r].index;
        if (p2p && threads)
            XP_TRY(let_address(device->index, state->devices[r]));
    }
    if (group->config.phased || (any_shared && !threads))
        state->meets = XP_EP_MEET_ON_HOST; /* processes take turns on a GPU that they share */
    else if (any_shared)
        state->meets = XP_EP_MEET_BY_MARKS;
    /* Communicators inside the group see only some of the ranks that share. */
    if (any_shared && group->transport == XP_EP_HIERARCHICAL)
        xp_device_set_shared(group->device, true);
    const int half = device->n_sms / 2 / placement.n_on_mine;
    state->n_row_blocks = group->config.num_sms > 0 ? group->config.num_sms : half > 1 ? half : 1;
    return XP_OK;
}

static xp_status open_hosts(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    if (group->transport != XP_EP_P2P || state->meets == XP_EP_MEET_ON_GPU)
        return XP_OK;
    state->notes = calloc((size_t)group->shape.n_ranks, sizeof *state->notes);
    if (state->notes == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    return xp_comm_split(group->comm, 0, &state->hosts);
}

static xp_status open_marks(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    if (group->transport != XP_EP_P2P || state->meets != XP_EP_MEET_BY_MARKS)
        return XP_OK;
    for (int i = 0; i < 2; i++)
        XP_TRY(xp_cuda_check(cudaEventCreateWithFlags(&state->marks[i], cudaEventDisableTiming),
                             "expert parallel group"));
    state->all_marks = calloc(2 * (size_t)group->shape.n_ranks, sizeof *state->all_marks);
    if (state->all_marks == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    return xp_comm_all_gather(group->comm, state->marks, state->all_marks, sizeof state->marks,
                              XP_U8, NULL);
}

static xp_status open_ranks(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    const size_t n = (size_t)group->shape.n_ranks;
    struct cudaDeviceProp p;
    XP_TRY(xp_cuda_check(cudaGetDeviceProperties(&p, device_of(group)->index), "GPU"));
    xp_rank_gpu mine = {.on_gpu = 1, .index = device_of(group)->index};
    memcpy(mine.id, p.uuid.bytes, sizeof mine.id);
    state->devices = calloc(n, sizeof *state->devices);
    state->bytes = calloc(4 * n, sizeof *state->bytes);
    if (state->bytes != NULL)
        state->exchange = (xp_ep_exchange){state->bytes, state->bytes + n, state->bytes + 2 * n,
                                           state->bytes + 3 * n};
    xp_rank_gpu *gpus = calloc(n, sizeof *gpus);
    xp_status status = state->devices == NULL || state->bytes == NULL || gpus == NULL
                           ? xp_error(XP_ENOMEM, "no memory for an expert parallel group")
                           : xp_comm_all_gather(group->comm, &mine, gpus, sizeof mine, XP_U8, NULL);
    if (status == XP_OK)
        status = use_placement(group, gpus);
    free(gpus);
    if (status == XP_OK && group->transport == XP_EP_P2P && xp_comm_shares_addresses(group->comm))
        status = xp_ep_gates_open(group->comm, &state->gates);
    if (status == XP_OK)
        status = open_hosts(group);
    if (status == XP_OK)
        status = open_marks(group);
    if (status != XP_OK) /* the others may not have met it */
        xp_comm_abort(group->comm, xp_last_error());
    return status;
}

static xp_status create(xp_ep_group *group) {
    xp_ep_cuda_state *state = calloc(1, sizeof *state);
    group->device_state = state;
    if (state == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_ep_shape_check_gpu(&group->shape));
    xp_cuda_device *device = device_of(group);
    XP_TRY(xp_cuda_check(cudaSetDevice(device->index), device->base.name));
    XP_TRY(xp_cuda_check(cudaHostAlloc((void **)&state->news, sizeof *state->news,
                                       cudaHostAllocMapped | cudaHostAllocPortable),
                         "expert parallel group"));
    memset(state->news, 0, sizeof *state->news);
    XP_TRY(xp_cuda_check(cudaHostGetDevicePointer((void **)&state->news_on_device, state->news, 0),
                         "expert parallel group"));
    /* num_sms bounds what runs beside the experts of other ranks; one rank has no others. */
    state->n_row_blocks = device->n_sms * 8;
    if (group->shape.n_ranks > 1)
        XP_TRY(open_ranks(group));
    XP_TRY(group->ops->create(group));
    state->ready = true;
    return XP_OK;
}

/* ---- destroy ----------------------------------------------------------------------------- */

/* Who queues from now on sees the failure, and what is queued ends, for every wait of a kernel has
 * a timeout. */
void xp_ep_cuda_wait_out(const xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    if (state->gates == NULL)
        return;
    xp_ep_gates_wait(state->gates);
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (cudaSetDevice(state->devices[r]) == cudaSuccess)
            cudaDeviceSynchronize();
    cudaSetDevice(device_of(group)->index);
}

static void stop(xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    if (state == NULL || !state->ready || group->shape.n_ranks == 1)
        return;
    if (cudaSetDevice(device_of(group)->index) == cudaSuccess)
        cudaDeviceSynchronize();
    xp_status status = xp_ep_cuda_check_group(group);
    if (status == XP_OK)
        status = xp_comm_async_error(group->comm);
    if (status == XP_OK)
        status = xp_comm_barrier(group->comm, NULL);
    if (status != XP_OK)
        xp_ep_cuda_wait_out(group);
    cudaSetDevice(device_of(group)->index);
    cudaGetLastError(); /* whatever went wrong is nobody's error any more */
}

static void destroy(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    if (state == NULL)
        return;
    for (int i = 0; i < 2; i++)
        if (state->marks[i] != NULL)
            cudaEventDestroy(state->marks[i]);
    free(state->all_marks);
    free(state->notes);
    xp_comm_destroy(state->hosts);
    if (state->news != NULL)
        cudaFreeHost(state->news);
    xp_ep_gates_close(state->gates);
    free(state->devices);
    free(state->bytes);
    free(state);
}

/* ---- reports ----------------------------------------------------------------------------- */

static int world_rank(const xp_ep_group *group, int rank) {
    return xp_comm_world_rank(group->comm, rank);
}

xp_status xp_ep_cuda_check_group(const xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_failure *f = &state->news->failure;
    if (f->kind == 0)
        return XP_OK;
    char text[320], more[32] = "", calls[64] = "";
    if (f->n_missing > 1)
        snprintf(more, sizeof more, " and %d more", f->n_missing - 1);
    if (f->reporter == group->rank)
        snprintf(calls, sizeof calls, " (at call %u, expected %u)", f->seen, f->expected);
    snprintf(text, sizeof text, "rank %d waited %g s in %s (%s, round %lld) for rank %d%s%s",
             world_rank(group, f->reporter), group->timeout_s, phases[f->phase],
             xp_ep_p2p_point_name((p2p_point)f->point), (long long)f->round,
             world_rank(group, f->missing), calls, more);
    return xp_comm_fail_timeout(group->comm, f->missing, text);
}

/* The first failed meeting; else the first routing that the device has refused. */
static xp_status async_error(const xp_ep_group *group) {
    const xp_ep_cuda_state *state = group->device_state;
    const volatile int32_t *error = state->news->error;
    XP_TRY(xp_ep_cuda_check_group(group));
    const int32_t refused[3] = {error[0], error[2], error[3]};
    return xp_ep_plan_explain_rank(group, error[1], refused);
}

static void stop_words(const xp_ep_group *group, const int32_t *words[2]) {
    const xp_ep_cuda_news *news = ((const xp_ep_cuda_state *)group->device_state)->news_on_device;
    words[0] = &news->error[0];
    words[1] = &news->failure.kind;
}

static void add_stats(const xp_ep_group *group, xp_ep_stats *stats) {
    const xp_ep_cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_news *now = state->news;
    const xp_ep_cuda_news *then = &state->at_reset;
    const int64_t row_bytes = (int64_t)group->shape.row_bytes;
    stats->overflow_rows += (int64_t)(now->overflow_rows - then->overflow_rows);
    stats->bytes_kept += (int64_t)(now->rows_kept - then->rows_kept) * row_bytes;
    stats->bytes_sent_remote += (int64_t)(now->rows_sent - then->rows_sent) * row_bytes;
    stats->wait_s += (double)(now->wait_ns - then->wait_ns) * 1e-9;
}

static void reset_stats(xp_ep_group *group) {
    xp_ep_cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_news *now = state->news;
    state->at_reset.overflow_rows = now->overflow_rows;
    state->at_reset.rows_kept = now->rows_kept;
    state->at_reset.rows_sent = now->rows_sent;
    state->at_reset.wait_ns = now->wait_ns;
}

const xp_ep_device_ops xp_ep_cuda_ops = {
    .create = create,
    .stop = stop,
    .destroy = destroy,
    .build = xp_ep_cuda_build,
    .dispatch = xp_ep_cuda_dispatch,
    .bring_home = xp_ep_cuda_bring_home,
    .miss = xp_ep_cuda_miss,
    .wait = xp_ep_cuda_wait,
    .stop_words = stop_words,
    .async_error = async_error,
    .add_stats = add_stats,
    .reset_stats = reset_stats,
};
