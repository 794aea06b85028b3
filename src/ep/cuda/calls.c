/* Calls on a GPU: the host's half launches and returns. */
#include <stdio.h>
#include <string.h>
#include "comm/provider.h"
#include "ep/cuda/cuda_group.h"
#include "ep/transport/p2p.h"

static const xp_ep_cuda_exchange *exchange_of(const xp_ep_group *group) {
    switch (group->transport) {
    case XP_EP_A2A:
        return &xp_ep_cuda_a2a;
    case XP_EP_HIERARCHICAL:
        return &xp_ep_cuda_hierarchical;
    default:
        return &xp_ep_cuda_p2p;
    }
}

/* ---- around a call ----------------------------------------------------------------------- */

xp_status xp_ep_cuda_begin(const xp_ep_step *step, cudaStream_t *stream) {
    const xp_ep_group *group = step->group;
    const xp_ep_cuda_state *state = group->device_state;
    XP_TRY(xp_cuda_enter(step->stream, stream));
    if (group->shape.n_ranks == 1)
        return XP_OK;
    xp_ep_gates_enter(state->gates, group->rank);
    xp_status status = xp_ep_cuda_check_group(group);
    if (status == XP_OK)
        status = xp_comm_async_error(group->comm);
    if (status != XP_OK)
        xp_ep_gates_leave(state->gates, group->rank);
    return status;
}

xp_status xp_ep_cuda_end(const xp_ep_step *step, xp_status status) {
    const xp_ep_cuda_state *state = xp_ep_cuda_state_of(step);
    if (step->group->shape.n_ranks == 1)
        return status;
    xp_ep_gates_leave(state->gates, step->group->rank);
    /* Routing is refused alike on all ranks; else the others must hear that this one is out. */
    const bool fails = status != XP_OK && status != XP_EINVAL;
    if (!fails || step->group->transport != XP_EP_P2P || state->meets == XP_EP_MEET_ON_GPU)
        return status;
    char why[1024];
    snprintf(why, sizeof why, "%s", xp_last_error());
    if (status != XP_ECOMM)
        xp_comm_abort(step->group->comm, why);
    /* Kernels of peers that were not kept waiting may be writing into the caller's rows. */
    xp_ep_cuda_wait_out(step->group);
    return xp_error(status, "%s", why);
}

/* ---- plans ------------------------------------------------------------------------------- */

/* Only meetings of kernels can fail unseen by the host. */
static const uint32_t *dead_word(const xp_ep_step *step) {
    const xp_ep_group *group = step->group;
    if (group->shape.n_ranks == 1 || group->transport != XP_EP_P2P ||
        xp_ep_cuda_state_of(step)->meets != XP_EP_MEET_ON_GPU)
        return NULL;
    return &((const xp_ep_cuda_fate *)xp_ep_p2p_area(step, group->rank)->bell)->dead;
}

/* The kernels' view of a plan. */
xp_ep_cuda_plan xp_ep_cuda_view(const xp_ep_step *step) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &group->shape;
    int32_t *tiles = group->tile_counts[plan->slot];
    const int64_t counts = s->n_tiles * (s->n_experts + s->n_ranks);
    xp_ep_cuda_plan v = {
        .n_ranks = s->n_ranks,
        .rank = group->rank,
        .n_experts = s->n_experts,
        .n_local = s->n_local,
        .top_k = s->top_k,
        .row_assignments = s->row_assignments,
        .block_ints = s->block_ints,
        .dead = dead_word(step),
        .local = s->local,
        .max_rounds = s->max_rounds,
        .assignment_capacity = s->assignment_capacity,
        .round_assignments = s->round_assignments,
        .recv_capacity = s->recv_capacity,
        .max_tokens = s->max_tokens,
        .tile_tokens = s->tile_tokens,
        .n_tokens = plan->n_tokens,
        .tile_counts = tiles,
        /* The CPU keeps a tile's errors behind its counts: room for one word here. */
        .refused = (unsigned long long *)(tiles + (counts + 1) / 2 * 2),
        .block = tiles + s->n_tiles * (s->n_experts + s->n_ranks + 3),
        .blocks = plan->blocks,
        .send_row_base = plan->send_row_base,
        .send_assignment_base = plan->send_assignment_base,
        .recv_row_base = plan->recv_row_base,
        .recv_assignment_base = plan->recv_assignment_base,
        .dest_row_base = plan->dest_row_base,
        .dest_assignment_base = plan->dest_assignment_base,
        .source_row_base = plan->source_row_base,
        .source_assignment_base = plan->source_assignment_base,
        .send_token = plan->send_token,
        .send_assignment = plan->send_assignment,
        .assignment_entry = plan->assignment_entry,
        .token_first = plan->token_first,
        .token_row = plan->token_row,
        .send_round = plan->send_round,
        .dest_slot = plan->dest_slot,
        .first_assignments = plan->round_assignments,
        .recv_assignment = plan->recv_assignment,
        .round_row = plan->round_row,
        .assignment_pos = plan->assignment_pos,
        .offsets = plan->offsets,
        .gather = plan->gather,
        .n_recv = plan->n_recv,
        .weight = plan->weight,
        .expert_tokens = plan->expert_tokens,
        .totals = plan->totals,
        .news = xp_ep_cuda_state_of(step)->news_on_device,
    };
    return v;
}

static xp_ep_routing_error find_error(const xp_ep_shape *s, const int32_t *topk_idx,
                                      int64_t n_tokens) {
    if (n_tokens < 0 || n_tokens > s->max_tokens)
        return XP_EP_ROUTING_TOO_MANY;
    return n_tokens > 0 && topk_idx == NULL ? XP_EP_ROUTING_NULL : XP_EP_ROUTING_OK;
}

/* One rank: nothing is exchanged. */
static xp_status build_alone(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v) {
    xp_ep_assignment *assignments = NULL;
    step->group->ops->aim_assignments(step, &assignments);
    v->assignments_to[0] = (xp_ep_cuda_assignment *)assignments;
    v->assignments = (const xp_ep_cuda_assignment *)assignments;
    v->block = step->plan->blocks; /* its block is all there is */
    XP_TRY(xp_ep_cuda_route(stream, v));
    XP_TRY(xp_ep_cuda_build_send(stream, v));
    return xp_ep_cuda_build_recv(stream, v);
}

xp_status xp_ep_cuda_build(const xp_ep_step *step, const int32_t *topk_idx,
                           const float *topk_weight, int64_t n_tokens) {
    const xp_ep_group *group = step->group;
    const xp_ep_shape *s = &group->shape;
    xp_ep_plan *plan = step->plan;
    cudaStream_t stream;
    const int32_t error[3] = {(int32_t)find_error(s, topk_idx, n_tokens), 0,
                              (int32_t)(n_tokens < INT32_MAX ? n_tokens : INT32_MAX)};
    plan->valid = false;
    if (error[0] != XP_EP_ROUTING_OK && s->n_ranks == 1)
        return xp_ep_plan_explain_rank(group, 0, error);
    XP_TRY(xp_ep_cuda_begin(step, &stream));
    /* A rank whose routing cannot even be read takes part without tokens, to tell the others. */
    plan->n_tokens = error[0] == XP_EP_ROUTING_OK ? n_tokens : 0;
    plan->n_rounds = s->max_rounds; /* launched; empty ones leave at once */
    xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    v.topk_idx = topk_idx;
    v.topk_weight = topk_weight;
    v.bad_kind = error[0];
    v.bad_value = error[2];
    XP_TRY(xp_ep_cuda_end(step, s->n_ranks == 1 ? build_alone(step, stream, &v)
                                                : exchange_of(group)->build(step, stream, &v)));
    XP_TRY(xp_ep_plan_explain_rank(group, group->rank, error));
    plan->valid = true;
    return XP_OK;
}

xp_status xp_ep_cuda_fetch_all(const xp_ep_step *step, const xp_ep_cuda_fetch *all, int n) {
    for (int i = 0; i < n; i++)
        XP_TRY(xp_copy(step->stream, all[i].to, all[i].from, all[i].n_bytes));
    xp_ep_add(&step->group->totals.n_host_waits, 1);
    return xp_stream_sync(step->stream);
}

xp_status xp_ep_cuda_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    const xp_ep_shape *s = &plan->group->shape;
    const xp_ep_host_plan *host = plan->host;
    const xp_ep_step step = {.group = plan->group, .plan = plan, .stream = plan->stream};
    const xp_ep_cuda_fetch all[] = {
        {host->blocks, plan->blocks,
         (size_t)s->n_ranks * (size_t)s->block_ints * sizeof *host->blocks},
        {host->totals, plan->totals, (4 + (size_t)s->n_ranks) * sizeof *host->totals},
        {host->expert_tokens, plan->expert_tokens,
         (size_t)s->n_local * sizeof *host->expert_tokens},
    };
    XP_TRY(xp_ep_cuda_fetch_all(&step, all, 3));
    XP_TRY(xp_ep_cuda_check_group(plan->group));
    XP_TRY(xp_ep_plan_explain(plan->group, host->blocks));
    *counts = (xp_ep_counts){.n_rounds = host->totals[0],
                             .expert_tokens = host->expert_tokens,
                             .n_recv = host->totals[1],
                             .n_assignments = host->totals[2]};
    return XP_OK;
}

/* ---- rows -------------------------------------------------------------------------------- */

xp_ep_cuda_rows xp_ep_cuda_rows_of(const xp_ep_step *step) {
    const xp_ep_shape *s = &step->group->shape;
    return (xp_ep_cuda_rows){.dim = s->dim,
                             .row_bytes = s->row_bytes,
                             .bf16 = s->dtype == XP_BF16,
                             .round = step->round,
                             .n_blocks = xp_ep_cuda_state_of(step)->n_row_blocks};
}

static xp_status dispatch_alone(const xp_ep_step *step, cudaStream_t stream, const void *x,
                                void *recv) {
    const xp_ep_shape *s = &step->group->shape;
    /* A local group's recv rows are the token rows, and may be the same memory. If not, the device
     * decides: it alone knows whether the plan was refused. */
    if (s->local && recv == x)
        return XP_OK;
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    return xp_ep_cuda_keep_rows(stream, &v, &rows, x, recv);
}

xp_status xp_ep_cuda_dispatch(const xp_ep_step *step, const void *x, void *recv) {
    cudaStream_t stream;
    XP_TRY(xp_ep_cuda_begin(step, &stream));
    const bool alone = step->group->shape.n_ranks == 1;
    return xp_ep_cuda_end(step, alone ? dispatch_alone(step, stream, x, recv)
                                      : exchange_of(step->group)->dispatch(step, stream, x, recv));
}

static xp_status bring_home_alone(const xp_ep_step *step, cudaStream_t stream,
                                  const xp_ep_home *home) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    XP_TRY(xp_ep_cuda_sum_home(stream, &v, &rows, NULL, home->y, home->out));
    if (home->d_topk_weight == NULL || home->d_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_keep_weights(stream, &v, step->round, home->d_weight, home->d_topk_weight);
}

/* Entries without an assignment are zero. */
static xp_status clear_weights(const xp_ep_step *step, cudaStream_t stream,
                               const xp_ep_home *home) {
    const size_t n = (size_t)(step->plan->n_tokens * step->group->shape.top_k);
    if (home->d_topk_weight == NULL || step->round > 0 || n == 0)
        return XP_OK;
    return xp_cuda_check(cudaMemsetAsync(home->d_topk_weight, 0, n * sizeof(float), stream),
                         step->phase);
}

xp_status xp_ep_cuda_bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    cudaStream_t stream;
    XP_TRY(xp_ep_cuda_begin(step, &stream));
    xp_status status = clear_weights(step, stream, home);
    if (status == XP_OK)
        status = step->group->shape.n_ranks == 1
                     ? bring_home_alone(step, stream, home)
                     : exchange_of(step->group)->bring_home(step, stream, home);
    return xp_ep_cuda_end(step, status);
}

/* A plan that this rank's host has refused is empty on the others, who learn of that on the device:
 * their kernels do not meet, but their hosts do. */
void xp_ep_cuda_miss(const xp_ep_step *step) {
    cudaStream_t stream;
    if (step->group->shape.n_ranks == 1 || step->group->transport != XP_EP_P2P)
        return;
    xp_ep_p2p_begin(step);
    if (step->plan->valid || xp_ep_cuda_state_of(step)->meets != XP_EP_MEET_BY_MARKS ||
        xp_ep_cuda_begin(step, &stream) != XP_OK)
        return;
    /* Failures are the communicator's, and told by the next call. */
    (void)xp_ep_cuda_end(step, xp_ep_cuda_attend(step, stream));
}
