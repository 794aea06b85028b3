#include "ep/common/cpu/queue.h"

#include <string.h>
#include "device/cpu/cpu_device.h"

static const xp_ep_cpu_transport *cpu_of(const xp_ep_call *call) {
    return call->group->backend->cpu;
}

typedef struct build_job {
    xp_ep_call call;
    xp_ep_routing routing;
} build_job;

static xp_status run_build(xp_stream *stream, void *args) {
    build_job *job = args;
    job->call.stream = stream;
    job->call.plan->valid = false;
    job->call.plan->n_tokens = job->routing.n_tokens;
    return xp_ep_cpu_plan_build(&job->call, &job->routing, &cpu_of(&job->call)->exchange);
}

xp_status xp_ep_cpu_queue_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    const build_job job = {.call = *call, .routing = *routing};
    return xp_cpu_submit_named(call->stream, call->phase, run_build, &job, sizeof job);
}

typedef struct dispatch_job {
    xp_ep_call call;
    const void *x;
    void *recv;
} dispatch_job;

static xp_status run_dispatch(xp_stream *stream, void *args) {
    dispatch_job *job = args;
    job->call.stream = stream;
    XP_TRY(xp_ep_call_check_plan(&job->call));
    if (xp_ep_call_is_empty(&job->call))
        return XP_OK;
    xp_ep_add(&job->call.group->totals.n_dispatches, 1);
    return cpu_of(&job->call)->dispatch(&job->call, job->x, job->recv);
}

xp_status xp_ep_cpu_queue_dispatch(const xp_ep_call *call, const void *x, void *recv) {
    const dispatch_job job = {.call = *call, .x = x, .recv = recv};
    return xp_cpu_submit_named(call->stream, call->phase, run_dispatch, &job, sizeof job);
}

typedef struct combine_job {
    xp_ep_call call;
    xp_ep_combine_args args;
} combine_job;

static xp_status run_combine(xp_stream *stream, void *args) {
    combine_job *job = args;
    const xp_ep_call *call = &job->call;
    job->call.stream = stream;
    XP_TRY(xp_ep_call_check_plan(call));
    if (xp_ep_call_is_empty(call))
        return XP_OK;
    XP_TRY(xp_ep_call_check_order(call));
    const int64_t n_entries = call->plan->n_tokens * call->group->shape.top_k;
    /* Entries without an assignment are zero. */
    if (job->args.d_topk_weight && call->round == 0 && n_entries > 0)
        memset(job->args.d_topk_weight, 0, (size_t)n_entries * sizeof(float));
    xp_ep_add(&call->group->totals.n_combines, 1);
    return cpu_of(call)->combine(call, &job->args);
}

xp_status xp_ep_cpu_queue_combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    const combine_job job = {.call = *call, .args = *args};
    return xp_cpu_submit_named(call->stream, call->phase, run_combine, &job, sizeof job);
}
