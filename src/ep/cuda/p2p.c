/*
 * p2p on GPUs: the kernels of p2p_rows.cu write where rows are wanted, with a meeting before and
 * after. How ranks meet is the group's (xp_ep_cuda_meeting): inside a kernel, or the hosts stand in
 * for it and show each other how far their streams have come.
 */
#include "ep/transport/p2p.h"

#include <stdio.h>
#include <string.h>
#include "comm/provider.h"
#include "core/file.h"
#include "ep/cuda/cuda_group.h"

_Static_assert(sizeof(p2p_flag) == XP_EP_CUDA_FLAG_WORDS * sizeof(uint32_t), "a flag's line");
_Static_assert(sizeof(xp_ep_cuda_fate) <= 256, "lies where the CPU's bell does");

/* What a meeting is for, and what each rank brings to the others. */
typedef struct meeting {
    p2p_point point;
    int64_t least_rounds; /* see xp_ep_cuda_meet */
    bool locks;
    const int32_t *brought;
    int64_t n_brought, stride;
    const void *shown;
} meeting;

/* Where `peer` finds what this rank brings to a point; NULL: nothing is brought. */
static int32_t *mailbox_of(const xp_ep_step *step, const p2p_area *peer, p2p_point point) {
    const xp_ep_shape *s = &step->group->shape;
    const int64_t me = step->group->rank;
    switch (point) {
    case P2P_COUNTS:
        return peer->blocks + me * s->block_ints;
    case P2P_STARTS:
        return peer->starts + me * s->max_rounds;
    case P2P_READY:
        return (int32_t *)(peer->recv_at + me);
    default:
        return NULL;
    }
}

static uint32_t *flags_of(const xp_ep_step *step, const p2p_area *area, p2p_point point) {
    return (uint32_t *)(area->flags + (int)point * step->group->shape.n_ranks);
}

static xp_ep_cuda_meet describe(const xp_ep_step *step, const meeting *what) {
    const xp_ep_group *group = step->group;
    const p2p_state *p2p = group->state;
    xp_ep_cuda_meet m = {
        .n_ranks = group->shape.n_ranks,
        .rank = group->rank,
        .point = (int)what->point,
        .phase = xp_ep_cuda_phase(step->phase),
        .epoch = p2p->epochs[step->plan->slot],
        .waits = xp_ep_cuda_state_of(step)->meets == XP_EP_MEET_ON_GPU,
        .locks = what->locks,
        .timeout_ns = (uint64_t)(group->timeout_s * 1e9),
        .round = step->round,
        .least_rounds = what->least_rounds,
        .totals = step->plan->totals,
        .own_data = flags_of(step, xp_ep_p2p_area(step, group->rank), P2P_DATA),
        .brought = what->brought,
        .n_brought = what->n_brought,
        .stride = what->stride,
        .shown = what->shown,
        .news = xp_ep_cuda_state_of(step)->news_on_device,
    };
    for (int r = 0; r < m.n_ranks; r++) {
        const p2p_area *area = xp_ep_p2p_area(step, r);
        m.flags[r] = flags_of(step, area, what->point);
        m.busy[r] = flags_of(step, area, P2P_BUSY);
        m.fates[r] = (xp_ep_cuda_fate *)area->bell;
        m.to[r] = mailbox_of(step, area, what->point);
    }
    return m;
}

/* Rows would be written where nobody wants them. */
static xp_status refuse_meeting(const xp_ep_step *step, int rank, const xp_ep_cuda_note *mine,
                                const xp_ep_cuda_note *theirs) {
    const xp_comm *comm = step->group->comm;
    char text[320];
    snprintf(
        text, sizeof text,
        "rank %d is in %s (%s, call %u of slot %d, round %lld), rank %d in another call (%s, "
        "call %u of slot %d, round %lld): all ranks must make the same calls in the same order",
        xp_comm_world_rank(comm, step->group->rank), step->phase,
        xp_ep_p2p_point_name((p2p_point)mine->point), mine->epoch, mine->slot,
        (long long)mine->round, xp_comm_world_rank(comm, rank),
        xp_ep_p2p_point_name((p2p_point)theirs->point), theirs->epoch, theirs->slot,
        (long long)theirs->round);
    return xp_comm_fail_mismatch(step->group->comm, text);
}

static xp_status meet_hosts(const xp_ep_step *step, p2p_point point) {
    xp_ep_group *group = step->group;
    const xp_ep_cuda_state *state = group->device_state;
    const p2p_state *p2p = group->state;
    xp_ep_cuda_note mine;
    memset(&mine, 0, sizeof mine);
    mine.slot = step->plan->slot;
    mine.point = (int32_t)point;
    mine.epoch = p2p->epochs[step->plan->slot];
    mine.round = step->round;
    const double began = xp_time_s();
    xp_comm_set_phase(state->hosts, step->phase);
    XP_TRY(xp_comm_all_gather(state->hosts, &mine, state->notes, sizeof mine, XP_U8, NULL));
    xp_ep_add(&group->totals.wait_ns, (int64_t)((xp_time_s() - began) * 1e9));
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (memcmp(&state->notes[r], &mine, sizeof mine) != 0)
            return refuse_meeting(step, r, &mine, &state->notes[r]);
    return XP_OK;
}

static xp_status meet_by_marks(const xp_ep_step *step, cudaStream_t stream, p2p_point point) {
    const xp_ep_group *group = step->group;
    xp_ep_cuda_state *state = group->device_state;
    const int turn = (int)(state->n_meetings++ % 2);
    XP_TRY(xp_cuda_check(cudaEventRecord(state->marks[turn], stream), step->phase));
    XP_TRY(meet_hosts(step, point));
    for (int r = 0; r < group->shape.n_ranks; r++)
        if (r != group->rank)
            XP_TRY(xp_cuda_check(cudaStreamWaitEvent(stream, state->all_marks[2 * r + turn], 0),
                                 step->phase));
    return XP_OK;
}

xp_status xp_ep_cuda_attend(const xp_ep_step *step, cudaStream_t stream) {
    XP_TRY(meet_by_marks(step, stream, P2P_READY));
    return meet_by_marks(step, stream, P2P_DATA);
}

static xp_status meet(const xp_ep_step *step, cudaStream_t stream, const meeting *what) {
    xp_ep_group *group = step->group;
    const xp_ep_cuda_state *state = group->device_state;
    if (state->meets == XP_EP_MEET_ON_GPU || what->n_brought > 0 || what->shown != NULL) {
        const xp_ep_cuda_meet m = describe(step, what);
        XP_TRY(xp_ep_cuda_hold_meeting(stream, &m));
    }
    if (state->meets == XP_EP_MEET_ON_GPU)
        return XP_OK;
    if (state->meets == XP_EP_MEET_BY_MARKS)
        return meet_by_marks(step, stream, what->point);
    xp_ep_add(&group->totals.n_host_waits, 1);
    XP_TRY(xp_stream_sync(step->stream));
    return meet_hosts(step, what->point);
}

/* Only the receiver knows where the rows of later rounds start. */
static xp_status exchange_starts(const xp_ep_step *step, cudaStream_t stream,
                                 const xp_ep_cuda_plan *v) {
    const int64_t n_rounds = step->group->shape.max_rounds;
    if (n_rounds > 1)
        XP_TRY(meet(step, stream,
                    &(meeting){.point = P2P_STARTS,
                               .least_rounds = 1,
                               .brought = v->dest_slot,
                               .n_brought = n_rounds,
                               .stride = n_rounds}));
    return xp_ep_cuda_place_rounds(stream, v, xp_ep_p2p_area(step, step->group->rank)->starts);
}

/* Where the host waits anyway, it tells of bad routing at once, and need not launch rounds
 * that are empty. */
static xp_status read_plan(const xp_ep_step *step) {
    const xp_ep_shape *s = &step->group->shape;
    xp_ep_plan *plan = step->plan;
    const xp_ep_cuda_fetch all[] = {
        {plan->host->blocks, plan->blocks,
         (size_t)s->n_ranks * (size_t)s->block_ints * sizeof *plan->blocks},
        {plan->host->totals, plan->totals, sizeof *plan->totals},
    };
    XP_TRY(xp_ep_cuda_fetch_all(step, all, 2));
    plan->n_rounds = plan->host->totals[0];
    return xp_ep_plan_explain(step->group, plan->host->blocks);
}

static xp_status build(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v) {
    const xp_ep_shape *s = &step->group->shape;
    const p2p_area *mine = xp_ep_p2p_area(step, step->group->rank);
    xp_ep_p2p_begin(step);
    for (int d = 0; d < s->n_ranks; d++)
        v->assignments_to[d] = (xp_ep_cuda_assignment *)xp_ep_p2p_area(step, d)->assignments;
    v->assignments = (const xp_ep_cuda_assignment *)mine->assignments;
    XP_TRY(xp_ep_cuda_route(stream, v));
    XP_TRY(meet(step, stream,
                &(meeting){.point = P2P_COUNTS,
                           .least_rounds = -1,
                           .brought = v->block,
                           .n_brought = s->block_ints}));
    XP_TRY(xp_cuda_check(
        cudaMemcpyAsync(v->blocks, mine->blocks,
                        (size_t)s->n_ranks * (size_t)s->block_ints * sizeof *v->blocks,
                        cudaMemcpyDeviceToDevice, stream),
        step->phase));
    XP_TRY(xp_ep_cuda_build_send(stream, v));
    /* Also when routing is refused: a rank that went on to its next plan would overwrite counts
     * that others still read. */
    XP_TRY(meet(step, stream, &(meeting){.point = P2P_ASSIGNMENTS, .least_rounds = -1}));
    XP_TRY(xp_ep_cuda_build_recv(stream, v));
    XP_TRY(exchange_starts(step, stream, v));
    return xp_ep_cuda_state_of(step)->meets == XP_EP_MEET_ON_HOST ? read_plan(step) : XP_OK;
}

static xp_ep_cuda_peers peers_of(const xp_ep_step *step, void *recv) {
    const p2p_state *p2p = step->group->state;
    const int me = step->group->rank;
    xp_ep_cuda_peers peers = {.recv_at = p2p->direct ? xp_ep_p2p_area(step, me)->recv_at : NULL};
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const p2p_area *area = xp_ep_p2p_area(step, r);
        peers.recv[r] = p2p->direct ? recv : area->recv;
        peers.home[r] = area->home;
        peers.weights[r] = area->weights;
    }
    return peers;
}

static xp_status dispatch(const xp_ep_step *step, cudaStream_t stream, const void *x, void *recv) {
    const p2p_state *p2p = step->group->state;
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const xp_ep_cuda_peers peers = peers_of(step, recv);
    xp_ep_p2p_begin(step);
    XP_TRY(meet(step, stream,
                &(meeting){.point = P2P_READY,
                           .least_rounds = step->round,
                           .locks = p2p->direct,
                           .shown = p2p->direct ? recv : NULL}));
    XP_TRY(xp_ep_cuda_push_rows(stream, &v, &rows, &peers, x));
    XP_TRY(meet(step, stream, &(meeting){.point = P2P_DATA, .least_rounds = step->round}));
    return p2p->direct ? XP_OK
                       : xp_ep_cuda_take_rows(stream, &v, &rows,
                                              xp_ep_p2p_area(step, step->group->rank)->recv, recv);
}

static xp_status bring_home(const xp_ep_step *step, cudaStream_t stream, const xp_ep_home *home) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const xp_ep_cuda_peers peers = peers_of(step, NULL);
    const p2p_area *mine = xp_ep_p2p_area(step, step->group->rank);
    xp_ep_p2p_begin(step);
    XP_TRY(meet(step, stream, &(meeting){.point = P2P_READY, .least_rounds = step->round}));
    XP_TRY(xp_ep_cuda_push_sums(stream, &v, &rows, &peers, home->y));
    if (home->d_weight != NULL)
        XP_TRY(xp_ep_cuda_push_weights(stream, &v, step->round, &peers, home->d_weight));
    XP_TRY(meet(step, stream, &(meeting){.point = P2P_DATA, .least_rounds = step->round}));
    XP_TRY(xp_ep_cuda_sum_arrived(stream, &v, &rows, mine->home, home->y, home->out));
    if (home->d_weight == NULL || home->d_topk_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_place_weights(stream, &v, step->round, mine->weights, home->d_topk_weight);
}

const xp_ep_cuda_exchange xp_ep_cuda_p2p = {
    .build = build, .dispatch = dispatch, .bring_home = bring_home};
