#include "ep/p2p/cuda/barrier.h"

#include <stdio.h>
#include <string.h>
#include "comm/provider.h"
#include "core/file.h"

_Static_assert(sizeof(p2p_flag) == XP_EP_CUDA_FLAG_WORDS * sizeof(uint32_t), "a flag's line");

/* ---- in a kernel --------------------------------------------------------------------------- */

/* Where `peer` finds this rank's payload of a barrier; NULL: it has none. */
static int32_t *payload_target(const xp_ep_call *call, const p2p_area *peer, p2p_point point) {
    const xp_ep_shape *s = &call->group->shape;
    const int64_t me = call->group->rank;
    switch (point) {
    case P2P_COUNTS:
        return peer->rank_counts + me * s->counts_ints;
    case P2P_STARTS:
        return peer->starts + me * s->max_rounds;
    case P2P_READY:
        return (int32_t *)(peer->recv_at + me);
    default:
        return NULL;
    }
}

static uint32_t *flags_of(const xp_ep_call *call, const p2p_area *area, p2p_point point) {
    return (uint32_t *)(area->flags + (int)point * call->group->shape.n_ranks);
}

/* The barrier behind rows waits longer than the kernels that wait for rows: a rank that waits for rows in
 * vain reports whose they are before others miss that rank. */
static double time_limit(const xp_ep_call *call, p2p_point point) {
    const double limit = call->group->timeout_s;
    return point != P2P_DATA ? limit : limit + (limit < 20 ? limit / 4 : 5);
}

xp_ep_barrier_args xp_ep_p2p_barrier_args(const xp_ep_call *call, const xp_ep_barrier *barrier) {
    const xp_ep_group *group = call->group;
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    xp_ep_barrier_args args = {
        .n_ranks = group->shape.n_ranks,
        .rank = group->rank,
        .point = (int)barrier->point,
        .phase = xp_ep_p2p_phase_index(call->phase),
        .epoch = xp_ep_p2p_epoch(call),
        .waits = xp_ep_p2p_sync_mode(group) == XP_EP_SYNC_KERNEL,
        .locks = barrier->locks,
        .timeout_ns = (uint64_t)(time_limit(call, barrier->point) * 1e9),
        .round = call->round,
        .min_rounds = barrier->min_rounds,
        .totals = call->plan->totals,
        .own_data = flags_of(call, xp_ep_p2p_area(call, group->rank), P2P_DATA),
        .payload = barrier->payload,
        .n_payload = barrier->n_payload,
        .stride = barrier->stride,
        .payload_address = barrier->payload_address,
        .status = state->common.device_status,
    };
    for (int r = 0; r < args.n_ranks; r++) {
        const p2p_area *area = xp_ep_p2p_area(call, r);
        args.flags[r] = flags_of(call, area, barrier->point);
        args.busy[r] = flags_of(call, area, P2P_BUSY);
        args.abort[r] = xp_ep_p2p_abort_flags(call, r);
        args.to[r] = payload_target(call, area, barrier->point);
    }
    return args;
}

/* ---- on the hosts -------------------------------------------------------------------------- */

/* Rows would be written where nobody wants them. */
static xp_status fail_mismatch(const xp_ep_call *call, int rank, const xp_ep_barrier_id *mine,
                               const xp_ep_barrier_id *theirs) {
    const xp_comm *comm = call->group->comm;
    char text[320];
    snprintf(
        text, sizeof text,
        "rank %d is in %s (%s, call %u of slot %d, round %lld), rank %d in another call (%s, "
        "call %u of slot %d, round %lld): all ranks must make the same calls in the same order",
        xp_comm_world_rank(comm, call->group->rank), call->phase,
        xp_ep_p2p_point_name((p2p_point)mine->point), mine->epoch, mine->slot,
        (long long)mine->round, xp_comm_world_rank(comm, rank),
        xp_ep_p2p_point_name((p2p_point)theirs->point), theirs->epoch, theirs->slot,
        (long long)theirs->round);
    return xp_comm_fail_mismatch(call->group->comm, text);
}

static xp_status host_barrier(const xp_ep_call *call, p2p_point point) {
    xp_ep_group *group = call->group;
    const xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    xp_ep_barrier_id mine;
    memset(&mine, 0, sizeof mine);
    mine.slot = call->plan->slot;
    mine.point = (int32_t)point;
    mine.epoch = xp_ep_p2p_epoch(call);
    mine.round = call->round;
    const double began = xp_time_s();
    xp_comm_set_phase(state->hosts, call->phase);
    XP_TRY(xp_comm_all_gather(state->hosts, &mine, state->barrier_ids, sizeof mine, XP_U8, NULL));
    xp_ep_add(&group->totals.wait_ns, (int64_t)((xp_time_s() - began) * 1e9));
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (memcmp(&state->barrier_ids[r], &mine, sizeof mine) != 0)
            return fail_mismatch(call, r, &mine, &state->barrier_ids[r]);
    return XP_OK;
}

static xp_status event_barrier(const xp_ep_call *call, cudaStream_t stream, p2p_point point) {
    const xp_ep_group *group = call->group;
    xp_ep_p2p_cuda *state = xp_ep_p2p_cuda_of(group);
    const int turn = (int)(state->n_barriers++ % 2);
    XP_TRY(xp_cuda_check(cudaEventRecord(state->events[turn], stream), call->phase));
    XP_TRY(host_barrier(call, point));
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (r != group->rank)
            XP_TRY(xp_cuda_check(cudaStreamWaitEvent(stream, state->peer_events[2 * r + turn], 0),
                                 call->phase));
    return XP_OK;
}

xp_status xp_ep_p2p_join_barriers(const xp_ep_call *call, cudaStream_t stream) {
    XP_TRY(event_barrier(call, stream, P2P_READY));
    return event_barrier(call, stream, P2P_DATA);
}

/* ---- words of rows ------------------------------------------------------------------------- */

/* Nobody writes them before this rank has reached READY. When epochs start over, those of the last time
 * are cleared: a word is the epoch of a call of this turn, or 0. */
static xp_status clear_old_arrivals(const xp_ep_call *call, cudaStream_t stream) {
    const p2p_state *state = call->group->transport_state;
    const xp_ep_shape *s = &call->group->shape;
    const p2p_area *mine = xp_ep_p2p_area(call, call->group->rank);
    uint32_t *last = &state->last_epochs[call->plan->slot];
    const bool starts_over = xp_ep_p2p_epoch(call) < *last;
    *last = xp_ep_p2p_epoch(call);
    if (!starts_over || mine->arrived == NULL)
        return XP_OK;
    const size_t n_words = (size_t)s->n_ranks * (size_t)xp_ep_p2p_arrival_words(s);
    return xp_cuda_check(cudaMemsetAsync(mine->arrived, 0, n_words * sizeof *mine->arrived, stream),
                         call->phase);
}

/* ---- in the group's mode ------------------------------------------------------------------- */

xp_status xp_ep_p2p_cuda_barrier(const xp_ep_call *call, cudaStream_t stream,
                                 const xp_ep_barrier *barrier) {
    const xp_ep_sync_mode sync = xp_ep_p2p_sync_mode(call->group);
    if (barrier->point == P2P_READY)
        XP_TRY(clear_old_arrivals(call, stream));
    if (sync == XP_EP_SYNC_KERNEL || barrier->n_payload > 0 || barrier->payload_address != NULL) {
        const xp_ep_barrier_args args = xp_ep_p2p_barrier_args(call, barrier);
        XP_TRY(xp_ep_cuda_launch_barrier(stream, &args));
    }
    if (sync == XP_EP_SYNC_KERNEL)
        return XP_OK;
    if (sync == XP_EP_SYNC_EVENTS)
        return event_barrier(call, stream, barrier->point);
    xp_ep_add(&call->group->totals.n_host_waits, 1);
    XP_TRY(xp_stream_sync(call->stream));
    return host_barrier(call, barrier->point);
}
