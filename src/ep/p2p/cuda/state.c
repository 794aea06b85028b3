#include "ep/p2p/cuda/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "ep/p2p/cuda/rows_bulk.h"

_Static_assert(sizeof(xp_ep_abort_flags) <= sizeof(p2p_wait_words),
               "the abort flags lie at the head of the window, where the CPU has its futex event");

static const char *const phases[] = {"plan", "dispatch", "combine", "combine backward",
                                     "dispatch backward"};
#define N_PHASES ((int)(sizeof phases / sizeof phases[0]))

int xp_ep_p2p_phase_index(const char *phase) {
    int n = 0;
    while (n < N_PHASES - 1 && strcmp(phases[n], phase) != 0)
        n++;
    return n;
}

xp_ep_abort_flags *xp_ep_p2p_abort_flags(const xp_ep_call *call, int rank) {
    return (xp_ep_abort_flags *)xp_ep_p2p_area(call, rank)->wait->bytes;
}

/* ---- create -------------------------------------------------------------------------------- */

static xp_status enable_peer_access(int mine, int theirs) {
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

static xp_status create_host_comm(xp_ep_group *group) {
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    state->barrier_ids = calloc((size_t)group->shape.n_ranks, sizeof *state->barrier_ids);
    if (state->barrier_ids == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    return xp_comm_split(group->comm, 0, &state->hosts);
}

static xp_status create_events(xp_ep_group *group) {
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    for (int i = 0; i < 2; i++)
        XP_TRY(xp_cuda_check(cudaEventCreateWithFlags(&state->events[i], cudaEventDisableTiming),
                             "expert parallel group"));
    state->peer_events = calloc(2 * (size_t)group->shape.n_ranks, sizeof *state->peer_events);
    if (state->peer_events == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    return xp_comm_all_gather(group->comm, state->events, state->peer_events, sizeof state->events,
                              XP_U8, NULL);
}

/* How the ranks synchronise follows from which GPUs they use. */
static xp_status create_sync(xp_ep_group *group) {
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    const bool threads = xp_comm_same_process(group->comm);
    for (int r = 0; r < group->shape.n_ranks && threads; r++)
        XP_TRY(enable_peer_access(xp_ep_cuda_device(group)->index, state->common.gpus[r]));
    if (group->config.host_synchronized || (state->common.gpus_shared && !threads))
        state->sync = XP_EP_SYNC_HOST; /* processes take turns on a GPU that they share */
    else if (state->common.gpus_shared)
        state->sync = XP_EP_SYNC_EVENTS;
    if (threads)
        XP_TRY(xp_ep_launch_locks_create(group->comm, &state->locks));
    if (threads || state->sync != XP_EP_SYNC_KERNEL)
        XP_TRY(create_host_comm(group));
    return state->sync == XP_EP_SYNC_EVENTS ? create_events(group) : XP_OK;
}

static xp_status load_kernels(xp_ep_group *group) {
    xp_ep_cuda_state *state = xp_ep_cuda_state_of(group);
    state->bulk = xp_ep_cuda_device(group)->bulk;
    XP_TRY(xp_ep_cuda_load_barrier());
    XP_TRY(xp_ep_cuda_load_p2p_plan());
    XP_TRY(xp_ep_cuda_load_p2p_rows());
    XP_TRY(xp_ep_cuda_load_dispatch_bulk(&state->bulk));
    XP_TRY(xp_ep_cuda_load_sums_bulk(&state->bulk));
    return xp_ep_cuda_load_tokens_bulk(&state->bulk);
}

/* Collective. */
static xp_status agree_on_telling(xp_ep_group *group) {
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    const int n_sms = xp_ep_cuda_device(group)->n_sms, n_slots = group->shape.n_slots;
    const int n_senders = state->common.n_row_blocks;
    /* Blocks of all slots that may wait for peers together leave SMs to those that send. */
    const int64_t mine = state->common.bulk && n_senders * n_slots <= n_sms &&
                         xp_ep_cuda_suits_bulk(group->shape.row_bytes);
    state->common.n_waiting_blocks = n_sms / n_slots - n_senders;
    int64_t *all = state->common.bytes;
    if (xp_comm_same_process(group->comm) || state->sync != XP_EP_SYNC_KERNEL)
        return XP_OK;
    XP_TRY(xp_comm_all_gather(group->comm, &mine, all, sizeof mine, XP_U8, NULL));
    state->tells = true;
    for (int r = 0; r < group->shape.n_ranks; r++)
        state->tells = state->tells && all[r] != 0;
    return XP_OK;
}

static xp_status kernel_error(const void *group) {
    return xp_ep_p2p_cuda_failure(group);
}

xp_status xp_ep_p2p_cuda_create(xp_ep_group *group) {
    XP_TRY(xp_ep_cuda_state_create(group, sizeof(xp_ep_p2p_cuda)));
    xp_status status = create_sync(group);
    if (status == XP_OK)
        status = load_kernels(group);
    if (status != XP_OK) { /* the others may not have met it */
        xp_comm_abort(group->comm, NULL);
        return status;
    }
    XP_TRY(agree_on_telling(group));
    XP_TRY(xp_ep_p2p_windows_create(group));
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    const xp_ep_abort_watch_args watch = {.comm = group->comm,
                                          .flag = &state->common.status->host_abort,
                                          .kernel_error = kernel_error,
                                          .context = group};
    if (state->sync == XP_EP_SYNC_KERNEL)
        XP_TRY(xp_ep_abort_watch_start(&watch, &state->watch));
    return xp_ep_cuda_ready(group);
}

/* ---- destroy ------------------------------------------------------------------------------- */

/* Who queues from now on sees the failure. What is queued ends: waiting barriers see the host abort flag,
 * or their timeout. */
void xp_ep_p2p_cuda_drain(const xp_ep_group *group) {
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    if (state->locks == NULL)
        return;
    xp_ep_launch_locks_drain(state->locks);
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (cudaSetDevice(state->common.gpus[r]) == cudaSuccess)
            cudaDeviceSynchronize();
    cudaSetDevice(xp_ep_cuda_device(group)->index);
}

static void stop(const xp_ep_group *group) {
    if (cudaSetDevice(xp_ep_cuda_device(group)->index) == cudaSuccess)
        cudaDeviceSynchronize();
    if (xp_ep_cuda_stop(group, xp_ep_p2p_cuda_failure(group)) != XP_OK)
        xp_ep_p2p_cuda_drain(group);
    cudaSetDevice(xp_ep_cuda_device(group)->index);
    cudaGetLastError(); /* whatever went wrong is nobody's error any more */
}

void xp_ep_p2p_cuda_destroy(xp_ep_group *group) {
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    if (state == NULL)
        return;
    if (state->common.ready)
        stop(group);
    xp_ep_abort_watch_stop(state->watch); /* now that no kernel waits any more */
    xp_ep_p2p_windows_destroy(group);
    for (int i = 0; i < 2; i++)
        if (state->events[i] != NULL)
            cudaEventDestroy(state->events[i]);
    free(state->peer_events);
    free(state->barrier_ids);
    xp_comm_destroy(state->hosts);
    xp_ep_launch_locks_release(state->locks);
    xp_ep_cuda_state_destroy(group);
}

/* ---- reports ------------------------------------------------------------------------------- */

xp_status xp_ep_p2p_cuda_failure(const xp_ep_group *group) {
    const volatile xp_ep_cuda_failure *f = &xp_ep_cuda_state_of(group)->status->failure;
    if (f->kind == 0)
        return XP_OK;
    char text[320], more[32] = "", calls[64] = "";
    if (f->kind == XP_EP_BARRIER_HOST_ABORT) {
        XP_TRY(xp_comm_async_error(group->comm)); /* says why */
        snprintf(text, sizeof text, "rank %d gave up in %s (%s, round %lld): its host had failed",
                 xp_comm_world_rank(group->comm, f->reporter), phases[f->phase],
                 xp_ep_p2p_point_name((p2p_point)f->point), (long long)f->round);
        return xp_comm_fail(group->comm, text);
    }
    if (f->n_missing > 1)
        snprintf(more, sizeof more, " and %d more", f->n_missing - 1);
    if (f->kind == XP_EP_BARRIER_TIMED_OUT)
        snprintf(calls, sizeof calls, " (at call %u, expected %u)", f->seen, f->expected);
    snprintf(text, sizeof text, "rank %d waited %g s in %s (%s, round %lld) for rank %d%s%s",
             xp_comm_world_rank(group->comm, f->reporter), group->timeout_s, phases[f->phase],
             xp_ep_p2p_point_name((p2p_point)f->point), (long long)f->round,
             xp_comm_world_rank(group->comm, f->missing), calls, more);
    return xp_comm_fail_timeout(group->comm, f->missing, text);
}
