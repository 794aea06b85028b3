/*
 * p2p on GPUs: kernels write rows where they are wanted, with a barrier between the ranks before and
 * after (barrier.c). All calls return once their work is queued; counts stay on the device.
 */
#include "ep/p2p/p2p.h"

#include <stdio.h>
#include "comm/provider.h"
#include "ep/common/defaults.h"
#include "ep/cuda/backends.h"
#include "ep/p2p/cuda/barrier.h"
#include "ep/p2p/cuda/plan.h"
#include "ep/p2p/cuda/rows_bulk.h"

/* ---- around a call ------------------------------------------------------------------------- */

/* Before anything of a call is queued. XP_ECOMM, and nothing to end, when the group has failed. */
static xp_status begin(const xp_ep_call *call, cudaStream_t *stream) {
    const xp_ep_group *group = call->group;
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    XP_TRY(xp_cuda_enter(call->stream, stream));
    xp_ep_launch_lock(state->locks, group->rank);
    xp_status status = xp_ep_p2p_cuda_failure(group);
    if (status == XP_OK)
        status = xp_comm_async_error(group->comm);
    if (status != XP_OK)
        xp_ep_launch_unlock(state->locks, group->rank);
    return status;
}

/* After a call; passes `status` on. */
static xp_status end(const xp_ep_call *call, xp_status status) {
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(call->group);
    xp_ep_launch_unlock(state->locks, call->group->rank);
    /* Routing is refused alike on all ranks; of anything else the others must hear. */
    const bool fails = status != XP_OK && status != XP_EINVAL;
    if (!fails || xp_ep_p2p_sync_mode(call->group) == XP_EP_SYNC_KERNEL)
        return status;
    char why[1024];
    snprintf(why, sizeof why, "%s", xp_last_error());
    if (status != XP_ECOMM)
        xp_comm_abort(call->group->comm, why);
    /* Kernels of peers that were not kept waiting may be writing into the caller's rows. */
    xp_ep_p2p_cuda_drain(call->group);
    return xp_error(status, "%s", why);
}

/* With barriers on the device, kernels look at the slot's abort flag: the host may not know yet. */
static void watch_abort(const xp_ep_call *call, xp_ep_cuda_plan *view) {
    if (xp_ep_p2p_sync_mode(call->group) == XP_EP_SYNC_KERNEL)
        view->aborted = &xp_ep_p2p_abort_flags(call, call->group->rank)->aborted;
}

static xp_ep_cuda_plan plan_view(const xp_ep_call *call) {
    xp_ep_cuda_plan view = xp_ep_cuda_plan_view(call);
    watch_abort(call, &view);
    return view;
}

/* This rank refuses a call that others may make: the call is counted, so that the next ones match.
 * A plan that this rank's host has refused is empty on the others, who learn of that on the device:
 * their kernels skip the barriers, their hosts do not. */
static void skip_call(const xp_ep_call *call) {
    cudaStream_t stream;
    if (xp_ep_call_is_empty(call))
        return;
    xp_ep_p2p_begin(call);
    if (call->plan->valid || xp_ep_p2p_sync_mode(call->group) != XP_EP_SYNC_EVENTS ||
        begin(call, &stream) != XP_OK)
        return;
    /* Failures are the communicator's, and the next call returns them. */
    (void)end(call, xp_ep_p2p_join_barriers(call, stream));
}

static xp_status check_plan(const xp_ep_call *call) {
    if (!xp_ep_call_fits_plan(call))
        skip_call(call);
    return xp_ep_call_check_plan(call);
}

/* ---- plan ---------------------------------------------------------------------------------- */

static xp_status plan_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    cudaStream_t stream;
    call->plan->valid = false;
    XP_TRY(begin(call, &stream));
    xp_ep_cuda_plan v = xp_ep_cuda_plan_start(call, routing);
    watch_abort(call, &v);
    xp_ep_p2p_begin(call);
    XP_TRY(end(call, xp_ep_p2p_cuda_build_plan(call, stream, &v)));
    return xp_ep_cuda_plan_finish(call, &v);
}

static xp_status plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    XP_TRY(xp_ep_cuda_plan_fetch(plan));
    XP_TRY(xp_ep_p2p_cuda_failure(plan->group));
    return xp_ep_cuda_plan_counts(plan, counts);
}

/* ---- rows ---------------------------------------------------------------------------------- */

static xp_ep_cuda_peers peers_of(const xp_ep_call *call, void *recv) {
    const p2p_state *state = call->group->transport_state;
    xp_ep_cuda_peers peers = {
        .recv_at = state->direct ? xp_ep_p2p_area(call, call->group->rank)->recv_at : NULL};
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const p2p_area *area = xp_ep_p2p_area(call, r);
        /* Between processes only this rank's own rows go where they are wanted at once. */
        peers.recv[r] = state->direct || r == call->group->rank ? recv : area->recv;
        peers.combine_rows[r] = area->combine_rows;
        peers.weights[r] = area->weights;
    }
    return peers;
}

_Static_assert(XP_EP_CUDA_CHUNK_ROWS == XP_EP_P2P_CHUNK_ROWS &&
                   (int)XP_EP_BULK_STAGE_BYTES == XP_EP_P2P_PIECE_BYTES,
               "the window has a word for each piece of a chunk");

static xp_ep_cuda_arrivals arrivals_of(const xp_ep_call *call, void *recv) {
    const xp_ep_group *group = call->group;
    const int me = group->rank;
    const p2p_area *mine = xp_ep_p2p_area(call, me);
    xp_ep_cuda_arrivals a = {.arrived = mine->arrived,
                             .n_words = xp_ep_p2p_arrival_words(&group->shape),
                             .epoch = xp_ep_p2p_epoch(call),
                             .point = P2P_DATA,
                             .timeout_ns = (uint64_t)(group->timeout_s * 1e9),
                             .abort = xp_ep_p2p_abort_flags(call, me),
                             .from = mine->recv,
                             .to = recv};
    for (int r = 0; r < group->shape.n_ranks; r++)
        a.told[r] = xp_ep_p2p_area(call, r)->arrived + me * a.n_words;
    return a;
}

/* For measurements: as many rows as each peer gets (combine: gave) again, from the first of `from` on,
 * for each further copy. How many is the device's to read in the counts: those of all rounds, so
 * round 0 copies for all. */
static xp_status send_copies(const xp_ep_call *call, cudaStream_t stream, const xp_ep_cuda_plan *v,
                             bool combine, const void *from) {
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    const int me = call->group->rank;
    for (int i = 1; i < call->group->shape.send_copies && call->round == 0; i++) {
        for (int peer = 0; peer < v->n_ranks; peer++) {
            const int source = combine ? peer : me, dest = combine ? me : peer;
            xp_ep_cuda_plan to_peer = *v;
            to_peer.n_recv = v->rank_counts + (ptrdiff_t)source * v->counts_ints +
                             XP_EP_COUNTS_ROWS(&call->group->shape) + dest;
            if (peer != me)
                XP_TRY(xp_ep_cuda_send_copy(stream, &to_peer, &rows, from,
                                            xp_ep_p2p_copies(call, peer)));
        }
    }
    return XP_OK;
}

static xp_status dispatch(const xp_ep_call *call, const void *x, void *recv) {
    const bool direct = ((const p2p_state *)call->group->transport_state)->direct;
    xp_status status = XP_OK;
    cudaStream_t stream;
    XP_TRY(check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    xp_ep_add(&call->group->totals.n_dispatches, 1);
    XP_TRY(begin(call, &stream));
    const xp_ep_cuda_plan v = plan_view(call);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(call);
    const xp_ep_cuda_peers peers = peers_of(call, recv);
    const xp_ep_barrier ready = {.point = P2P_READY,
                                 .min_rounds = call->round,
                                 .locks = direct,
                                 .payload_address = direct ? recv : NULL};
    const xp_ep_barrier data = {.point = P2P_DATA, .min_rounds = call->round};
    const bool tells = xp_ep_p2p_cuda_of(call->group)->tells;
    const bool takes = tells && xp_ep_cuda_can_receive(&rows, x, recv);
    xp_ep_p2p_begin(call);
    xp_ep_cuda_arrivals arrivals = {0};
    if (tells)
        arrivals = arrivals_of(call, recv);
    XP_TRY_GOTO(status, xp_ep_p2p_cuda_barrier(call, stream, &ready), out);
    XP_TRY_GOTO(status,
                xp_ep_cuda_dispatch_rows(stream, &v, &rows, &peers, takes ? &arrivals : NULL, x),
                out);
    if (tells && !takes)
        XP_TRY_GOTO(status, xp_ep_cuda_tell_all(stream, &v, &rows, false, &arrivals), out);
    XP_TRY_GOTO(status, send_copies(call, stream, &v, false, x), out);
    XP_TRY_GOTO(status, xp_ep_p2p_cuda_barrier(call, stream, &data), out);
    if (!direct && !takes)
        status = xp_ep_cuda_copy_recv(stream, &v, &rows,
                                      xp_ep_p2p_area(call, call->group->rank)->recv, recv);
out:
    return end(call, status);
}

/* A combine in progress. */
typedef struct combine_work {
    cudaStream_t stream;
    xp_ep_cuda_plan plan;
    xp_ep_cuda_rows rows;
    bool tells; /* the group: see xp_ep_p2p_cuda */
    xp_ep_cuda_arrivals arrivals;
} combine_work;

/* Behind begin(); the epoch is the call's. */
static combine_work combine_work_of(const xp_ep_call *call, cudaStream_t stream) {
    combine_work work = {.stream = stream,
                         .plan = plan_view(call),
                         .rows = xp_ep_cuda_rows_of(call),
                         .tells = xp_ep_p2p_cuda_of(call->group)->tells};
    if (work.tells)
        work.arrivals = arrivals_of(call, NULL);
    return work;
}

/* First-level sums to their sources. `whole`: combined here as well, when there is one round. */
static xp_status push(const xp_ep_call *call, const combine_work *work,
                      const xp_ep_combine_args *args, bool whole) {
    const xp_ep_cuda_peers peers = peers_of(call, NULL);
    const xp_ep_barrier ready = {.point = P2P_READY, .min_rounds = call->round};
    const bool tells = work->tells && xp_ep_cuda_can_tell_sums(&work->rows, args->y);
    XP_TRY(xp_ep_p2p_cuda_barrier(call, work->stream, &ready));
    XP_TRY(xp_ep_cuda_push_sums(work->stream, &work->plan, &work->rows, &peers,
                                tells ? &work->arrivals : NULL, args->y, whole ? args->out : NULL));
    if (work->tells && !tells)
        XP_TRY(xp_ep_cuda_tell_all(work->stream, &work->plan, &work->rows, true, &work->arrivals));
    XP_TRY(send_copies(call, work->stream, &work->plan, true, args->y));
    return args->d_weight == NULL ? XP_OK
                                  : xp_ep_cuda_push_weights(work->stream, &work->plan, call->round,
                                                            &peers, args->d_weight);
}

/* Second-level sums. `whole`: they are done when there is one round. */
static xp_status gather(const xp_ep_call *call, const combine_work *work,
                        const xp_ep_combine_args *args, bool whole) {
    const p2p_area *mine = xp_ep_p2p_area(call, call->group->rank);
    const xp_ep_barrier data = {.point = P2P_DATA, .min_rounds = call->round};
    XP_TRY(xp_ep_p2p_cuda_barrier(call, work->stream, &data));
    XP_TRY(xp_ep_cuda_combine_rows(work->stream, &work->plan, &work->rows, mine->combine_rows,
                                   args->y, args->out, whole));
    return args->d_weight == NULL || args->d_topk_weight == NULL
               ? XP_OK
               : xp_ep_cuda_scatter_weights(work->stream, &work->plan, call->round, mine->weights,
                                            args->d_topk_weight);
}

/* What precedes begin() in a combine. */
static xp_status check_combine(const xp_ep_call *call) {
    /* The ranks' hosts do not know of each other's refusals: what all refuse alike comes first. */
    XP_TRY(xp_ep_call_check_order(call));
    XP_TRY(check_plan(call));
    xp_ep_add(&call->group->totals.n_combines, 1);
    return XP_OK;
}

static xp_status combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_status status = XP_OK;
    cudaStream_t stream;
    if (xp_ep_call_is_empty(call))
        return xp_ep_call_check_plan(call);
    XP_TRY(check_combine(call));
    XP_TRY(begin(call, &stream));
    XP_TRY_GOTO(status, xp_ep_cuda_clear_weights(call, stream, args), out);
    xp_ep_p2p_begin(call);
    const combine_work work = combine_work_of(call, stream);
    const bool whole = work.tells && xp_ep_cuda_can_combine(&work.rows, args->y, args->out);
    XP_TRY_GOTO(status, push(call, &work, args, whole), out);
    status = gather(call, &work, args, whole);
out:
    return end(call, status);
}

/* Where the hosts make the barriers, they would wait for the others' experts here. */
static xp_status combine_send(const xp_ep_call *sent_call, const void *y, bool *sent) {
    xp_ep_call call = *sent_call;
    cudaStream_t stream;
    *sent = xp_ep_p2p_sync_mode(call.group) == XP_EP_SYNC_KERNEL;
    call.n_tokens = call.plan->n_tokens;
    if (!*sent)
        return XP_OK;
    if (xp_ep_call_is_empty(&call))
        return xp_ep_call_check_plan(&call);
    XP_TRY(check_combine(&call));
    XP_TRY(begin(&call, &stream));
    xp_ep_p2p_begin(&call);
    const combine_work work = combine_work_of(&call, stream);
    const xp_ep_combine_args args = {.y = y};
    return end(&call, push(&call, &work, &args, false));
}

/* Blocks that may wait for peers while none of this slot sends: see agree_on_telling(). */
static int receiving_blocks(const xp_ep_group *group) {
    return group->shape.n_slots == 1 ? xp_ep_cuda_device(group)->n_sms
                                     : xp_ep_cuda_state_of(group)->n_waiting_blocks;
}

static xp_status combine_recv(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_status status = XP_OK;
    cudaStream_t stream;
    XP_TRY(xp_ep_call_check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    XP_TRY(begin(call, &stream));
    combine_work work = combine_work_of(call, stream);
    work.rows.n_waiting_blocks = receiving_blocks(call->group);
    const bool whole = work.tells && xp_ep_cuda_can_combine(&work.rows, args->y, args->out);
    if (whole)
        XP_TRY_GOTO(status,
                    xp_ep_cuda_combine_tokens(stream, &work.plan, &work.rows, &work.arrivals,
                                              xp_ep_p2p_area(call, call->group->rank)->combine_rows,
                                              args->y, args->out),
                    out);
    status = gather(call, &work, args, whole);
out:
    return end(call, status);
}

static xp_status async_error(const xp_ep_group *group) {
    XP_TRY(xp_ep_p2p_cuda_failure(group));
    return xp_ep_cuda_routing_error(group);
}

const xp_ep_backend xp_ep_cuda_p2p = {
    .name = "p2p/cuda",
    .group_bytes = xp_ep_p2p_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_no_comm_bytes,
    .group_create = xp_ep_p2p_cuda_create,
    .group_destroy = xp_ep_p2p_cuda_destroy,
    .plan_create = xp_ep_cuda_plan_create,
    .plan_destroy = xp_ep_cuda_plan_destroy,
    .plan_build = plan_build,
    .plan_wait = plan_wait,
    .dispatch = dispatch,
    .combine = combine,
    .combine_send = combine_send,
    .combine_recv = combine_recv,
    .async_error = async_error,
    .abort_flags = xp_ep_cuda_abort_flags_of,
    .add_stats = xp_ep_cuda_add_stats,
    .reset_stats = xp_ep_cuda_reset_stats,
};
