#include "ep/cuda/mailbox.h"

#include "comm/provider.h"

static const xp_ep_exchange *exchange_of(const xp_ep_step *step) {
    return &xp_ep_cuda_state_of(step)->exchange;
}

static xp_status exchange(const xp_ep_step *step, const xp_ep_mailbox *box, const void *send,
                          void *recv) {
    return xp_ep_exchange_run(step, exchange_of(step), box->comm, send, recv, step->stream);
}

/* Assignments between two ranks as the fetched counts tell. */
static int32_t assignments_between(const xp_ep_step *step, int source, int dest) {
    const xp_ep_shape *s = &step->group->shape;
    const int32_t *blocks = step->plan->host->blocks;
    int32_t n = 0;
    for (int e = 0; e < s->n_local; e++)
        n += blocks[source * s->block_ints + dest * s->n_local + e];
    return n;
}

/* From the fetched counts: rounds, and all assignments as those of one round. */
static void derive(const xp_ep_step *step) {
    const xp_ep_shape *s = &step->group->shape;
    const int n = s->n_ranks, me = step->group->rank;
    int32_t *first = step->plan->host->round_assignments, *end = first + (ptrdiff_t)2 * n;
    int32_t out = 0, in = 0;
    step->plan->n_rounds = 1;
    for (int r = 0; r < n; r++) {
        int64_t all = 0;
        for (int source = 0; source < n; source++)
            all += assignments_between(step, source, r);
        const int64_t rounds = xp_ep_shape_rounds(s, all);
        step->plan->n_rounds = rounds > step->plan->n_rounds ? rounds : step->plan->n_rounds;
        first[r] = out;
        first[n + r] = in;
        end[r] = out += assignments_between(step, me, r);
        end[n + r] = in += assignments_between(step, r, me);
    }
}

xp_ep_span xp_ep_cuda_send_assignments(const xp_ep_step *step, int r) {
    const int n = step->group->shape.n_ranks;
    const int32_t *at = step->plan->host->round_assignments + step->round * 2 * n + r;
    return (xp_ep_span){.first = at[0], .n = at[2 * n] - at[0]};
}

xp_ep_span xp_ep_cuda_recv_assignments(const xp_ep_step *step, int r) {
    return xp_ep_cuda_send_assignments(step, step->group->shape.n_ranks + r);
}

/* All assignments, each at its place: derive() has made one round of them. */
static xp_status share_assignments(const xp_ep_step *step, const xp_ep_mailbox *box) {
    const int64_t size = sizeof(xp_ep_assignment);
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_cuda_send_assignments(step, r),
                         in = xp_ep_cuda_recv_assignments(step, r);
        xp_ep_exchange_set(exchange_of(step), r, out.n * size, out.first * size, in.n * size,
                           in.first * size);
    }
    return exchange(step, box, box->assignments_out, box->assignments_in);
}

/* One wait for `own` and what a transport wants besides. */
static xp_status fetch(const xp_ep_step *step, xp_ep_cuda_fetch own, const xp_ep_cuda_fetch *more,
                       int n_more) {
    xp_ep_cuda_fetch all[3] = {own};
    for (int i = 0; i < n_more; i++)
        all[1 + i] = more[i];
    return xp_ep_cuda_fetch_all(step, all, 1 + n_more);
}

xp_status xp_ep_cuda_mailbox_build(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v,
                                   const xp_ep_mailbox *box, const xp_ep_cuda_more *more) {
    const xp_ep_shape *s = &step->group->shape;
    xp_ep_plan *plan = step->plan;
    const xp_ep_cuda_fetch counts = {plan->host->blocks, plan->blocks,
                                     (size_t)s->n_ranks * (size_t)s->block_ints * sizeof(int32_t)};
    const xp_ep_cuda_fetch rounds = {plan->host->round_assignments, plan->round_assignments,
                                     (size_t)(s->max_rounds + 1) * 2 * (size_t)s->n_ranks *
                                         sizeof(int32_t)};
    v->packs_assignments = true;
    for (int d = 0; d < s->n_ranks; d++)
        v->assignments_to[d] = (xp_ep_cuda_assignment *)box->assignments_out;
    v->assignments = (const xp_ep_cuda_assignment *)box->assignments_in;
    XP_TRY(xp_ep_cuda_route(stream, v));
    xp_comm_set_phase(box->comm, step->phase);
    XP_TRY(xp_comm_all_gather(box->comm, v->block, v->blocks, s->block_ints, XP_I32, step->stream));
    XP_TRY(xp_ep_cuda_build_send(stream, v));
    XP_TRY(fetch(step, counts, more->first, more->n_first));
    XP_TRY(xp_ep_plan_explain(step->group, plan->host->blocks));
    derive(step);
    XP_TRY(share_assignments(step, box));
    XP_TRY(xp_ep_cuda_build_recv(stream, v));
    return plan->n_rounds > 1 ? fetch(step, rounds, more->last, more->n_last) : XP_OK;
}

xp_status xp_ep_cuda_exchange_assignments(const xp_ep_step *step, const xp_ep_mailbox *box,
                                          bool home, int64_t size, const void *send, void *recv) {
    int64_t arrived = 0;
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_cuda_send_assignments(step, r);
        const int64_t n_in = xp_ep_cuda_recv_assignments(step, r).n;
        if (home)
            xp_ep_exchange_set(exchange_of(step), r, n_in * size, arrived * size, out.n * size,
                               out.first * size);
        else
            xp_ep_exchange_set(exchange_of(step), r, out.n * size, out.first * size, n_in * size,
                               arrived * size);
        arrived += n_in;
    }
    return exchange(step, box, send, recv);
}

xp_status xp_ep_cuda_mailbox_weights(const xp_ep_step *step, const xp_ep_mailbox *box,
                                     const xp_ep_home *home) {
    cudaStream_t stream;
    if (home->d_weight == NULL)
        return XP_OK;
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    XP_TRY(xp_ep_cuda_pack_weights(stream, &v, step->round, home->d_weight, box->weights_out));
    XP_TRY(xp_ep_cuda_exchange_assignments(step, box, true, sizeof(float), box->weights_out,
                                           box->weights_in));
    if (home->d_topk_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_place_weights(stream, &v, step->round, box->weights_in, home->d_topk_weight);
}
