/* Bytes that calls send and groups reserve. */
#include "faults.h"

/* Once a rank for p2p, once an assignment for a2a: the bytes a dispatch says it sent, and memory as
 * query_sizes foretold. Further copies count in memory only. */
static bool bytes_with(ep_env *env, int send_copies) {
    ep_setup s;
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    p.send_copies = send_copies;
    if (!ep_make_setup_for(env, &s, &p))
        return false;
    int64_t rows = 0, assignments = 0, n_local = s.p.n_experts / s.p.n_ranks;
    for (int64_t t = 0; t < s.p.tokens[env->rank]; t++) {
        for (int r = 0; r < env->n_ranks; r++) {
            int n = 0;
            for (int k = 0; k < s.p.top_k; k++) {
                int32_t e = s.ids[t * s.p.top_k + k];
                n += e >= 0 && e / n_local == r && r != env->rank;
            }
            rows += n > 0;
            assignments += n;
        }
    }
    EP_OK(env,
          xp_ep_plan_build(s.group, s.ids, s.weights, s.p.tokens[env->rank], env->stream, s.plan));
    xp_ep_reset_stats(s.group);
    EP_OK(env, xp_ep_dispatch(s.group, s.plan, 0, &s.xt, &s.rt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    xp_ep_stats stats;
    xp_ep_get_stats(s.group, &stats);
    int64_t expected = (env->transport == XP_EP_A2A ? assignments : rows) * s.p.dim *
                       (int64_t)xp_dtype_bytes(s.p.dtype);
    if (env->transport != XP_EP_HIERARCHICAL)
        EP_CHECK(env, stats.bytes_sent_remote == expected, "%lld bytes sent, expected %lld",
                 (long long)stats.bytes_sent_remote, (long long)expected);
    xp_ep_sizes sizes = xp_ep_group_sizes(s.group);
    int64_t reserved = xp_device_bytes(env->device, "ep");
    EP_CHECK(env, reserved == (int64_t)(sizes.group_bytes + sizes.plan_bytes),
             "%lld bytes reserved, %lld + %lld foretold", (long long)reserved,
             (long long)sizes.group_bytes, (long long)sizes.plan_bytes);
    if (!ep_settle(env))
        return false;
    ep_free_setup(env, &s);
    return true;
}

bool ep_bytes(ep_env *env) {
    return bytes_with(env, 1) && bytes_with(env, 4);
}

/* The null device reserves the same bytes without any rank beside it. */
bool ep_null_device(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    xp_ep_config config = {.max_tokens = p.max_tokens,
                           .dim = p.dim,
                           .top_k = p.top_k,
                           .n_experts = p.n_experts,
                           .dtype = p.dtype,
                           .capacity_factor = 2,
                           .send_copies = 5,
                           .n_ranks = env->n_ranks,
                           .transport = env->transport};
    xp_device_args args = {.kind = XP_DEVICE_NULL};
    xp_device *device;
    xp_ep_group *group;
    xp_ep_plan *plan;
    xp_stream *stream;
    xp_ep_sizes sizes;
    xp_ep_counts counts;
    EP_OK(env, xp_device_create(&args, &device));
    EP_OK(env, xp_stream_create(device, XP_STREAM_COMPUTE, &stream));
    EP_OK(env, xp_ep_group_create(NULL, device, &config, &group));
    EP_OK(env, xp_ep_plan_create(group, &plan));
    EP_OK(env, xp_ep_query_sizes(&config, env->n_ranks, &sizes));
    int64_t reserved = xp_device_bytes(device, "ep");
    EP_OK(env, xp_ep_plan_build(group, NULL, NULL, p.max_tokens, stream, plan));
    EP_OK(env, xp_ep_plan_wait(plan, &counts));
    xp_tensor nothing = xp_tensor_2d(NULL, p.dtype, sizes.assignment_capacity, p.dim);
    EP_OK(env, xp_ep_dispatch(group, plan, 0, &nothing, &nothing, stream));
    EP_OK(env, xp_ep_combine(group, plan, 0, &nothing, &nothing, stream));
    EP_OK(env, xp_ep_combine_send(group, plan, 0, &nothing, stream));
    EP_OK(env, xp_ep_combine_recv(group, plan, 0, &nothing, &nothing, stream));
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    xp_stream_destroy(stream);
    bool given_back = xp_device_bytes(device, "ep") == 0;
    xp_device_destroy(device);
    EP_CHECK(env,
             reserved == (int64_t)(sizes.group_bytes + sizes.plan_bytes) && given_back &&
                 counts.n_rounds == 1,
             "the null device counted %lld bytes, query_sizes says %lld", (long long)reserved,
             (long long)(sizes.group_bytes + sizes.plan_bytes));
    return true;
}
