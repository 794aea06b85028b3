#include "ep/common/cuda/metadata.h"

#include "comm/provider.h"

static const xp_ep_exchange *exchange_of(const xp_ep_call *call) {
    return &xp_ep_cuda_state_of(call->group)->exchange;
}

static xp_status run_exchange(const xp_ep_call *call, const xp_ep_metadata *metadata,
                              const void *send, void *recv) {
    return xp_ep_exchange_run(call, exchange_of(call), metadata->comm, send, recv, call->stream);
}

/* From the fetched counts: the number of rounds, and all assignments as those of one round. */
static void read_counts(const xp_ep_call *call) {
    const xp_ep_shape *s = &call->group->shape;
    const int32_t *counts = call->plan->host->rank_counts;
    const int n = s->n_ranks, me = call->group->rank;
    int32_t *first = call->plan->host->round_assignments, *end = first + (ptrdiff_t)2 * n;
    int32_t out = 0, in = 0;
    call->plan->n_rounds = 1;
    call->plan->host_knows_rounds = true;
    for (int r = 0; r < n; r++) {
        int64_t all = 0;
        for (int source = 0; source < n; source++)
            all += xp_ep_counts_assignments(s, counts, source, r);
        const int64_t rounds = xp_ep_shape_rounds(s, all);
        call->plan->n_rounds = rounds > call->plan->n_rounds ? rounds : call->plan->n_rounds;
        first[r] = out;
        first[n + r] = in;
        end[r] = out += xp_ep_counts_assignments(s, counts, me, r);
        end[n + r] = in += xp_ep_counts_assignments(s, counts, r, me);
    }
}

xp_ep_span xp_ep_cuda_send_assignments(const xp_ep_call *call, int r) {
    const int n = call->group->shape.n_ranks;
    const int32_t *at = call->plan->host->round_assignments + call->round * 2 * n + r;
    return (xp_ep_span){.first = at[0], .n = at[2 * n] - at[0]};
}

xp_ep_span xp_ep_cuda_recv_assignments(const xp_ep_call *call, int r) {
    return xp_ep_cuda_send_assignments(call, call->group->shape.n_ranks + r);
}

/* All assignments, each at its index: read_counts() has made one round of them. */
static xp_status exchange_assignments(const xp_ep_call *call, const xp_ep_metadata *metadata) {
    const int64_t size = sizeof(xp_ep_gpu_assignment);
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_cuda_send_assignments(call, r),
                         in = xp_ep_cuda_recv_assignments(call, r);
        xp_ep_exchange_set(exchange_of(call), r, out.n * size, out.first * size, in.n * size,
                           in.first * size);
    }
    return run_exchange(call, metadata, metadata->assignments_out, metadata->assignments_in);
}

/* One wait for `own` and what a transport reads besides. */
static xp_status fetch(const xp_ep_call *call, xp_ep_cuda_fetch own, const xp_ep_cuda_fetch *more,
                       int n_more) {
    xp_ep_cuda_fetch all[3] = {own};
    for (int i = 0; i < n_more; i++)
        all[1 + i] = more[i];
    return xp_ep_cuda_fetch_all(call, all, 1 + n_more);
}

xp_status xp_ep_cuda_metadata_build(const xp_ep_call *call, cudaStream_t stream, xp_ep_cuda_plan *v,
                                    const xp_ep_metadata *metadata, const xp_ep_cuda_more *more) {
    const xp_ep_shape *s = &call->group->shape;
    xp_ep_plan *plan = call->plan;
    const xp_ep_cuda_fetch counts = {plan->host->rank_counts, plan->rank_counts,
                                     (size_t)s->n_ranks * (size_t)s->counts_ints * sizeof(int32_t)};
    const xp_ep_cuda_fetch rounds = {plan->host->round_assignments, plan->round_assignments,
                                     (size_t)(s->max_rounds + 1) * 2 * (size_t)s->n_ranks *
                                         sizeof(int32_t)};
    v->assignments_out = metadata->assignments_out;
    for (int r = 0; r < s->n_ranks; r++)
        v->assignments_in[r] = metadata->assignments_in;
    XP_TRY(xp_ep_cuda_count_plan(stream, v));
    xp_comm_set_phase(metadata->comm, call->phase);
    XP_TRY(xp_comm_all_gather(metadata->comm, v->own_counts, v->rank_counts, s->counts_ints, XP_I32,
                              call->stream));
    XP_TRY(xp_ep_cuda_list_plan(stream, v));
    XP_TRY(fetch(call, counts, more->first, more->n_first));
    XP_TRY(xp_ep_counts_check(call->group, plan->host->rank_counts));
    read_counts(call);
    XP_TRY(exchange_assignments(call, metadata));
    XP_TRY(xp_ep_cuda_place_plan(stream, v));
    return plan->n_rounds > 1 ? fetch(call, rounds, more->last, more->n_last) : XP_OK;
}

xp_status xp_ep_cuda_exchange_items(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                    bool combine, int64_t size, const void *send, void *recv) {
    int64_t arrived = 0;
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_cuda_send_assignments(call, r);
        const int64_t n_in = xp_ep_cuda_recv_assignments(call, r).n;
        if (combine)
            xp_ep_exchange_set(exchange_of(call), r, n_in * size, arrived * size, out.n * size,
                               out.first * size);
        else
            xp_ep_exchange_set(exchange_of(call), r, out.n * size, out.first * size, n_in * size,
                               arrived * size);
        arrived += n_in;
    }
    return run_exchange(call, metadata, send, recv);
}

xp_status xp_ep_cuda_metadata_weights(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                      const xp_ep_combine_args *args) {
    cudaStream_t stream;
    if (args->d_weight == NULL)
        return XP_OK;
    const xp_ep_cuda_plan v = xp_ep_cuda_plan_view(call);
    XP_TRY(xp_cuda_enter(call->stream, &stream));
    XP_TRY(xp_ep_cuda_pack_weights(stream, &v, call->round, args->d_weight, metadata->weights_out));
    XP_TRY(xp_ep_cuda_exchange_items(call, metadata, true, sizeof(float), metadata->weights_out,
                                     metadata->weights_in));
    if (args->d_topk_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_scatter_weights(stream, &v, call->round, metadata->weights_in,
                                      args->d_topk_weight);
}
