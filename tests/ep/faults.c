/* What must happen when a rank gives wrong routing, is late, is gone, or gives up. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "faults.h"

/* Wrong routing on one rank: refused on all, with that rank and token in the error; the group goes
 * on afterwards. */
static bool refused(ep_env *env, const char *what, int32_t k0, int32_t k1, int64_t extra_tokens) {
    ep_setup s;
    if (!ep_make_setup(env, &s, ROUTE_RANDOM))
        return false;
    int bad = env->n_ranks - 1;
    int64_t n = s.p.tokens[env->rank];
    if (env->rank == bad && extra_tokens == 0) {
        s.ids[5 * s.p.top_k] = k0;
        s.ids[5 * s.p.top_k + 1] = k1;
    }
    xp_ep_stats before, after;
    xp_ep_get_stats(s.group, &before);
    xp_status status = xp_ep_plan_build(
        s.group, s.ids, s.weights, env->rank == bad ? n + extra_tokens : n, env->stream, s.plan);
    xp_ep_counts counts;
    const bool late = env->cuda && status == XP_OK; /* only the device has seen it so far */
    if (late)
        status = xp_ep_plan_wait(s.plan, &counts);
    EP_CHECK(env, status == XP_EINVAL, "%s: status %s, expected XP_EINVAL", what,
             xp_status_name(status));
    char rank_text[32];
    snprintf(rank_text, sizeof rank_text, "rank %d", bad);
    EP_CHECK(env, strstr(xp_last_error(), rank_text), "%s: the error does not name %s: %s", what,
             rank_text, xp_last_error());
    memset(s.recv, 1, 64);
    status = xp_ep_dispatch(s.group, s.plan, 0, &s.xt, &s.rt, env->stream);
    EP_OK(env, xp_stream_sync(env->stream));
    EP_CHECK(env, status == (late ? XP_OK : XP_EINVAL) && s.recv[0] == 1 && s.recv[63] == 1,
             "%s: dispatch with a refused plan: %s", what, xp_status_name(status));
    xp_ep_get_stats(s.group, &after);
    EP_CHECK(env,
             before.bytes_sent_remote == after.bytes_sent_remote &&
                 after.bytes_kept == before.bytes_kept,
             "%s: bytes were sent", what);
    /* What the device has refused stays to be told; the host's own refusals do not. */
    const bool stays = env->cuda && (env->n_ranks > 1 || extra_tokens == 0);
    status = xp_ep_async_error(s.group);
    EP_CHECK(env, status == (stays ? XP_EINVAL : XP_OK), "%s: the group's state is %s", what,
             xp_status_name(status));
    bool ok = ep_settle(env) && ep_check_in_group(env, &s.p, s.group, s.plan, env->stream);
    ep_free_setup(env, &s);
    return ok;
}

bool ep_wrong_routing(ep_env *env) {
    return refused(env, "duplicate", 1, 1, 0) && refused(env, "too high", 0, env->n_ranks * 4, 0) &&
           refused(env, "below -1", -2, 1, 0) && refused(env, "too many tokens", 0, 0, 1);
}

/* Ranks that do not give the same config are told so, all of them, and can go on. */
bool ep_unlike_configs(ep_env *env) {
    static const char *const names[] = {"max_tokens", "dim", "top_k", "dtype", "capacity_factor"};
    const bool other = env->rank == env->n_ranks - 1;
    const ep_problem same = ep_problem_for(env, ROUTE_RANDOM);
    for (int i = 0; i < 5; i++) {
        ep_problem p = same;
        if (other) {
            p.max_tokens += i == 0;
            p.dim += i == 1 ? 16 : 0;
            p.top_k -= i == 2;
            p.dtype = i != 3 ? p.dtype : p.dtype == XP_F32 ? XP_BF16 : XP_F32;
            p.capacity_factor += i == 4;
        }
        const xp_ep_config config = {.max_tokens = p.max_tokens,
                                     .dim = p.dim,
                                     .top_k = p.top_k,
                                     .n_experts = p.n_experts,
                                     .dtype = p.dtype,
                                     .capacity_factor = p.capacity_factor,
                                     .transport = env->transport,
                                     .timeout_s = env->timeout_s};
        xp_ep_group *group = NULL;
        const xp_status status = xp_ep_group_create(env->comm, env->device, &config, &group);
        EP_CHECK(env, status == XP_EINVAL, "%s: status %s", names[i], xp_status_name(status));
        EP_CHECK(env, strstr(xp_last_error(), names[i]) != NULL, "%s: the error is '%s'", names[i],
                 xp_last_error());
        EP_CHECK(env, i != 3 || strstr(xp_last_error(), xp_dtype_name(XP_BF16)) != NULL,
                 "a dtype without its name: '%s'", xp_last_error());
    }
    ep_setup s;
    if (!ep_make_setup_for(env, &s, &same))
        return false;
    const bool ok = ep_check_in_group(env, &s.p, s.group, s.plan, env->stream);
    ep_free_setup(env, &s);
    return ok;
}

/* Tensors of the wrong shape are refused before anything is sent. */
bool ep_wrong_tensors(ep_env *env) {
    ep_setup s;
    if (!ep_make_setup(env, &s, ROUTE_RANDOM))
        return false;
    int64_t n = s.p.tokens[env->rank];
    EP_OK(env, xp_ep_plan_build(s.group, s.ids, s.weights, n, env->stream, s.plan));
    xp_tensor bad[3] = {s.rt, s.rt, s.rt};
    bad[0].shape[1]++;
    bad[1].shape[0] = 1;
    bad[2].dtype = XP_I32;
    for (int i = 0; i < 3; i++)
        EP_CHECK(env, xp_ep_dispatch(s.group, s.plan, 0, &s.xt, &bad[i], env->stream) == XP_EINVAL,
                 "recv tensor %d passed", i);
    xp_tensor fewer = s.xt;
    fewer.shape[0]--;
    EP_CHECK(env, xp_ep_dispatch(s.group, s.plan, 0, &fewer, &s.rt, env->stream) == XP_EINVAL,
             "too few tokens passed");
    EP_CHECK(env, xp_ep_dispatch(s.group, s.plan, -1, &s.xt, &s.rt, env->stream) == XP_EINVAL,
             "round -1 passed");
    xp_ep_view view;
    EP_CHECK(env,
             xp_ep_plan_view(s.plan, xp_ep_group_sizes(s.group).max_rounds, &view) == XP_EINVAL,
             "a round too many");
    /* A round that the routing does not need is empty and costs nothing. */
    EP_OK(env, xp_ep_dispatch(s.group, s.plan, 1000, &s.xt, &s.rt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    if (!ep_settle(env))
        return false;
    ep_free_setup(env, &s);
    return true;
}

/* The rounds of one sum go up one by one; anything else is refused on every rank. */
bool ep_rounds_in_order(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_ONE_RANK);
    p.capacity_factor = 0.2;
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    int32_t *ids;
    float *weights;
    xp_ep_counts counts;
    if (!ep_make_group(env, &p, 1, &group))
        return false;
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    int64_t n = p.tokens[env->rank];
    size_t row = (size_t)p.dim * xp_dtype_bytes(p.dtype);
    char *y = ep_shared(env, (size_t)sizes.assignment_capacity * row),
         *out = ep_shared(env, (size_t)n * row);
    xp_tensor yt = xp_tensor_2d(y, p.dtype, sizes.assignment_capacity, p.dim),
              ot = xp_tensor_2d(out, p.dtype, n, p.dim);
    ep_fill_routing(&p, env->rank, &ids, &weights);
    ids = ep_share(env, ids, (size_t)(n * p.top_k) * sizeof *ids);
    weights = ep_share(env, weights, (size_t)(n * p.top_k) * sizeof *weights);
    EP_OK(env, xp_ep_plan_create(group, &plan));
    if (!ep_settle(env))
        return false;
    EP_OK(env, xp_ep_plan_build(group, ids, weights, n, env->stream, plan));
    EP_OK(env, xp_ep_plan_wait(plan, &counts));
    EP_CHECK(env, counts.n_rounds > 2, "only %lld rounds", (long long)counts.n_rounds);
    EP_OK(env, xp_ep_combine(group, plan, 0, &yt, &ot, env->stream));
    EP_CHECK(env, xp_ep_combine(group, plan, 2, &yt, &ot, env->stream) == XP_EINVAL,
             "round 2 after round 0 passed");
    EP_CHECK(env,
             xp_ep_dispatch_backward(group, plan, 1, &yt, NULL, &ot, NULL, env->stream) ==
                 XP_EINVAL,
             "another sum's round passed");
    EP_OK(env, xp_ep_combine(group, plan, 1, &yt, &ot, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    if (!ep_settle(env))
        return false;
    ep_release(env, y);
    ep_release(env, out);
    ep_release(env, ids);
    ep_release(env, weights);
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    return true;
}

/* Every rank but the faulty one must fail in time, naming it; afterwards everything can be taken
 * down. */
static bool expect_failure(ep_env *env, ep_setup *s, xp_status status, const char *expected) {
    EP_CHECK(env, status == XP_ECOMM, "status %s, expected XP_ECOMM", xp_status_name(status));
    EP_CHECK(env, strstr(xp_last_error(), expected), "the error does not contain \"%s\": %s",
             expected, xp_last_error());
    EP_CHECK(env, xp_ep_async_error(s->group) == XP_ECOMM, "the failure did not stay");
    status = xp_ep_plan_build(s->group, s->ids, s->weights, s->p.tokens[env->rank], env->stream,
                              s->plan);
    EP_CHECK(env, status == XP_ECOMM, "a failed group works on: %s", xp_status_name(status));
    return true;
}

typedef enum fault_point {
    BEFORE_PLAN,
    BEFORE_DISPATCH,
    BEFORE_COMBINE,
    BEFORE_RECEIVE
} fault_point;

/* The calls of one layer up to the point at which the last rank goes missing. */
static xp_status run_until(ep_env *env, ep_setup *s, fault_point point, bool missing) {
    if (missing && point == BEFORE_PLAN)
        return XP_EINTERRUPTED;
    XP_TRY(xp_ep_plan_build(s->group, s->ids, s->weights, s->p.tokens[env->rank], env->stream,
                            s->plan));
    if (missing && point == BEFORE_DISPATCH)
        return XP_EINTERRUPTED;
    XP_TRY(xp_ep_dispatch(s->group, s->plan, 0, &s->xt, &s->rt, env->stream));
    if (missing && point == BEFORE_COMBINE)
        return XP_EINTERRUPTED;
    if (point == BEFORE_RECEIVE) {
        XP_TRY(xp_ep_combine_send(s->group, s->plan, 0, &s->yt, env->stream));
        if (missing)
            return XP_EINTERRUPTED;
        XP_TRY(xp_ep_combine_recv(s->group, s->plan, 0, &s->yt, &s->xt, env->stream));
    } else {
        XP_TRY(xp_ep_combine(s->group, s->plan, 0, &s->yt, &s->xt, env->stream));
    }
    /* On a GPU the calls return once queued, and only later one learns what became of them. */
    XP_TRY(xp_stream_sync(env->stream));
    return xp_ep_async_error(s->group);
}

static bool missing_at(ep_env *env, fault_point point, bool aborts) {
    ep_setup s;
    int gone = env->n_ranks - 1;
    if (!ep_make_setup(env, &s, ROUTE_RANDOM))
        return false;
    xp_status status = run_until(env, &s, point, env->rank == gone);
    bool ok = true;
    if (env->rank == gone) {
        if (aborts)
            xp_comm_abort(env->comm, "out of memory on purpose");
        else
            usleep((useconds_t)(env->timeout_s * 2.2e6));
        ok = status == XP_EINTERRUPTED ||
             ep_fail(env, "the faulty rank failed itself: %s", xp_last_error());
    } else {
        char expected[64];
        snprintf(expected, sizeof expected, aborts ? "out of memory on purpose" : "rank %d", gone);
        ok = expect_failure(env, &s, status, expected);
    }
    ep_free_setup(env, &s);
    return ok;
}

bool ep_late_for_plan(ep_env *env) {
    return missing_at(env, BEFORE_PLAN, false);
}

bool ep_late_for_dispatch(ep_env *env) {
    return missing_at(env, BEFORE_DISPATCH, false);
}

bool ep_late_for_combine(ep_env *env) {
    return missing_at(env, BEFORE_COMBINE, false);
}

bool ep_late_for_receive(ep_env *env) {
    return missing_at(env, BEFORE_RECEIVE, false);
}

bool ep_gives_up(ep_env *env) {
    return missing_at(env, BEFORE_DISPATCH, true);
}

bool ep_gives_up_after_sending(ep_env *env) {
    return missing_at(env, BEFORE_RECEIVE, true);
}

typedef struct abort_soon {
    xp_comm *comm;
    pthread_t thread;
} abort_soon;

static void *abort_main(void *context) {
    usleep(1000);
    xp_comm_abort(((abort_soon *)context)->comm, "out of memory on purpose");
    return NULL;
}

/* y of ones, and one combine that another thread of the last rank ends. Afterwards y means nothing.
 */
static bool combine_and_abort(ep_env *env, ep_setup *s) {
    int64_t n = s->p.tokens[env->rank];
    for (int64_t i = 0; i < s->yt.shape[0] * s->p.dim; i++)
        ref_store(s->p.dtype, s->y, i, 1);
    EP_OK(env, xp_ep_plan_build(s->group, s->ids, s->weights, n, env->stream, s->plan));
    const bool ends = env->rank == env->n_ranks - 1;
    abort_soon soon = {.comm = env->comm};
    EP_OK(env, xp_comm_barrier(env->comm, NULL));
    if (ends && pthread_create(&soon.thread, NULL, abort_main, &soon) != 0)
        return ep_fail(env, "no thread");
    xp_status status = xp_ep_combine(s->group, s->plan, 0, &s->yt, &s->xt, env->stream);
    memset(s->y, 0x41, (size_t)(s->yt.shape[0] * s->p.dim) * xp_dtype_bytes(s->p.dtype));
    if (ends)
        pthread_join(soon.thread, NULL);
    EP_CHECK(env, status == XP_OK || status == XP_ECOMM, "status %s", xp_status_name(status));
    return true;
}

/* A rank that has nothing to add returns as soon as the group fails; what a peer is still reading
 * there is its caller's again only when the peer has stopped. */
bool ep_abort_while_reading(ep_env *env) {
    ep_setup s;
    if (env->n_ranks > 3)
        return true; /* memory; three say what there is to say */
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    /* Rank 0 reads for longer than it takes the others to notice. */
    p.capacity_factor = 1.5;
    p.max_tokens = 2048;
    p.dim = 2048;
    p.top_k = 8;
    for (int r = 0; r < p.n_ranks; r++)
        p.tokens[r] = r == 0 ? p.max_tokens : 0;
    env->timeout_s = 10; /* nothing here waits that long unless sanitizers slow the reading down */
    if (!ep_make_setup_for(env, &s, &p))
        return false;
    bool ok = combine_and_abort(env, &s);
    const float poison = ref_load(p.dtype, s.recv, 0), sum = (float)p.top_k;
    for (int64_t i = 0; i < p.tokens[env->rank] * p.dim && ok; i++) {
        float value = ref_load(p.dtype, s.x, i);
        ok = value == sum || value == poison ||
             ep_fail(env, "element %lld is %g, neither the sum nor untouched", (long long)i, value);
    }
    ep_free_setup(env, &s);
    return ok;
}
