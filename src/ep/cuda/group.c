/* Groups, plans and calls of expert parallelism on a GPU: the host's half launches and returns. */
#include "ep/cuda/cuda_group.h"

#include <stdlib.h>
#include "ep/cuda/ep_cuda.h"
#include "ep/transport/transport.h"

_Static_assert(sizeof(xp_ep_pick) == sizeof(xp_ep_cuda_pick), "the same pick for both devices");

typedef struct cuda_state {
    xp_ep_cuda_news *news, *news_on_device;
    int64_t n_row_blocks; /* of kernels that move rows */
} cuda_state;

static xp_cuda_device *device_of(const xp_ep_group *group) {
    return (xp_cuda_device *)group->device;
}

static xp_status create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    if (s->top_k > XP_EP_CUDA_MAX_TOP_K)
        return xp_error(XP_ENOTSUP, "expert parallelism on %s: top_k is %d, at most %d work",
                        xp_device_name(group->device), s->top_k, XP_EP_CUDA_MAX_TOP_K);
    if (s->n_ranks > 1)
        return xp_error(XP_ENOTSUP,
                        "expert parallelism over %d ranks on %s: this build has kernels for one "
                        "rank; set expert_parallel_degree to 1",
                        s->n_ranks, xp_device_name(group->device));
    cuda_state *state = calloc(1, sizeof *state);
    group->device_state = state;
    if (state == NULL)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    xp_cuda_device *device = device_of(group);
    XP_TRY(xp_cuda_check(cudaSetDevice(device->index), device->base.name));
    XP_TRY(xp_cuda_check(cudaHostAlloc((void **)&state->news, sizeof *state->news,
                                       cudaHostAllocMapped | cudaHostAllocPortable),
                         "expert parallel group"));
    *state->news = (xp_ep_cuda_news){0};
    XP_TRY(xp_cuda_check(cudaHostGetDevicePointer((void **)&state->news_on_device, state->news, 0),
                         "expert parallel group"));
    /* num_sms bounds what runs beside the experts of other ranks; one rank has no others. */
    state->n_row_blocks = device->n_sms * 8;
    return group->ops->create(group);
}

static void destroy(xp_ep_group *group) {
    cuda_state *state = group->device_state;
    if (state == NULL)
        return;
    if (state->news != NULL)
        cudaFreeHost(state->news);
    free(state);
}

/* The kernels' view of a plan. */
static xp_ep_cuda_plan view_of(const xp_ep_step *step) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &group->shape;
    const cuda_state *state = group->device_state;
    int32_t *tiles = group->tile_counts[plan->slot];
    const int64_t counts = s->n_tiles * (s->n_experts + s->n_ranks);
    xp_ep_cuda_plan v = {
        .n_ranks = s->n_ranks,
        .rank = group->rank,
        .n_experts = s->n_experts,
        .n_local = s->n_local,
        .top_k = s->top_k,
        .block_ints = s->block_ints,
        .local = s->local,
        .max_rounds = s->max_rounds,
        .pick_capacity = s->pick_capacity,
        .round_picks = s->round_picks,
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
        .send_pick_base = plan->send_pick_base,
        .recv_row_base = plan->recv_row_base,
        .recv_pick_base = plan->recv_pick_base,
        .dest_row_base = plan->dest_row_base,
        .dest_pick_base = plan->dest_pick_base,
        .source_row_base = plan->source_row_base,
        .source_pick_base = plan->source_pick_base,
        .send_token = plan->send_token,
        .send_pick = plan->send_pick,
        .pick_entry = plan->pick_entry,
        .token_first = plan->token_first,
        .token_row = plan->token_row,
        .send_round = plan->send_round,
        .recv_pick = plan->recv_pick,
        .round_row = plan->round_row,
        .pick_pos = plan->pick_pos,
        .offsets = plan->offsets,
        .gather = plan->gather,
        .n_recv = plan->n_recv,
        .weight = plan->weight,
        .expert_tokens = plan->expert_tokens,
        .totals = plan->totals,
        .news = state->news_on_device,
    };
    return v;
}

static xp_status check_routing(const xp_ep_step *step, const int32_t *topk_idx, int64_t n_tokens) {
    const xp_ep_shape *s = &step->group->shape;
    if (n_tokens < 0 || n_tokens > s->max_tokens)
        return xp_error(XP_EINVAL, "xp_ep_plan_build: %lld tokens, the group has room for %lld",
                        (long long)n_tokens, (long long)s->max_tokens);
    return n_tokens == 0 || topk_idx != NULL
               ? XP_OK
               : xp_error(XP_EINVAL, "xp_ep_plan_build: topk_idx is NULL");
}

static xp_status build(const xp_ep_step *step, const int32_t *topk_idx, const float *topk_weight,
                       int64_t n_tokens) {
    const xp_ep_group *group = step->group;
    xp_ep_plan *plan = step->plan;
    cudaStream_t stream;
    plan->valid = false;
    XP_TRY(check_routing(step, topk_idx, n_tokens));
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    plan->n_tokens = n_tokens;
    plan->n_rounds = group->shape.max_rounds; /* launched; empty ones leave at once */
    xp_ep_cuda_plan v = view_of(step);
    v.topk_idx = topk_idx;
    v.topk_weight = topk_weight;
    xp_ep_pick *picks = NULL;
    group->ops->aim_picks(step, &picks);
    v.picks_to[0] = (xp_ep_cuda_pick *)picks;
    v.picks = (const xp_ep_cuda_pick *)picks;
    v.block = plan->blocks; /* one rank: its block is all there is */
    XP_TRY(xp_ep_cuda_route(stream, &v));
    XP_TRY(xp_ep_cuda_build_send(stream, &v));
    XP_TRY(xp_ep_cuda_build_recv(stream, &v));
    plan->valid = true;
    return XP_OK;
}

static xp_ep_cuda_rows rows_of(const xp_ep_step *step) {
    const xp_ep_shape *s = &step->group->shape;
    const cuda_state *state = step->group->device_state;
    return (xp_ep_cuda_rows){.dim = s->dim,
                             .row_bytes = s->row_bytes,
                             .bf16 = s->dtype == XP_BF16,
                             .round = step->round,
                             .n_blocks = (int)state->n_row_blocks};
}

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    const xp_ep_shape *s = &step->group->shape;
    cudaStream_t stream;
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    /* A local group's recv rows are the token rows, and may be the same memory. */
    if (s->local && recv == x)
        return XP_OK;
    if (s->local) {
        const int64_t n_bytes = step->plan->n_tokens * (int64_t)s->row_bytes;
        xp_ep_add(&step->group->totals.bytes_kept, n_bytes);
        return n_bytes == 0 ? XP_OK
                            : xp_cuda_check(cudaMemcpyAsync(recv, x, (size_t)n_bytes,
                                                            cudaMemcpyDeviceToDevice, stream),
                                            step->phase);
    }
    const xp_ep_cuda_plan v = view_of(step);
    const xp_ep_cuda_rows rows = rows_of(step);
    return xp_ep_cuda_keep_rows(stream, &v, &rows, x, recv);
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_shape *s = &step->group->shape;
    cudaStream_t stream;
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    const xp_ep_cuda_plan v = view_of(step);
    const xp_ep_cuda_rows rows = rows_of(step);
    if (home->d_topk_weight != NULL && step->round == 0 && v.n_tokens > 0)
        XP_TRY(
            xp_cuda_check(cudaMemsetAsync(home->d_topk_weight, 0,
                                          (size_t)(v.n_tokens * s->top_k) * sizeof(float), stream),
                          step->phase));
    XP_TRY(xp_ep_cuda_sum_home(stream, &v, &rows, NULL, home->y, home->out));
    if (home->d_topk_weight == NULL || home->d_weight == NULL)
        return XP_OK;
    return xp_ep_cuda_keep_weights(stream, &v, step->round, home->d_weight, home->d_topk_weight);
}

static xp_status fetch(xp_stream *stream, void *to, const void *from, size_t n_bytes) {
    XP_TRY(xp_copy(stream, to, from, n_bytes));
    return xp_stream_sync(stream);
}

static xp_status wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    const xp_ep_shape *s = &plan->group->shape;
    int32_t totals[4];
    int32_t *blocks = plan->host_blocks;
    XP_TRY(fetch(plan->stream, blocks, plan->blocks,
                 (size_t)(s->n_ranks * s->block_ints) * sizeof *blocks));
    XP_TRY(xp_ep_plan_explain(plan->group, blocks));
    XP_TRY(fetch(plan->stream, totals, plan->totals, sizeof totals));
    XP_TRY(fetch(plan->stream, plan->host_tokens, plan->expert_tokens,
                 (size_t)s->n_local * sizeof *plan->host_tokens));
    *counts = (xp_ep_counts){.n_rounds = totals[0],
                             .expert_tokens = plan->host_tokens,
                             .n_recv = totals[1],
                             .n_picks = totals[2]};
    return XP_OK;
}

/* The first routing that the device has refused. */
static xp_status async_error(const xp_ep_group *group) {
    const cuda_state *state = group->device_state;
    const volatile int32_t *error = state->news->error;
    if (error[0] == 0)
        return XP_OK;
    return xp_error(
        XP_EINVAL, "expert parallel plan on rank %d: token %d has %s expert %d; nothing was sent",
        error[1], error[2], error[0] == XP_EP_ROUTING_DUPLICATE ? "twice the" : "the", error[3]);
}

static void add_stats(const xp_ep_group *group, xp_ep_stats *stats) {
    const cuda_state *state = group->device_state;
    const volatile xp_ep_cuda_news *news = state->news;
    stats->overflow_rows += (int64_t)news->overflow_rows;
    stats->bytes_kept += (int64_t)news->rows_kept * (int64_t)group->shape.row_bytes;
}

const xp_ep_device_ops xp_ep_cuda_ops = {
    .create = create,
    .destroy = destroy,
    .build = build,
    .dispatch = dispatch,
    .bring_home = bring_home,
    .wait = wait,
    .async_error = async_error,
    .add_stats = add_stats,
};
