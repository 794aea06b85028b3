/* Many calls in a row, and calls on streams of their own. */
#include <stdlib.h>
#include <string.h>
#include "ep/p2p/p2p.h"
#include "faults.h"

static uint64_t hash_bytes(uint64_t h, const void *data, size_t n) {
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ at[i]) * 0x100000001b3U;
    return h;
}

/* What a rank of the 1000 routings works on. */
typedef struct many {
    ep_problem p;
    xp_ep_group *group;
    xp_ep_plan *plan;
    xp_ep_sizes sizes;
    int32_t *ids;
    float *weights;
    char *x, *out, *recv, *y;
} many;

static bool open_many(ep_env *env, many *m) {
    *m = (many){.p = ep_problem_for(env, ROUTE_SKEWED)};
    m->p.max_tokens = 8;
    m->p.dim = 4;
    m->p.capacity_factor = 1.0; /* some of the routings need a second round */
    if (!ep_make_group(env, &m->p, 1, &m->group))
        return false;
    EP_OK(env, xp_ep_plan_create(m->group, &m->plan));
    m->sizes = xp_ep_group_sizes(m->group);
    size_t row = (size_t)m->p.dim * xp_dtype_bytes(m->p.dtype);
    size_t n_assignments = (size_t)(m->p.max_tokens * m->p.top_k);
    m->ids = ep_shared(env, n_assignments * sizeof *m->ids);
    m->weights = ep_shared(env, n_assignments * sizeof *m->weights);
    m->x = ep_shared(env, (size_t)m->p.max_tokens * row);
    m->out = ep_shared(env, (size_t)m->p.max_tokens * row);
    m->recv = ep_shared(env, (size_t)m->sizes.recv_capacity * row);
    m->y = ep_shared(env, (size_t)m->sizes.assignment_capacity * row);
    return ep_settle(env);
}

static bool close_many(ep_env *env, many *m) {
    bool ok = ep_settle(env);
    void *all[] = {m->ids, m->weights, m->x, m->out, m->recv, m->y};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        ep_release(env, all[i]);
    xp_ep_plan_destroy(m->plan);
    xp_ep_group_destroy(m->group);
    return ok;
}

static bool run_rounds(ep_env *env, many *m, int64_t n_tokens) {
    const ep_problem *p = &m->p;
    xp_tensor xt = xp_tensor_2d(m->x, p->dtype, n_tokens, p->dim),
              ot = xp_tensor_2d(m->out, p->dtype, n_tokens, p->dim),
              rt = xp_tensor_2d(m->recv, p->dtype, m->sizes.recv_capacity, p->dim),
              yt = xp_tensor_2d(m->y, p->dtype, m->sizes.assignment_capacity, p->dim);
    xp_ep_counts counts;
    EP_OK(env, xp_ep_plan_build(m->group, m->ids, m->weights, n_tokens, env->stream, m->plan));
    EP_OK(env, xp_ep_plan_wait(m->plan, &counts));
    for (int64_t round = 0; round < counts.n_rounds; round++) {
        xp_ep_view view;
        void *memory;
        EP_OK(env, xp_ep_dispatch(m->group, m->plan, round, &xt, &rt, env->stream));
        EP_OK(env, xp_stream_sync(env->stream));
        if (!ep_read_view(env, p, m->plan, round, m->sizes.assignment_capacity, env->stream, &view,
                          &memory))
            return false;
        for (int32_t k = 0; k < view.offsets[p->n_experts / p->n_ranks]; k++) {
            for (int64_t c = 0; c < p->dim; c++)
                ref_store(p->dtype, m->y, k * p->dim + c,
                          ref_load(p->dtype, m->recv, view.gather[k] * p->dim + c) *
                              view.weight[k]);
        }
        free(memory);
        EP_OK(env, xp_ep_combine(m->group, m->plan, round, &yt, &ot, env->stream));
        EP_OK(env, xp_stream_sync(env->stream));
    }
    return true;
}

/* 1000 routings through plan, dispatch and combine; the hash of all results. */
static bool hash_of_many(ep_env *env, uint64_t *hash) {
    many m;
    if (!open_many(env, &m))
        return false;
    ep_problem *p = &m.p;
    bool ok = true;
    for (int i = 0; i < 1000 && ok; i++) {
        p->seed = (uint64_t)i;
        for (int r = 0; r < env->n_ranks; r++)
            p->tokens[r] = (i * 5 + r) % (p->max_tokens + 1);
        int64_t n = p->tokens[env->rank];
        int32_t *ids;
        float *weights;
        ep_fill_routing(p, env->rank, &ids, &weights);
        memcpy(m.ids, ids, (size_t)(n * p->top_k) * sizeof *ids);
        memcpy(m.weights, weights, (size_t)(n * p->top_k) * sizeof *weights);
        free(ids);
        free(weights);
        for (int64_t k = 0; k < n * p->dim; k++)
            ref_store(p->dtype, m.x, k, ref_x(p, env->rank, k, i));
        ok = run_rounds(env, &m, n);
        *hash = hash_bytes(*hash, m.out, (size_t)(n * p->dim) * xp_dtype_bytes(p->dtype));
    }
    return close_many(env, &m) && ok;
}

bool ep_thousand_iterations(ep_env *env) {
    uint64_t hashes[2] = {1, 1};
    for (int i = 0; i < 2; i++) {
        if (!hash_of_many(env, &hashes[i]))
            return false;
    }
    EP_CHECK(env, hashes[0] == hashes[1], "two runs of 1000 iterations differ");
    return true;
}

/* Two halves of a microbatch, each on a worker stream with a slot of its own, at the same time. */
bool ep_two_slots(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    xp_ep_group *group = NULL;
    xp_ep_plan *plans[2] = {NULL, NULL};
    xp_stream *streams[2] = {NULL, NULL};
    if (!ep_make_group(env, &p, 2, &group))
        return false;
    size_t size = xp_dtype_bytes(p.dtype);
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    int64_t n = p.tokens[env->rank];
    char *x = ep_shared(env, (size_t)(n * p.dim) * size), *recv[4];
    int32_t *ids[2];
    float *weights[2];
    for (int64_t i = 0; i < n * p.dim; i++)
        ref_store(p.dtype, x, i, ref_x(&p, env->rank, i / p.dim, i % p.dim));
    size_t recv_bytes = (size_t)(sizes.recv_capacity * p.dim) * size;
    for (int i = 0; i < 4; i++)
        recv[i] = ep_shared(env, recv_bytes);
    for (int h = 0; h < 2; h++) {
        p.seed += 17;
        ep_fill_routing(&p, env->rank, &ids[h], &weights[h]);
        ids[h] = ep_share(env, ids[h], (size_t)(n * p.top_k) * sizeof *ids[h]);
        weights[h] = ep_share(env, weights[h], (size_t)(n * p.top_k) * sizeof *weights[h]);
        EP_OK(env, xp_ep_plan_create(group, &plans[h]));
        EP_OK(env, xp_ep_plan_set_slot(plans[h], h));
        EP_OK(env, xp_stream_create(env->device, XP_STREAM_WORKER, &streams[h]));
    }
    EP_CHECK(env, xp_ep_plan_set_slot(plans[0], 2) == XP_EINVAL, "slot 2 of 2 was accepted");
    xp_tensor xt = xp_tensor_2d(x, p.dtype, n, p.dim);
    if (!ep_settle(env))
        return false;
    for (int i = 0; i < 20; i++) { /* queued without waiting: both streams run */
        for (int h = 0; h < 2; h++) {
            xp_tensor rt = xp_tensor_2d(recv[h], p.dtype, sizes.recv_capacity, p.dim);
            EP_OK(env, xp_ep_plan_build(group, ids[h], weights[h], n, streams[h], plans[h]));
            EP_OK(env, xp_ep_dispatch(group, plans[h], 0, &xt, &rt, streams[h]));
        }
    }
    for (int h = 0; h < 2; h++)
        EP_OK(env, xp_stream_sync(streams[h]));
    bool same = true;
    for (int h = 0; h < 2; h++) { /* the same, one after the other on the compute stream */
        xp_tensor rt = xp_tensor_2d(recv[2 + h], p.dtype, sizes.recv_capacity, p.dim);
        EP_OK(env, xp_ep_plan_build(group, ids[h], weights[h], n, env->stream, plans[h]));
        EP_OK(env, xp_ep_dispatch(group, plans[h], 0, &xt, &rt, env->stream));
        EP_OK(env, xp_stream_sync(env->stream));
        same = same && memcmp(recv[h], recv[2 + h], recv_bytes) == 0;
    }
    if (!ep_settle(env))
        return false;
    for (int h = 0; h < 2; h++) {
        xp_stream_destroy(streams[h]);
        xp_ep_plan_destroy(plans[h]);
        ep_release(env, ids[h]);
        ep_release(env, weights[h]);
    }
    for (int i = 0; i < 4; i++)
        ep_release(env, recv[i]);
    ep_release(env, x);
    xp_ep_group_destroy(group);
    EP_CHECK(env, same, "two streams at once gave other rows than one after the other");
    return true;
}

/* The whole check on a worker stream; then that nothing was reserved between plan and combine. */
bool ep_worker_stream(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    xp_stream *stream = NULL;
    if (!ep_make_group(env, &p, 1, &group))
        return false;
    EP_OK(env, xp_ep_plan_create(group, &plan));
    EP_OK(env, xp_stream_create(env->device, XP_STREAM_WORKER, &stream));
    int64_t reserved = xp_device_n_allocs(env->device);
    bool ok = ep_check_in_group(env, &p, group, plan, stream);
    int64_t after = xp_device_n_allocs(env->device);
    xp_stream_destroy(stream);
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    EP_CHECK(env, reserved == after, "%lld allocations inside plan, dispatch or combine",
             (long long)(after - reserved));
    return ok;
}

/* The calls of years: epochs far ahead, so that words of calls long ago would count as to come, and
 * epochs that start over. A large problem needs words that the small ones between do not write. */
bool ep_epochs_start_over(ep_env *env) {
    const uint32_t jumps[] = {0, 0x7ffffff0U, 0xfffffff0U};
    ep_problem large = ep_problem_for(env, ROUTE_HOLES), small = large;
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    if (env->transport != XP_EP_P2P)
        return true;
    large.max_tokens = small.max_tokens = 300;
    for (int r = 0; r < env->n_ranks; r++) {
        large.tokens[r] = large.max_tokens - r;
        small.tokens[r] = 1 + r;
    }
    if (!ep_make_group(env, &large, 1, &group))
        return false;
    EP_OK(env, xp_ep_plan_create(group, &plan));
    bool ok = true;
    for (size_t i = 0; i < sizeof jumps / sizeof jumps[0]; i++) {
        if (jumps[i] != 0)
            ((p2p_state *)group->transport_state)->epochs[0] = jumps[i];
        for (int n = 0; n < 4 && i > 0; n++)
            ok = ep_check_in_group(env, &small, group, plan, env->stream) && ok;
        ok = ep_check_in_group(env, &large, group, plan, env->stream) && ok;
    }
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    return ok;
}
