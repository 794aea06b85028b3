/*
 * Each rank has a GPU of its own: the plan's kernels tell the others what they have made and wait for
 * theirs. Elsewhere barriers stand between kernels that do not wait.
 */
#include "ep/p2p/cuda/plan.h"

#include "ep/p2p/cuda/barrier.h"

static xp_ep_barrier counts_barrier(const xp_ep_call *call, const xp_ep_cuda_plan *v) {
    return (xp_ep_barrier){.point = P2P_COUNTS,
                           .min_rounds = -1,
                           .payload = v->own_counts,
                           .n_payload = call->group->shape.counts_ints};
}

/* Also when routing is refused: a rank that went on to its next plan would overwrite counts that others
 * still read. */
static const xp_ep_barrier assignments_barrier = {.point = P2P_ASSIGNMENTS, .min_rounds = -1};

static xp_ep_barrier starts_barrier(const xp_ep_call *call, const xp_ep_cuda_plan *v) {
    const int64_t n_rounds = call->group->shape.max_rounds;
    return (xp_ep_barrier){.point = P2P_STARTS,
                           .min_rounds = 1,
                           .payload = v->dest_slot,
                           .n_payload = n_rounds,
                           .stride = n_rounds};
}

/* Where the host waits anyway, it reports bad routing at once and need not launch empty rounds. */
static xp_status read_plan(const xp_ep_call *call) {
    const xp_ep_shape *s = &call->group->shape;
    xp_ep_plan *plan = call->plan;
    const xp_ep_cuda_fetch all[] = {
        {plan->host->rank_counts, plan->rank_counts,
         (size_t)s->n_ranks * (size_t)s->counts_ints * sizeof *plan->rank_counts},
        {plan->host->totals, plan->totals, sizeof *plan->totals},
    };
    XP_TRY(xp_ep_cuda_fetch_all(call, all, 2));
    plan->n_rounds = plan->host->totals[0];
    plan->host_knows_rounds = true;
    return xp_ep_counts_check(call->group, plan->host->rank_counts);
}

static xp_status build_with_barriers(const xp_ep_call *call, cudaStream_t stream,
                                     const xp_ep_cuda_plan *v) {
    const xp_ep_barrier counts = counts_barrier(call, v), starts = starts_barrier(call, v);
    XP_TRY(xp_ep_cuda_count_plan(stream, v));
    XP_TRY(xp_ep_p2p_cuda_barrier(call, stream, &counts));
    XP_TRY(xp_ep_cuda_list_plan(stream, v));
    XP_TRY(xp_ep_p2p_cuda_barrier(call, stream, &assignments_barrier));
    XP_TRY(xp_ep_cuda_place_plan(stream, v));
    if (call->group->shape.max_rounds > 1) {
        XP_TRY(xp_ep_p2p_cuda_barrier(call, stream, &starts));
        XP_TRY(
            xp_ep_cuda_set_dest_slots(stream, v, xp_ep_p2p_area(call, call->group->rank)->starts));
    }
    return xp_ep_p2p_sync_mode(call->group) == XP_EP_SYNC_HOST ? read_plan(call) : XP_OK;
}

static xp_status build_alone(const xp_ep_call *call, cudaStream_t stream,
                             const xp_ep_cuda_plan *v) {
    const xp_ep_barrier counts = counts_barrier(call, v), starts = starts_barrier(call, v);
    const xp_ep_plan_barriers barriers = {.counts = xp_ep_p2p_barrier_args(call, &counts),
                                          .assignments =
                                              xp_ep_p2p_barrier_args(call, &assignments_barrier),
                                          .starts = xp_ep_p2p_barrier_args(call, &starts)};
    return xp_ep_cuda_p2p_plan(stream, v, &barriers,
                               xp_ep_p2p_area(call, call->group->rank)->starts);
}

xp_status xp_ep_p2p_cuda_build_plan(const xp_ep_call *call, cudaStream_t stream,
                                    xp_ep_cuda_plan *v) {
    const p2p_area *mine = xp_ep_p2p_area(call, call->group->rank);
    v->counts_in = mine->rank_counts;
    v->assignments_out = mine->assignments;
    v->pulls = true;
    for (int s = 0; s < call->group->shape.n_ranks; s++)
        v->assignments_in[s] = xp_ep_p2p_area(call, s)->assignments;
    return xp_ep_p2p_sync_mode(call->group) == XP_EP_SYNC_KERNEL
               ? build_alone(call, stream, v)
               : build_with_barriers(call, stream, v);
}
