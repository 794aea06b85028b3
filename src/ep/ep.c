/* The calls: arguments checked here, then the group's backend. */
#include "comm/provider.h"
#include "device/cpu/cpu_device.h"
#include "device/recorder.h"
#include "ep/backend.h"
#include "device/scope.h"

/* The stream must belong to the group's device, or nothing queued on it could touch the group's
 * memory. */
static xp_status check_stream(const char *name, const xp_ep_group *group, const xp_ep_plan *plan,
                              xp_stream *stream) {
    if (!group || !plan || !stream)
        return xp_error(XP_EINVAL, "%s: group, plan and stream must not be NULL", name);
    if (plan->group != group)
        return xp_error(XP_EINVAL, "%s: the plan belongs to another group", name);
    if (xp_stream_device(stream) != group->device)
        return xp_error(XP_EINVAL, "%s: the stream belongs to %s, the group to %s", name,
                        xp_device_name(xp_stream_device(stream)), xp_device_name(group->device));
    if (group->comm && xp_comm_calls_back(group->comm) &&
        xp_device_get_kind(group->device) == XP_DEVICE_CPU && !xp_cpu_stream_is_inline(stream))
        return xp_error(XP_ENOTSUP,
                        "%s: between nodes the caller's transport is called on the calling thread; "
                        "use a compute stream",
                        name);
    return XP_OK;
}

/* The slot's rows belong to its open combine. */
static xp_status check_slot(const char *name, const xp_ep_group *group, const xp_ep_plan *plan) {
    if (group->combines[plan->slot].plan)
        return xp_error(XP_EINVAL,
                        "%s: slot %d has a combine that was sent and not received; call "
                        "xp_ep_combine_recv() first",
                        name, plan->slot);
    return XP_OK;
}

static xp_status check_tensor(const char *name, const char *what, const xp_ep_group *group,
                              const xp_tensor *tensor, int64_t n_rows) {
    if (!tensor)
        return xp_error(XP_EINVAL, "%s: %s is NULL", name, what);
    const xp_ep_shape *s = &group->shape;
    if (tensor->n_dims != 2 || tensor->shape[1] != s->dim || tensor->dtype != s->dtype)
        return xp_error(
            XP_EINVAL, "%s: %s must be [rows, %lld] of %s, not %d dimensions, %lld wide, of %s",
            name, what, (long long)s->dim, xp_dtype_name(s->dtype), tensor->n_dims,
            tensor->n_dims > 1 ? (long long)tensor->shape[1] : 0LL, xp_dtype_name(tensor->dtype));
    if (n_rows >= 0 && tensor->shape[0] < n_rows)
        return xp_error(XP_EINVAL, "%s: %s has %lld rows, the group's capacity is %lld", name, what,
                        (long long)tensor->shape[0], (long long)n_rows);
    if (!tensor->data && tensor->shape[0] > 0 && !group->backend->counts_only)
        return xp_error(XP_EINVAL, "%s: %s has no memory", name, what);
    return XP_OK;
}

static xp_status check_round(const char *name, int64_t round) {
    return round < 0 ? xp_error(XP_EINVAL, "%s: round %lld", name, (long long)round) : XP_OK;
}

static xp_status check_dispatch(const char *name, const xp_ep_call *call, const xp_tensor *x,
                                const xp_tensor *recv) {
    const xp_ep_group *group = call->group;
    XP_TRY(check_stream(name, group, call->plan, call->stream));
    XP_TRY(check_slot(name, group, call->plan));
    XP_TRY(check_tensor(name, "the token tensor", group, x, -1));
    XP_TRY(check_tensor(name, "the recv tensor", group, recv,
                        group->shape.local ? x->shape[0] : group->shape.recv_capacity));
    return check_round(name, call->round);
}

static xp_status check_combine(const char *name, const xp_ep_call *call, const xp_tensor *y,
                               const xp_tensor *out) {
    const xp_ep_group *group = call->group;
    XP_TRY(check_stream(name, group, call->plan, call->stream));
    XP_TRY(check_tensor(name, "the assignment tensor", group, y, group->shape.assignment_capacity));
    XP_TRY(check_tensor(name, "the token tensor", group, out, -1));
    return check_round(name, call->round);
}

xp_status xp_ep_plan_build(xp_ep_group *group, const int32_t *topk_idx, const float *topk_weight,
                           int64_t n_tokens, xp_stream *stream, xp_ep_plan *plan) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    XP_TRY(check_stream("xp_ep_plan_build", group, plan, stream));
    XP_TRY(check_slot("xp_ep_plan_build", group, plan));
    plan->stream = stream;
    const xp_ep_call call = {
        .group = group, .plan = plan, .stream = stream, .n_tokens = n_tokens, .phase = "plan"};
    const xp_ep_routing routing = {
        .topk_idx = topk_idx, .topk_weight = topk_weight, .n_tokens = n_tokens};
    const int64_t op = xp_recorder_begin_op(stream, call.phase);
    return xp_recorder_end_op(stream, op, group->backend->plan_build(&call, &routing));
}

/* The plan is the caller's to keep: only plan_build changes what it says. */
static xp_ep_call make_call(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                            const char *phase, xp_stream *stream) {
    return (xp_ep_call){.group = group,
                        .plan = (xp_ep_plan *)plan,
                        .stream = stream,
                        .round = round,
                        .phase = phase};
}

xp_status xp_ep_dispatch(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                         const xp_tensor *x, xp_tensor *recv_x, xp_stream *stream) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    xp_ep_call call = make_call(group, plan, round, "dispatch", stream);
    XP_TRY(check_dispatch("xp_ep_dispatch", &call, x, recv_x));
    call.n_tokens = x->shape[0];
    const int64_t op = xp_recorder_begin_op(stream, call.phase);
    return xp_recorder_end_op(stream, op, group->backend->dispatch(&call, x->data, recv_x->data));
}

xp_status xp_ep_combine_backward(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                                 const xp_tensor *d_out, xp_tensor *d_recv, xp_stream *stream) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    xp_ep_call call = make_call(group, plan, round, "combine backward", stream);
    XP_TRY(check_dispatch("xp_ep_combine_backward", &call, d_out, d_recv));
    call.n_tokens = d_out->shape[0];
    const int64_t op = xp_recorder_begin_op(stream, call.phase);
    return xp_recorder_end_op(stream, op,
                              group->backend->dispatch(&call, d_out->data, d_recv->data));
}

xp_status xp_ep_combine(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                        const xp_tensor *y, xp_tensor *out, xp_stream *stream) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    xp_ep_call call = make_call(group, plan, round, "combine", stream);
    XP_TRY(check_combine("xp_ep_combine", &call, y, out));
    XP_TRY(check_slot("xp_ep_combine", group, plan));
    call.n_tokens = out->shape[0];
    const xp_ep_combine_args args = {.y = y->data, .out = out->data};
    const int64_t op = xp_recorder_begin_op(stream, call.phase);
    return xp_recorder_end_op(stream, op, group->backend->combine(&call, &args));
}

xp_status xp_ep_combine_send(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                             const xp_tensor *y, xp_stream *stream) {
    static const char name[] = "xp_ep_combine_send";
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    const xp_ep_call call = make_call(group, plan, round, "combine", stream);
    XP_TRY(check_stream(name, group, plan, stream));
    XP_TRY(check_slot(name, group, plan));
    XP_TRY(check_tensor(name, "the assignment tensor", group, y, group->shape.assignment_capacity));
    XP_TRY(check_round(name, round));
    xp_ep_open_combine *open = &group->combines[plan->slot];
    const int64_t op = xp_recorder_begin_op(stream, "combine send");
    XP_TRY(
        xp_recorder_end_op(stream, op, group->backend->combine_send(&call, y->data, &open->sent)));
    XP_TRY(xp_event_record(open->recorded, stream));
    open->plan = plan;
    open->round = round;
    open->y = y->data;
    open->stream = stream;
    return XP_OK;
}

static xp_status check_open(const char *name, const xp_ep_call *call, const xp_tensor *y) {
    const xp_ep_open_combine *open = &call->group->combines[call->plan->slot];
    if (!open->plan)
        return xp_error(XP_EINVAL, "%s: no xp_ep_combine_send() came before", name);
    if (open->plan != call->plan || open->round != call->round || open->y != y->data)
        return xp_error(XP_EINVAL,
                        "%s: slot %d has sent round %lld; plan, round and y must be those of "
                        "xp_ep_combine_send()",
                        name, call->plan->slot, (long long)open->round);
    return XP_OK;
}

xp_status xp_ep_combine_recv(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                             const xp_tensor *y, xp_tensor *out, xp_stream *stream) {
    static const char name[] = "xp_ep_combine_recv";
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    xp_ep_call call = make_call(group, plan, round, "combine", stream);
    XP_TRY(check_combine(name, &call, y, out));
    XP_TRY(check_open(name, &call, y));
    xp_ep_open_combine *open = &group->combines[plan->slot];
    call.n_tokens = out->shape[0];
    const xp_ep_combine_args args = {.y = y->data, .out = out->data};
    if (stream != open->stream)
        XP_TRY(xp_event_wait(open->recorded, stream));
    const int64_t op = xp_recorder_begin_op(stream, open->sent ? "combine recv" : call.phase);
    const xp_status status =
        xp_recorder_end_op(stream, op,
                           open->sent ? group->backend->combine_recv(&call, &args)
                                      : group->backend->combine(&call, &args));
    if (!open->sent || status != XP_EINVAL)
        open->plan = NULL;
    return status;
}

xp_status xp_ep_dispatch_backward(xp_ep_group *group, const xp_ep_plan *plan, int64_t round,
                                  const xp_tensor *d_assignment_x, const float *d_assignment_weight,
                                  xp_tensor *dx, float *d_topk_weight, xp_stream *stream) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    xp_ep_call call = make_call(group, plan, round, "dispatch backward", stream);
    XP_TRY(check_combine("xp_ep_dispatch_backward", &call, d_assignment_x, dx));
    XP_TRY(check_slot("xp_ep_dispatch_backward", group, plan));
    if (d_topk_weight && !d_assignment_weight)
        return xp_error(XP_EINVAL,
                        "xp_ep_dispatch_backward: d_topk_weight without d_assignment_weight");
    call.n_tokens = dx->shape[0];
    const xp_ep_combine_args args = {.y = d_assignment_x->data,
                                     .d_weight = d_assignment_weight,
                                     .out = dx->data,
                                     .d_topk_weight = d_topk_weight};
    const int64_t op = xp_recorder_begin_op(stream, call.phase);
    return xp_recorder_end_op(stream, op, group->backend->combine(&call, &args));
}
