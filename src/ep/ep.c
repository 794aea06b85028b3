/* The calls that move rows: arguments checked, then queued on the stream. */
#include <string.h>
#include "device/cpu/cpu_device.h"
#include "device/recorder.h"
#include "ep/device_ops.h"
#include "ep/transport/transport.h"

typedef struct build_job {
    xp_ep_group *group;
    xp_ep_plan *plan;
    const int32_t *topk_idx;
    const float *topk_weight;
    int64_t n_tokens;
} build_job;

static xp_status run_build(xp_stream *stream, void *args) {
    const build_job *job = args;
    xp_ep_step step = {.group = job->group, .plan = job->plan, .stream = stream, .phase = "plan"};
    if (job->group->device_ops)
        return job->group->device_ops->build(&step, job->topk_idx, job->topk_weight, job->n_tokens);
    return xp_ep_plan_run(&step, job->topk_idx, job->topk_weight, job->n_tokens);
}

/* The stream must belong to the group's device, or nothing queued on it could touch the group's
 * memory. */
static xp_status check_stream(const char *call, const xp_ep_group *group, const xp_ep_plan *plan,
                              xp_stream *stream) {
    if (!group || !plan || !stream)
        return xp_error(XP_EINVAL, "%s: group, plan and stream must not be NULL", call);
    if (plan->group != group)
        return xp_error(XP_EINVAL, "%s: the plan belongs to another group", call);
    if (xp_stream_device(stream) != group->device)
        return xp_error(XP_EINVAL, "%s: the stream belongs to %s, the group to %s", call,
                        xp_device_name(xp_stream_device(stream)), xp_device_name(group->device));
    return XP_OK;
}

/* A device's calls queue their work themselves. */
static xp_status queue(const xp_ep_group *group, xp_stream *stream, const char *name, xp_cpu_fn run,
                       void *job, size_t n_bytes) {
    if (!group->device_ops)
        return xp_cpu_submit_named(stream, name, run, job, n_bytes);
    const int64_t op = xp_recorder_begin_op(stream, name);
    return xp_recorder_end_op(stream, op, run(stream, job));
}

xp_status xp_ep_plan_build(xp_ep_group *group, const int32_t *topk_idx, const float *topk_weight,
                           int64_t n_tokens, xp_stream *stream, xp_ep_plan *plan) {
    XP_TRY(check_stream("xp_ep_plan_build", group, plan, stream));
    plan->stream = stream;
    if (xp_device_get_kind(group->device) == XP_DEVICE_NULL)
        return XP_OK;
    build_job job = {.group = group,
                     .plan = plan,
                     .topk_idx = topk_idx,
                     .topk_weight = topk_weight,
                     .n_tokens = n_tokens};
    return queue(group, stream, "plan", run_build, &job, sizeof job);
}

typedef struct move_job {
    xp_ep_step step;
    bool home; /* bring_home, else dispatch */
    const void *in;
    void *out;
    int64_t n_tokens; /* rows of the caller's token tensor: T of the plan */
    xp_ep_home bring;
} move_job;

/* Rows of earlier rounds wait in the slot for the later ones: another sum in between would have
 * overwritten them. The same on every rank, so nothing is sent. */
static xp_status check_order(const xp_ep_step *step) {
    xp_ep_open_sum *sum = &step->group->sums[step->plan->slot];
    if (step->round > 0 &&
        (sum->plan != step->plan || sum->phase != step->phase || sum->next_round != step->round))
        return xp_error(XP_EINVAL,
                        "%s: round %lld does not follow round %lld of the same sum; finish the "
                        "rounds of one combine before "
                        "another starts in its slot",
                        step->phase, (long long)step->round, (long long)step->round - 1);
    *sum =
        (xp_ep_open_sum){.plan = step->plan, .phase = step->phase, .next_round = step->round + 1};
    return XP_OK;
}

/* The plan is not fit for the call on this rank; on others it may be. */
static xp_status check_plan(const move_job *job) {
    const xp_ep_step *step = &job->step;
    const xp_ep_plan *plan = step->plan;
    if (plan->valid && job->n_tokens == plan->n_tokens)
        return XP_OK;
    if (step->group->device_ops && step->round < plan->n_rounds)
        step->group->device_ops->miss(step);
    if (!plan->valid)
        return xp_error(XP_EINVAL, "%s: the plan was never built, or its last build failed",
                        step->phase);
    return xp_error(XP_EINVAL, "%s: a tensor of %lld tokens, but the plan was built for %lld",
                    step->phase, (long long)job->n_tokens, (long long)plan->n_tokens);
}

static xp_status run_move(xp_stream *stream, void *args) {
    move_job *job = args;
    xp_ep_step *step = &job->step;
    xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    step->stream = stream;
    const bool needed = step->round < plan->n_rounds;
    /* On a device the ranks' hosts do not know of each other's refusals: what all refuse alike
     * comes first. */
    if (job->home && needed && group->device_ops)
        XP_TRY(check_order(step));
    XP_TRY(check_plan(job));
    if (!needed)
        return XP_OK; /* empty on every rank: nobody waits for anybody */
    if (!job->home) {
        xp_ep_add(&group->totals.n_dispatches, 1);
        return group->device_ops ? group->device_ops->dispatch(step, job->in, job->out)
                                 : group->ops->dispatch(step, job->in, job->out);
    }
    if (group->device_ops) {
        xp_ep_add(&group->totals.n_combines, 1);
        return group->device_ops->bring_home(step, &job->bring);
    }
    XP_TRY(check_order(step));
    if (job->bring.d_topk_weight && step->round == 0 && plan->n_tokens > 0)
        memset(job->bring.d_topk_weight, 0,
               (size_t)(plan->n_tokens * group->shape.top_k) * sizeof *job->bring.d_topk_weight);
    xp_ep_add(&group->totals.n_combines, 1);
    return group->ops->bring_home(step, &job->bring);
}

static xp_status check_tensor(const char *call, const char *name, const xp_ep_group *group,
                              const xp_tensor *tensor, int64_t n_rows) {
    if (!tensor)
        return xp_error(XP_EINVAL, "%s: %s is NULL", call, name);
    const xp_ep_shape *s = &group->shape;
    if (tensor->n_dims != 2 || tensor->shape[1] != s->dim || tensor->dtype != s->dtype)
        return xp_error(
            XP_EINVAL, "%s: %s must be [rows, %lld] of %s, not %d dimensions, %lld wide, of %s",
            call, name, (long long)s->dim, xp_dtype_name(s->dtype), tensor->n_dims,
            tensor->n_dims > 1 ? (long long)tensor->shape[1] : 0LL, xp_dtype_name(tensor->dtype));
    if (n_rows >= 0 && tensor->shape[0] < n_rows)
        return xp_error(XP_EINVAL, "%s: %s has %lld rows, the group's capacity is %lld", call, name,
                        (long long)tensor->shape[0], (long long)n_rows);
    if (!tensor->data && tensor->shape[0] > 0 &&
        xp_device_get_kind(group->device) != XP_DEVICE_NULL)
        return xp_error(XP_EINVAL, "%s: %s has no memory", call, name);
    return XP_OK;
}

static xp_status start(const char *call, const char *phase, move_job *job, xp_ep_group *group,
                       const xp_ep_plan *plan, int64_t round, xp_stream *stream) {
    XP_TRY(check_stream(call, group, plan, stream));
    if (round < 0)
        return xp_error(XP_EINVAL, "%s: round %lld", call, (long long)round);
    if (xp_device_get_kind(group->device) == XP_DEVICE_NULL)
        return XP_OK;
    /* The plan is the caller's to keep; nothing here changes what it says. */
    job->step =
        (xp_ep_step){.group = group, .plan = (xp_ep_plan *)plan, .round = round, .phase = phase};
    return queue(group, stream, phase, run_move, job, sizeof *job);
}

static xp_status send_rows(const char *call, const char *phase, xp_ep_group *group,
                           const xp_ep_plan *plan, int64_t round, const xp_tensor *x,
                           xp_tensor *recv, xp_stream *stream) {
    XP_TRY(check_stream(call, group, plan, stream));
    XP_TRY(check_tensor(call, "the token tensor", group, x, -1));
    XP_TRY(check_tensor(call, "the recv tensor", group, recv,
                        group->shape.local ? x->shape[0] : group->shape.recv_capacity));
    move_job job = {.in = x->data, .out = recv->data, .n_tokens = x->shape[0]};
    return start(call, phase, &job, group, plan, round, stream);
}

static xp_status bring_rows(const char *call, const char *phase, xp_ep_group *group,
                            const xp_ep_plan *plan, int64_t round, const xp_tensor *y,
                            const float *d_weight, xp_tensor *out, float *d_topk_weight,
                            xp_stream *stream) {
    XP_TRY(check_stream(call, group, plan, stream));
    XP_TRY(check_tensor(call, "the assignment tensor", group, y, group->shape.assignment_capacity));
    XP_TRY(check_tensor(call, "the token tensor", group, out, -1));
    if (d_topk_weight && !d_weight)
        return xp_error(XP_EINVAL, "%s: d_topk_weight without d_assignment_weight", call);
    move_job job = {
        .home = true,
        .n_tokens = out->shape[0],
        .bring = {
            .y = y->data, .d_weight = d_weight, .out = out->data, .d_topk_weight = d_topk_weight}};
    return start(call, phase, &job, group, plan, round, stream);
}

xp_status xp_ep_dispatch(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                         const xp_tensor *x, xp_tensor *recv_x, xp_stream *stream) {
    return send_rows("xp_ep_dispatch", "dispatch", group, plan, round, x, recv_x, stream);
}

xp_status xp_ep_combine_backward(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                                 const xp_tensor *d_out, xp_tensor *d_recv, xp_stream *stream) {
    return send_rows("xp_ep_combine_backward", "combine backward", group, plan, round, d_out,
                     d_recv, stream);
}

xp_status xp_ep_combine(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                        const xp_tensor *y, xp_tensor *out, xp_stream *stream) {
    return bring_rows("xp_ep_combine", "combine", group, plan, round, y, NULL, out, NULL, stream);
}

xp_status xp_ep_dispatch_backward(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                                  const xp_tensor *d_assignment_x, const float *d_assignment_weight,
                                  xp_tensor *dx, float *d_topk_weight, xp_stream *stream) {
    return bring_rows("xp_ep_dispatch_backward", "dispatch backward", group, plan, round,
                      d_assignment_x, d_assignment_weight, dx, d_topk_weight, stream);
}
