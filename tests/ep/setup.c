/* What the bodies work with: problems, groups, and memory that the ranks' devices can address. */
#include <stdlib.h>
#include <string.h>
#include "faults.h"

static void *poisoned(size_t n_bytes) {
    void *data = malloc(n_bytes + 16);
    if (!data)
        abort();
    memset(data, EP_POISON, n_bytes + 16);
    return data;
}

void *ep_shared(ep_env *env, size_t n_bytes) {
    if (xp_device_get_kind(env->device) == XP_DEVICE_CPU)
        return poisoned(n_bytes);
    void *data = NULL;
    if (xp_host_alloc(env->device, n_bytes + 16, "test", &data) != XP_OK)
        abort();
    memset(data, EP_POISON, n_bytes + 16);
    return data;
}

void ep_release(ep_env *env, void *data) {
    if (xp_device_get_kind(env->device) == XP_DEVICE_CPU)
        free(data);
    else
        xp_host_free(env->device, data);
}

void *ep_share(ep_env *env, void *from, size_t n_bytes) {
    void *data = ep_shared(env, n_bytes);
    memcpy(data, from, n_bytes);
    free(from);
    return data;
}

bool ep_settle(ep_env *env) {
    if (env->cuda && env->n_ranks > 1)
        EP_OK(env, xp_comm_barrier(env->comm, NULL));
    return true;
}

void ep_fill_routing(const ep_problem *p, int rank, int32_t **ids, float **weights) {
    int64_t n = p->tokens[rank] * p->top_k;
    *ids = poisoned((size_t)n * sizeof **ids);
    *weights = poisoned((size_t)n * sizeof **weights);
    for (int64_t t = 0; t < p->tokens[rank]; t++) {
        ref_route(p, rank, t, *ids + t * p->top_k);
        for (int k = 0; k < p->top_k; k++) {
            int32_t e = (*ids)[t * p->top_k + k];
            (*weights)[t * p->top_k + k] = e < 0 ? 0 : ref_weight(p, rank, t, e);
        }
    }
}

bool ep_read_view(ep_env *env, const ep_problem *p, const xp_ep_plan *plan, int64_t round,
                  int64_t assignment_rows, xp_stream *stream, xp_ep_view *view, void **memory) {
    *memory = NULL;
    EP_OK(env, xp_ep_plan_view(plan, round, view));
    if (xp_device_get_kind(env->device) == XP_DEVICE_CPU)
        return true;
    const int64_t n_offsets = p->n_experts / p->n_ranks + 1;
    const void *from[] = {view->offsets, view->gather,   view->weight,
                          view->n_recv,  view->own_rows, view->own_token};
    const size_t n_rows = (size_t)assignment_rows * 4;
    const size_t n_bytes[] = {(size_t)n_offsets * 4,           n_rows, n_rows, 4,
                              (size_t)(n_offsets - 1) * 2 * 4, n_rows};
    char *at = poisoned(3 * n_rows + n_bytes[0] + n_bytes[3] + n_bytes[4]);
    void *to[6];
    *memory = at;
    for (int i = 0; i < 6; at += n_bytes[i++]) {
        to[i] = at;
        EP_OK(env, xp_copy(stream, at, from[i], n_bytes[i]));
    }
    EP_OK(env, xp_stream_sync(stream));
    *view = (xp_ep_view){.offsets = to[0],
                         .gather = to[1],
                         .weight = to[2],
                         .n_recv = to[3],
                         .own_rows = to[4],
                         .own_token = to[5]};
    return true;
}

bool ep_make_group(ep_env *env, const ep_problem *p, int n_slots, xp_ep_group **group) {
    xp_ep_config config = {.max_tokens = p->max_tokens,
                           .dim = p->dim,
                           .top_k = p->top_k,
                           .n_experts = p->n_experts,
                           .dtype = p->dtype,
                           .capacity_factor = p->capacity_factor,
                           .send_copies = p->send_copies,
                           .transport = env->transport,
                           .timeout_s = env->timeout_s,
                           .n_slots = n_slots,
                           .host_synchronized = env->host_synchronized};
    EP_OK(env, xp_ep_group_create(env->comm, env->device, &config, group));
    return true;
}

ep_problem ep_problem_for(const ep_env *env, ep_routing routing) {
    ep_problem p = {.n_ranks = env->n_ranks,
                    .n_experts = env->n_ranks * 4,
                    .top_k = 4,
                    .max_tokens = 24,
                    .dim = 16,
                    .capacity_factor = 1e6,
                    .dtype = env->dtype,
                    .routing = routing,
                    .seed = 1234};
    for (int r = 0; r < env->n_ranks; r++)
        p.tokens[r] = p.max_tokens;
    return p;
}

bool ep_make_setup_for(ep_env *env, ep_setup *s, const ep_problem *p) {
    *s = (ep_setup){.p = *p};
    if (!ep_make_group(env, &s->p, 1, &s->group))
        return false;
    EP_OK(env, xp_ep_plan_create(s->group, &s->plan));
    ep_fill_routing(&s->p, env->rank, &s->ids, &s->weights);
    int64_t n = s->p.tokens[env->rank];
    xp_ep_sizes sizes = xp_ep_group_sizes(s->group);
    size_t row = (size_t)s->p.dim * xp_dtype_bytes(s->p.dtype);
    size_t n_assignments = (size_t)(n * s->p.top_k);
    s->ids = ep_share(env, s->ids, n_assignments * sizeof *s->ids);
    s->weights = ep_share(env, s->weights, n_assignments * sizeof *s->weights);
    s->x = ep_shared(env, (size_t)n * row);
    s->recv = ep_shared(env, (size_t)sizes.recv_capacity * row);
    s->y = ep_shared(env, (size_t)sizes.assignment_capacity * row);
    s->xt = xp_tensor_2d(s->x, s->p.dtype, n, s->p.dim);
    s->rt = xp_tensor_2d(s->recv, s->p.dtype, sizes.recv_capacity, s->p.dim);
    s->yt = xp_tensor_2d(s->y, s->p.dtype, sizes.assignment_capacity, s->p.dim);
    return ep_settle(env);
}

bool ep_make_setup(ep_env *env, ep_setup *s, ep_routing routing) {
    const ep_problem p = ep_problem_for(env, routing);
    return ep_make_setup_for(env, s, &p);
}

void ep_free_setup(ep_env *env, ep_setup *s) {
    xp_ep_plan_destroy(s->plan);
    xp_ep_group_destroy(s->group);
    void *all[] = {s->ids, s->weights, s->x, s->recv, s->y};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        ep_release(env, all[i]);
}
