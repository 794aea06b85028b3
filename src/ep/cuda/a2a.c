/*
 * a2a on GPUs: kernels pack one row a pick, the communicator exchanges device memory, kernels
 * unpack and add. How many bytes go where the host must know: it waits for the plan once a layer,
 * and once more when the plan has several rounds.
 */
#include "ep/transport/a2a.h"

#include "comm/provider.h"
#include "ep/cuda/cuda_group.h"

/* The all-to-all being made: `n` things of `size` bytes between this rank and rank r. */
typedef struct bundle {
    int64_t n, at;
} bundle;

static void set(const xp_ep_step *step, int r, bundle out, bundle in, int64_t size) {
    const int n_ranks = step->group->shape.n_ranks;
    int64_t *bytes = xp_ep_cuda_state_of(step)->bytes;
    bytes[r] = out.n * size;
    bytes[n_ranks + r] = out.at * size;
    bytes[2 * n_ranks + r] = in.n * size;
    bytes[3 * n_ranks + r] = in.at * size;
}

static xp_status exchange(const xp_ep_step *step, const void *send, void *recv) {
    const int n_ranks = step->group->shape.n_ranks;
    const int64_t *bytes = xp_ep_cuda_state_of(step)->bytes;
    xp_comm *comm = xp_ep_a2a_slot(step)->box.comm;
    const xp_alltoallv_args args = {.send = send,
                                    .send_bytes = bytes,
                                    .send_offsets = bytes + n_ranks,
                                    .recv = recv,
                                    .recv_bytes = bytes + 2 * n_ranks,
                                    .recv_offsets = bytes + 3 * n_ranks};
    xp_comm_set_phase(comm, step->phase);
    return xp_comm_all_to_allv(comm, &args, step->stream);
}

/* Picks between two ranks as the fetched counts tell. */
static int32_t picks_between(const xp_ep_step *step, int source, int dest) {
    const xp_ep_shape *s = &step->group->shape;
    const int32_t *blocks = step->plan->host->blocks;
    int32_t n = 0;
    for (int e = 0; e < s->n_local; e++)
        n += blocks[source * s->block_ints + dest * s->n_local + e];
    return n;
}

/* From the fetched counts: rounds, and all picks as those of one round. */
static void derive(const xp_ep_step *step) {
    const xp_ep_shape *s = &step->group->shape;
    const int n = s->n_ranks, me = step->group->rank;
    int32_t *first = step->plan->host->round_picks, *end = first + (ptrdiff_t)2 * n;
    int32_t out = 0, in = 0;
    step->plan->n_rounds = 1;
    for (int r = 0; r < n; r++) {
        int64_t all = 0;
        for (int source = 0; source < n; source++)
            all += picks_between(step, source, r);
        const int64_t rounds = xp_ep_shape_rounds(s, all);
        step->plan->n_rounds = rounds > step->plan->n_rounds ? rounds : step->plan->n_rounds;
        first[r] = out;
        first[n + r] = in;
        end[r] = out += picks_between(step, me, r);
        end[n + r] = in += picks_between(step, r, me);
    }
}

/* Send or recv picks of a round to or from rank r. */
static bundle send_picks(const xp_ep_step *step, int r) {
    const int n = step->group->shape.n_ranks;
    const int32_t *at = step->plan->host->round_picks + step->round * 2 * n + r;
    return (bundle){.n = at[2 * n] - at[0], .at = at[0]};
}
static bundle recv_picks(const xp_ep_step *step, int r) {
    return send_picks(step, step->group->shape.n_ranks + r);
}

static xp_status exchange_picks(const xp_ep_step *step) {
    const xp_ep_mailbox *box = &xp_ep_a2a_slot(step)->box;
    for (int r = 0; r < step->group->shape.n_ranks; r++)
        set(step, r, send_picks(step, r), recv_picks(step, r), sizeof(xp_ep_pick));
    return exchange(step, box->picks_out, box->picks_in);
}

static xp_status build(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v) {
    const xp_ep_shape *s = &step->group->shape;
    xp_ep_plan *plan = step->plan;
    const xp_ep_mailbox *box = &xp_ep_a2a_slot(step)->box;
    const xp_ep_cuda_fetch counts = {plan->host->blocks, plan->blocks,
                                     (size_t)s->n_ranks * (size_t)s->block_ints * sizeof(int32_t)};
    const xp_ep_cuda_fetch rounds = {plan->host->round_picks, plan->round_picks,
                                     (size_t)(s->max_rounds + 1) * 2 * (size_t)s->n_ranks *
                                         sizeof(int32_t)};
    v->packs_picks = true;
    for (int d = 0; d < s->n_ranks; d++)
        v->picks_to[d] = (xp_ep_cuda_pick *)box->picks_out;
    v->picks = (const xp_ep_cuda_pick *)box->picks_in;
    XP_TRY(xp_ep_cuda_route(stream, v));
    xp_comm_set_phase(box->comm, step->phase);
    XP_TRY(xp_comm_all_gather(box->comm, v->block, v->blocks, s->block_ints, XP_I32, step->stream));
    XP_TRY(xp_ep_cuda_build_send(stream, v));
    XP_TRY(xp_ep_cuda_fetch_all(step, &counts, 1));
    XP_TRY(xp_ep_plan_explain(step->group, plan->host->blocks));
    derive(step);
    XP_TRY(exchange_picks(step));
    XP_TRY(xp_ep_cuda_build_recv(stream, v));
    return plan->n_rounds > 1 ? xp_ep_cuda_fetch_all(step, &rounds, 1) : XP_OK;
}

/* Pick rows (or gradients of weights) of this step's round: the recv side's lie packed. */
static void set_round(const xp_ep_step *step, bool home, int64_t size) {
    int64_t arrived = 0;
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const bundle out = send_picks(step, r);
        const bundle in = {.n = recv_picks(step, r).n, .at = arrived};
        arrived += in.n;
        if (home)
            set(step, r, in, out, size);
        else
            set(step, r, out, in, size);
    }
}

static void count_bytes(const xp_ep_step *step, bool home) {
    xp_ep_group *group = step->group;
    for (int r = 0; r < group->shape.n_ranks; r++)
        xp_ep_add(r == group->rank ? &group->totals.bytes_kept : &group->totals.bytes_sent_remote,
                  (home ? recv_picks(step, r).n : send_picks(step, r).n) *
                      (int64_t)group->shape.row_bytes);
}

static xp_status dispatch(const xp_ep_step *step, cudaStream_t stream, const void *x, void *recv) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const a2a_slot *slot = xp_ep_a2a_slot(step);
    XP_TRY(xp_ep_cuda_pack_rows(stream, &v, &rows, x, slot->out));
    set_round(step, false, (int64_t)rows.row_bytes);
    count_bytes(step, false);
    XP_TRY(exchange(step, slot->out, slot->in));
    return xp_ep_cuda_unpack_rows(stream, &v, &rows, slot->in, recv);
}

static xp_status bring_home(const xp_ep_step *step, cudaStream_t stream, const xp_ep_home *home) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const a2a_slot *slot = xp_ep_a2a_slot(step);
    XP_TRY(xp_ep_cuda_pack_picks(stream, &v, &rows, home->y, slot->in));
    set_round(step, true, (int64_t)rows.row_bytes);
    count_bytes(step, true);
    /* Rows of earlier rounds lie at other places of `out` and are still there for the sum. */
    XP_TRY(exchange(step, slot->in, slot->out));
    XP_TRY(xp_ep_cuda_sum_picks(stream, &v, &rows, slot->out, home->out));
    if (home->d_weight == NULL)
        return XP_OK;
    XP_TRY(xp_ep_cuda_pack_weights(stream, &v, step->round, home->d_weight, slot->box.weights_out));
    set_round(step, true, sizeof(float));
    XP_TRY(exchange(step, slot->box.weights_out, slot->box.weights_in));
    if (home->d_topk_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_place_weights(stream, &v, step->round, slot->box.weights_in,
                                    home->d_topk_weight);
}

const xp_ep_cuda_exchange xp_ep_cuda_a2a = {
    .build = build, .dispatch = dispatch, .bring_home = bring_home};
