/* Combine in two halves, called in the wrong order or not to the end. */
#include <string.h>
#include "faults.h"

static bool refused(ep_env *env, const char *what, xp_status status) {
    EP_CHECK(env, status == XP_EINVAL, "%s: status %s, expected XP_EINVAL", what,
             xp_status_name(status));
    return true;
}

static bool refuses_all_but_receive(ep_env *env, ep_setup *s) {
    const int64_t n = s->p.tokens[env->rank];
    xp_tensor other = s->yt;
    other.data = s->recv;
    return refused(env, "plan",
                   xp_ep_plan_build(s->group, s->ids, s->weights, n, env->stream, s->plan)) &&
           refused(env, "dispatch",
                   xp_ep_dispatch(s->group, s->plan, 0, &s->xt, &s->rt, env->stream)) &&
           refused(env, "combine",
                   xp_ep_combine(s->group, s->plan, 0, &s->yt, &s->xt, env->stream)) &&
           refused(env, "dispatch backward",
                   xp_ep_dispatch_backward(s->group, s->plan, 0, &s->yt, NULL, &s->xt, NULL,
                                           env->stream)) &&
           refused(env, "combine backward",
                   xp_ep_combine_backward(s->group, s->plan, 0, &s->xt, &s->rt, env->stream)) &&
           refused(env, "a second send",
                   xp_ep_combine_send(s->group, s->plan, 0, &s->yt, env->stream)) &&
           refused(env, "another round",
                   xp_ep_combine_recv(s->group, s->plan, 1, &s->yt, &s->xt, env->stream)) &&
           refused(env, "another y",
                   xp_ep_combine_recv(s->group, s->plan, 0, &other, &s->xt, env->stream));
}

/* Only what was sent can be received, and nothing else comes in between. */
bool ep_halves_in_order(ep_env *env) {
    ep_setup s;
    if (!ep_make_setup(env, &s, ROUTE_HOLES))
        return false;
    const int64_t n = s.p.tokens[env->rank];
    memset(s.y, 0, (size_t)(s.yt.shape[0] * s.p.dim) * xp_dtype_bytes(s.p.dtype));
    EP_OK(env, xp_ep_plan_build(s.group, s.ids, s.weights, n, env->stream, s.plan));
    bool ok = refused(env, "nothing was sent",
                      xp_ep_combine_recv(s.group, s.plan, 0, &s.yt, &s.xt, env->stream));
    for (int64_t i = 0; i < 3; i++) {
        EP_OK(env, xp_ep_combine_send(s.group, s.plan, 0, &s.yt, env->stream));
        ok = ok && refuses_all_but_receive(env, &s);
        EP_OK(env, xp_ep_combine_recv(s.group, s.plan, 0, &s.yt, &s.xt, env->stream));
    }
    ok = ok && refused(env, "received twice",
                       xp_ep_combine_recv(s.group, s.plan, 0, &s.yt, &s.xt, env->stream));
    /* A round that the routing does not need. */
    EP_OK(env, xp_ep_combine_send(s.group, s.plan, 1000, &s.yt, env->stream));
    EP_OK(env, xp_ep_combine_recv(s.group, s.plan, 1000, &s.yt, &s.xt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    for (int64_t i = 0; i < n * s.p.dim; i++)
        ok = ok && (ref_load(s.p.dtype, s.x, i) == 0 || ep_fail(env, "sums of zeros are not zero"));
    ok = ep_settle(env) && ep_check_in_group(env, &s.p, s.group, s.plan, env->stream) && ok;
    ep_free_setup(env, &s);
    return ok;
}

/* What no rank receives holds nothing up: neither the group's next calls nor its end. */
bool ep_sent_and_left(ep_env *env) {
    ep_setup s;
    xp_ep_plan *left = NULL;
    if (!ep_make_setup(env, &s, ROUTE_HOLES))
        return false;
    const int64_t n = s.p.tokens[env->rank];
    EP_OK(env, xp_ep_plan_create(s.group, &left));
    if (!ep_settle(env))
        return false;
    EP_OK(env, xp_ep_plan_build(s.group, s.ids, s.weights, n, env->stream, left));
    EP_OK(env, xp_ep_combine_send(s.group, left, 0, &s.yt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    if (!ep_settle(env))
        return false;
    xp_ep_plan_destroy(left);
    if (!ep_settle(env))
        return false;
    const bool ok = ep_check_in_group(env, &s.p, s.group, s.plan, env->stream);
    EP_OK(env, xp_ep_plan_build(s.group, s.ids, s.weights, n, env->stream, s.plan));
    EP_OK(env, xp_ep_combine_send(s.group, s.plan, 0, &s.yt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    EP_OK(env, xp_ep_async_error(s.group));
    if (!ep_settle(env))
        return false;
    ep_free_setup(env, &s);
    return ok;
}
