/* The plan and the four ops of a transport, timed. On a GPU all calls of a sample are queued before the first is waited for, the L2 cache is
 * overwritten before each, and events stand around each: one call's data is not in the cache for the next, and what the host does
 * is not in the times. */
#include "core/file.h"
#include "ep_rank.h"

#define INNER_S                                                                                    \
    2e-3 /* on a CPU the calls of a sample go on this long, so that short ones are timed well */
#define GPU_CALLS   9 /* the first, which waits for the ranks to arrive, does not count */
#define FLUSH_BYTES ((size_t)128 << 20)

typedef struct calls {
    xp_bench_ep_rank *rank;
    const xp_bench_lane *lane;
    xp_bench_ep_op op;
    xp_status (*queue)(void *context); /* queue_op, or queue_plan, which has no op */
} calls;

/* All rounds. */
static xp_status queue_op(void *context) {
    const calls *a = context;
    xp_bench_ep_rank *r = a->rank;
    const xp_bench_lane *l = a->lane;
    const xp_bench_ep_case *c = r->c;
    xp_tensor x = xp_tensor_2d(r->x, c->dtype, c->n_tokens, c->dim);
    xp_tensor recv = xp_tensor_2d(r->recv, c->dtype, r->recv_rows, c->dim);
    xp_tensor y = xp_tensor_2d(r->y, c->dtype, r->assignment_rows, c->dim);
    xp_tensor out = xp_tensor_2d(r->out, c->dtype, c->n_tokens, c->dim);
    for (int64_t round = 0; round < l->n_rounds; round++) {
        xp_status status = XP_OK;
        if (a->op == XP_BENCH_EP_DISPATCH)
            status = xp_ep_dispatch(l->group, l->plan, round, &x, &recv, r->d.stream);
        else if (a->op == XP_BENCH_EP_COMBINE)
            status = xp_ep_combine(l->group, l->plan, round, &y, &out, r->d.stream);
        else if (a->op == XP_BENCH_EP_COMBINE_BACKWARD)
            status = xp_ep_combine_backward(l->group, l->plan, round, &x, &recv, r->d.stream);
        else
            status = xp_ep_dispatch_backward(l->group, l->plan, round, &y, r->d_weights, &out,
                                             r->d_topk_weights, r->d.stream);
        XP_TRY(status);
    }
    return XP_OK;
}

/* The same routing again: the same plan. */
static xp_status queue_plan(void *context) {
    const calls *a = context;
    const xp_bench_ep_rank *r = a->rank;
    return xp_ep_plan_build(a->lane->group, r->device_ids, r->device_weights, r->c->n_tokens,
                            r->d.stream, a->lane->plan);
}

/* Ranks that share a GPU wait for each other's, or one's would run beside another's call. */
static xp_status queue_flush(void *context) {
    const calls *a = context;
    XP_TRY(xp_zero(a->rank->d.stream, a->rank->copy_to, FLUSH_BYTES));
    if (!a->rank->d.shares_gpu)
        return XP_OK;
    XP_TRY(xp_stream_sync(a->rank->d.stream));
    return xp_bench_ep_barrier(a->rank);
}

static xp_status sample_on_gpu(calls *a, xp_bench_samples *samples) {
    double seconds[GPU_CALLS];
    const xp_timed_calls timed = {
        .n = GPU_CALLS, .before = queue_flush, .call = a->queue, .context = a};
    XP_TRY(xp_bench_ep_barrier(a->rank));
    XP_TRY(a->rank->d.backend->time_each(a->rank->d.stream, &timed, seconds));
    XP_TRY(xp_ep_async_error(a->lane->group));
    XP_TRY(xp_bench_ep_reduce(a->rank, seconds, GPU_CALLS, XP_MAX));
    for (int i = 1; i < GPU_CALLS; i++)
        xp_bench_samples_add(samples, seconds[i]);
    return XP_OK;
}

static xp_status call_and_wait(calls *a, double *seconds) {
    const double began = xp_time_s();
    XP_TRY(a->queue(a));
    XP_TRY(xp_stream_sync(a->rank->d.stream));
    *seconds += xp_time_s() - began;
    return XP_OK;
}

static int n_ops(const xp_bench_ep_rank *r) {
    return r->c->backward ? XP_BENCH_EP_N_OPS : XP_BENCH_EP_COMBINE + 1;
}

/* Ops in turns, as in a step. */
static xp_status sample_on_cpu(xp_bench_ep_rank *r, xp_bench_lane *l) {
    double seconds[XP_BENCH_EP_N_OPS + 1] = {0}; /* and the plan */
    XP_TRY(xp_bench_ep_barrier(r));
    for (int i = 0; i < l->n_inner; i++) {
        calls plan = {.rank = r, .lane = l, .queue = queue_plan};
        XP_TRY(call_and_wait(&plan, &seconds[XP_BENCH_EP_N_OPS]));
        for (int op = 0; op < n_ops(r); op++) {
            calls a = {.rank = r, .lane = l, .op = (xp_bench_ep_op)op, .queue = queue_op};
            XP_TRY(call_and_wait(&a, &seconds[op]));
        }
    }
    XP_TRY(xp_bench_ep_reduce(r, seconds, XP_BENCH_EP_N_OPS + 1, XP_MAX));
    xp_bench_samples_add(&l->plan_s, seconds[XP_BENCH_EP_N_OPS] / l->n_inner);
    for (int op = 0; op < n_ops(r); op++)
        xp_bench_samples_add(&l->op_s[op], seconds[op] / l->n_inner);
    return XP_OK;
}

xp_status xp_bench_lane_sample(xp_bench_ep_rank *r, xp_bench_lane *l) {
    if (!r->d.backend)
        return sample_on_cpu(r, l);
    calls plan = {.rank = r, .lane = l, .queue = queue_plan};
    XP_TRY(sample_on_gpu(&plan, &l->plan_s));
    for (int op = 0; op < n_ops(r); op++) {
        calls a = {.rank = r, .lane = l, .op = (xp_bench_ep_op)op, .queue = queue_op};
        XP_TRY(sample_on_gpu(&a, &l->op_s[op]));
    }
    return XP_OK;
}

xp_status xp_bench_lane_warm_up(xp_bench_ep_rank *r, xp_bench_lane *l) {
    double seconds = 0;
    for (int i = 0; i < 2; i++) {
        seconds = 0;
        for (int op = 0; op < n_ops(r); op++) {
            calls a = {.rank = r, .lane = l, .op = (xp_bench_ep_op)op, .queue = queue_op};
            XP_TRY(call_and_wait(&a, &seconds));
        }
    }
    XP_TRY(xp_bench_ep_reduce(r, &seconds, 1, XP_MAX));
    l->n_inner = seconds < INNER_S ? (int)(INNER_S / (seconds + 1e-7)) + 1 : 1;
    return XP_OK;
}
