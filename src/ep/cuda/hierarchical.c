/*
 * hierarchical on GPUs: the transport's own calls, with rows moved and added by kernels and
 * exchanged in device memory. The host reads the plan's rows and lists who passes on what, as on a
 * CPU; what kernels read of the lists is copied to the device once a plan.
 */
#include "ep/transport/hierarchical.h"

#include "ep/cuda/mailbox.h"

/* ---- plans ------------------------------------------------------------------------------- */

static xp_ep_cuda_fetch ints(int32_t *to, const int32_t *from, int64_t n) {
    return (xp_ep_cuda_fetch){to, from, (size_t)n * sizeof(int32_t)};
}

static xp_status build(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v) {
    const xp_ep_shape *s = &step->group->shape;
    xp_ep_plan *plan = step->plan;
    xp_ep_relay *relay = plan->relay;
    /* How many rows there are comes in the same wait: so all that there can be. */
    const int64_t most = plan->n_tokens * (s->top_k < s->n_ranks ? s->top_k : s->n_ranks);
    const xp_ep_cuda_fetch first[] = {ints(relay->send_token, plan->send_token, most)};
    const xp_ep_cuda_fetch last[] = {
        ints(relay->send_round, plan->send_round, (s->max_rounds + 1) * s->n_ranks),
        ints(relay->round_row, plan->round_row, s->max_rounds + 1)};
    const xp_ep_cuda_more more = {.first = first, .last = last, .n_first = 1, .n_last = 2};
    XP_TRY(xp_ep_cuda_mailbox_build(step, stream, v, &xp_ep_hier_slot(step)->box, &more));
    return xp_ep_relay_build_fetched(step, plan->host->blocks);
}

/* ---- rows -------------------------------------------------------------------------------- */

static xp_status copy_rows(const xp_ep_step *step, const xp_ep_copy_args *args) {
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    cudaStream_t stream;
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    return xp_ep_cuda_copy_rows(stream, &rows, args);
}

static xp_status reduce_rows(const xp_ep_step *step, const xp_ep_reduce_args *args) {
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    cudaStream_t stream;
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    return xp_ep_cuda_reduce_rows(stream, &rows, args);
}

static xp_status sum_rows(const xp_ep_step *step, const xp_ep_sum_args *args) {
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    cudaStream_t stream;
    XP_TRY(xp_cuda_enter(step->stream, &stream));
    return xp_ep_cuda_sum_rows(stream, &rows, args);
}

static const xp_ep_hier_moves moves = {.copy_rows = copy_rows,
                                       .reduce_rows = reduce_rows,
                                       .sum_rows = sum_rows,
                                       .weights = xp_ep_cuda_mailbox_weights,
                                       .on_stream = true};

static xp_status dispatch(const xp_ep_step *step, cudaStream_t stream, const void *x, void *recv) {
    (void)stream; /* the step's */
    return xp_ep_hier_dispatch(step, &moves, x, recv);
}

static xp_status bring_home(const xp_ep_step *step, cudaStream_t stream, const xp_ep_home *home) {
    (void)stream;
    return xp_ep_hier_bring_home(step, &moves, home);
}

const xp_ep_cuda_exchange xp_ep_cuda_hierarchical = {
    .build = build, .dispatch = dispatch, .bring_home = bring_home};
