#include "ep/common/cuda/plan.h"

/* ---- memory -------------------------------------------------------------------------------- */

/* What the host fetches goes into page-locked memory: a copy into other memory may wait while
 * another rank's kernels wait for this one. */
static xp_status create_host(xp_ep_group *group, xp_ep_host_plan **host) {
    const xp_ep_shape *s = &group->shape;
    const size_t each = sizeof(int32_t), n_ranks = (size_t)s->n_ranks;
    xp_ep_carver c = {0};
    xp_ep_host_plan h;
    void *memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        c.used = 0;
        xp_ep_carve(&c, sizeof h);
        h.expert_tokens = xp_ep_carve(&c, (size_t)s->n_local * sizeof *h.expert_tokens);
        h.rank_counts = xp_ep_carve(&c, n_ranks * (size_t)s->counts_ints * each);
        h.totals = xp_ep_carve(&c, (4 + n_ranks) * each);
        h.round_assignments = xp_ep_carve(&c, (size_t)(s->max_rounds + 1) * 2 * n_ranks * each);
        if (pass == 0)
            XP_TRY(xp_host_alloc(group->device, c.used, "ep", &memory));
        c.base = memory;
    }
    *host = memory;
    **host = h;
    return XP_OK;
}

xp_status xp_ep_cuda_plan_create(xp_ep_plan *plan) {
    XP_TRY(xp_ep_plan_reserve(plan));
    return create_host(plan->group, &plan->host);
}

void xp_ep_cuda_plan_destroy(xp_ep_plan *plan) {
    xp_host_free(plan->group->device, plan->host);
    xp_ep_plan_release(plan);
}

/* ---- build --------------------------------------------------------------------------------- */

xp_ep_cuda_plan xp_ep_cuda_plan_view(const xp_ep_call *call) {
    const xp_ep_group *group = call->group;
    const xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &group->shape;
    int32_t *own_counts = xp_ep_call_own_counts(call), *words = own_counts + s->counts_ints;
    words += (uintptr_t)words % 8 / sizeof *words;
    const int n_sms = xp_ep_cuda_device(group)->n_sms / 2 / s->n_slots;
    return (xp_ep_cuda_plan){
        .n_ranks = s->n_ranks,
        .rank = group->rank,
        .n_experts = s->n_experts,
        .n_local = s->n_local,
        .top_k = s->top_k,
        .row_assignments = s->row_assignments,
        .counts_ints = s->counts_ints,
        .local = s->local,
        .max_rounds = s->max_rounds,
        .assignment_capacity = s->assignment_capacity,
        .round_assignments = s->round_assignments,
        .recv_capacity = s->recv_capacity,
        .max_tokens = s->max_tokens,
        .tile_tokens = s->tile_tokens,
        .n_tokens = plan->n_tokens,
        /* Blocks that may wait for peers, of all slots together, leave half of the SMs to others. */
        .n_blocks = n_sms > 1 ? n_sms : 1,
        .tile_counts = xp_ep_call_tile_counts(call),
        .refused = (unsigned long long *)words,
        .n_done = (unsigned *)(words + 2),
        .round_counts = own_counts + s->counts_ints + XP_EP_GPU_SCRATCH_WORDS,
        .own_counts = own_counts,
        .counts_in = plan->rank_counts,
        .rank_counts = plan->rank_counts,
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
        .own_rows = plan->own_rows,
        .own_token = plan->own_token,
        .weight = plan->weight,
        .expert_tokens = plan->expert_tokens,
        .totals = plan->totals,
        .status = xp_ep_cuda_state_of(group)->device_status,
    };
}

static xp_ep_routing_error find_error(const xp_ep_shape *s, const xp_ep_routing *routing) {
    if (routing->n_tokens < 0 || routing->n_tokens > s->max_tokens)
        return XP_EP_ROUTING_TOO_MANY;
    return routing->n_tokens > 0 && routing->topk_idx == NULL ? XP_EP_ROUTING_NULL
                                                              : XP_EP_ROUTING_OK;
}

xp_ep_cuda_plan xp_ep_cuda_plan_start(const xp_ep_call *call, const xp_ep_routing *routing) {
    const xp_ep_shape *s = &call->group->shape;
    const xp_ep_routing_error error = find_error(s, routing);
    call->plan->valid = false;
    call->plan->n_tokens = error == XP_EP_ROUTING_OK ? routing->n_tokens : 0;
    call->plan->n_rounds = s->max_rounds;
    call->plan->host_knows_rounds = false;
    xp_ep_cuda_plan view = xp_ep_cuda_plan_view(call);
    view.topk_idx = routing->topk_idx;
    view.topk_weight = routing->topk_weight;
    view.bad_kind = (int32_t)error;
    view.bad_value = (int32_t)(routing->n_tokens < INT32_MAX ? routing->n_tokens : INT32_MAX);
    return view;
}

xp_status xp_ep_cuda_plan_finish(const xp_ep_call *call, const xp_ep_cuda_plan *view) {
    const int32_t error[3] = {view->bad_kind, 0, view->bad_value};
    XP_TRY(xp_ep_routing_explain(call->group, call->group->rank, error));
    call->plan->valid = true;
    return XP_OK;
}

/* ---- what the host reads ------------------------------------------------------------------- */

xp_status xp_ep_cuda_fetch_all(const xp_ep_call *call, const xp_ep_cuda_fetch *all, int n) {
    for (int i = 0; i < n; i++)
        XP_TRY(xp_copy(call->stream, all[i].to, all[i].from, all[i].n_bytes));
    xp_ep_add(&call->group->totals.n_host_waits, 1);
    return xp_stream_sync(call->stream);
}

xp_status xp_ep_cuda_plan_fetch(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    const xp_ep_host_plan *host = plan->host;
    const xp_ep_call call = {.group = plan->group, .plan = plan, .stream = plan->stream};
    const xp_ep_cuda_fetch all[] = {
        {host->rank_counts, plan->rank_counts,
         (size_t)s->n_ranks * (size_t)s->counts_ints * sizeof *host->rank_counts},
        {host->totals, plan->totals, (4 + (size_t)s->n_ranks) * sizeof *host->totals},
        {host->expert_tokens, plan->expert_tokens,
         (size_t)s->n_local * sizeof *host->expert_tokens},
    };
    return xp_ep_cuda_fetch_all(&call, all, 3);
}

xp_status xp_ep_cuda_plan_counts(const xp_ep_plan *plan, xp_ep_counts *counts) {
    const xp_ep_host_plan *host = plan->host;
    XP_TRY(xp_ep_counts_check(plan->group, host->rank_counts));
    *counts = (xp_ep_counts){.n_rounds = host->totals[0],
                             .expert_tokens = host->expert_tokens,
                             .n_recv = host->totals[1],
                             .n_assignments = host->totals[2]};
    return XP_OK;
}

xp_status xp_ep_cuda_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    XP_TRY(xp_ep_cuda_plan_fetch(plan));
    return xp_ep_cuda_plan_counts(plan, counts);
}
