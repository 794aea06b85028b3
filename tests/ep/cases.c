/* The contract of expar/ep.h, a case a sentence. */
#include <stdlib.h>
#include <string.h>
#include "ep/internal.h"
#include "faults.h"

static bool check_routing(ep_env *env, ep_routing routing) {
    ep_problem p = ep_problem_for(env, routing);
    return ep_check_all(env, &p, 1);
}

static bool random_routing(ep_env *env) {
    return check_routing(env, ROUTE_RANDOM);
}

static bool holes(ep_env *env) {
    return check_routing(env, ROUTE_HOLES);
}

static bool all_minus_one(ep_env *env) {
    return check_routing(env, ROUTE_NONE);
}

static bool one_expert(ep_env *env) {
    return check_routing(env, ROUTE_ONE_EXPERT);
}

static bool one_rank(ep_env *env) {
    return check_routing(env, ROUTE_ONE_RANK);
}

static bool modulo(ep_env *env) {
    return check_routing(env, ROUTE_MODULO);
}

static bool skewed(ep_env *env) {
    return check_routing(env, ROUTE_SKEWED);
}

static bool one_expert_a_rank(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    p.n_experts = env->n_ranks;
    p.top_k = env->n_ranks < 3 ? env->n_ranks : 3;
    return ep_check_all(env, &p, 1);
}

static bool every_expert(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    p.n_experts = env->n_ranks * 2;
    if (env->cuda && p.n_experts > XP_EP_GPU_MAX_TOP_K) /* the most that a token can choose there */
        p.n_experts = env->n_ranks;
    p.top_k = p.n_experts;
    return ep_check_all(env, &p, 1);
}

static bool no_tokens_on_one(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    p.tokens[env->n_ranks / 2] = 0;
    return ep_check_all(env, &p, 2);
}

static bool no_tokens_at_all(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    memset(p.tokens, 0, sizeof p.tokens);
    return ep_check_all(env, &p, 2);
}

static bool uneven_tokens(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    for (int r = 0; r < env->n_ranks; r++)
        p.tokens[r] = (r * 7 + 3) % (p.max_tokens + 1);
    return ep_check_all(env, &p, 1);
}

/* More tokens than one tile of the plan kernels holds. */
/* Room for so many tokens that a CPU's plan gathers counts first and then exchanges as many assignments as they say. */
static bool few_of_many_tokens(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_RANDOM);
    p.max_tokens = 12000;
    return ep_check_all(env, &p, 1);
}

static bool many_tokens(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    p.max_tokens = 700;
    p.dim = 3;
    for (int r = 0; r < env->n_ranks; r++)
        p.tokens[r] = 700 - r;
    if (env->transport == XP_EP_HIERARCHICAL) /* the slow reference of its sums is quadratic */
        p.max_tokens = p.tokens[0] = 300;
    for (int r = 1; r < env->n_ranks && env->transport == XP_EP_HIERARCHICAL; r++)
        p.tokens[r] = 20 + r;
    return ep_check_all(env, &p, 1);
}

static bool dims_one_by_one(ep_env *env, const int64_t *dims, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ep_problem p = ep_problem_for(env, ROUTE_HOLES);
        p.dim = dims[i];
        if (!ep_check_all(env, &p, 1))
            return false;
    }
    return true;
}

static bool odd_dims(ep_env *env) {
    const int64_t dims[] = {1, 3, 17, 255, 515};
    return dims_one_by_one(env, dims, sizeof dims / sizeof dims[0]);
}

/* Rows that GPUs cut into pieces, the last one shorter. */
static bool long_rows(ep_env *env) {
    const int64_t dims[] = {2056, 6152};
    return dims_one_by_one(env, dims, sizeof dims / sizeof dims[0]);
}

/* More chunks of rows than a GPU has warps that send, and the last one of a destination not full. */
static bool many_chunks(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    if (env->transport == XP_EP_HIERARCHICAL)
        return true; /* the slow reference of its sums is quadratic */
    p.max_tokens = 5000;
    p.dim = 16;
    for (int r = 0; r < env->n_ranks; r++)
        p.tokens[r] = 5000 - 37 * r;
    return ep_check_all(env, &p, 2);
}

/* One assignment a row, so that capacity is exact: every token of every rank goes to the last rank. */
static bool over_capacity_by(ep_env *env, int64_t capacity, int64_t over) {
    ep_problem p = ep_problem_for(env, ROUTE_ONE_EXPERT);
    p.top_k = 1;
    p.max_tokens = (capacity + over + env->n_ranks - 1) / env->n_ranks;
    p.capacity_factor = (double)capacity / (double)p.max_tokens;
    int64_t left = capacity + over;
    for (int r = 0; r < env->n_ranks; r++) {
        p.tokens[r] = left < p.max_tokens ? left : p.max_tokens;
        left -= p.tokens[r];
    }
    return ep_check_all(env, &p, 2);
}

static bool capacity_exactly_full(ep_env *env) {
    return over_capacity_by(env, 40, 0);
}

static bool over_capacity_by_one(ep_env *env) {
    return over_capacity_by(env, 40, 1);
}

static bool over_capacity_eightfold(ep_env *env) {
    return over_capacity_by(env, 20, 140);
}

/* Rows of several assignments across the rounds' borders, on every rank, with rounds that some ranks do
 * not need. */
static bool rounds_with_many_assignments(ep_env *env) {
    const ep_routing routings[] = {ROUTE_SKEWED, ROUTE_ONE_RANK, ROUTE_HOLES};
    for (size_t i = 0; i < sizeof routings / sizeof routings[0]; i++) {
        ep_problem p = ep_problem_for(env, routings[i]);
        p.capacity_factor = 0.13;
        if (!ep_check_all(env, &p, 2))
            return false;
    }
    return true;
}

/* The result does not depend on how many rounds it took: the same bits with capacity for all and
 * for a few. */
static bool rounds_do_not_change_sums(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_SKEWED);
    for (int i = 0; i < 2; i++) {
        p.capacity_factor = i ? 0.2 : 100;
        if (!ep_check_all(env, &p, 1)) /* the reference sums all rounds as one */
            return false;
    }
    return true;
}

/* Rows sent several times to measure: the same results, in one round and in several. */
static bool copies_change_nothing(ep_env *env) {
    const ep_routing routings[] = {ROUTE_HOLES, ROUTE_ONE_RANK};
    for (size_t i = 0; i < sizeof routings / sizeof routings[0]; i++) {
        ep_problem p = ep_problem_for(env, routings[i]);
        p.send_copies = 3;
        p.capacity_factor = i ? 0.5 : 100;
        if (!ep_check_all(env, &p, 2))
            return false;
    }
    return true;
}

static bool small_after_large(ep_env *env) {
    ep_problem large = ep_problem_for(env, ROUTE_RANDOM), small = large;
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    for (int r = 0; r < env->n_ranks; r++)
        small.tokens[r] = r % 3;
    small.seed = 99;
    if (!ep_make_group(env, &large, 1, &group))
        return false;
    EP_OK(env, xp_ep_plan_create(group, &plan));
    bool ok = ep_check_in_group(env, &large, group, plan, env->stream);
    ok = ep_check_in_group(env, &small, group, plan, env->stream) && ok;
    ok = ep_check_in_group(env, &large, group, plan, env->stream) && ok;
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    return ok;
}

static bool four_times(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    return ep_check_all(env, &p, 4);
}

/* Two plans of one group: the older one still says what it said after the younger was built. */
static bool plans_live_side_by_side(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    xp_ep_group *group = NULL;
    xp_ep_plan *plans[2] = {NULL, NULL};
    if (!ep_make_group(env, &p, 1, &group))
        return false;
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    size_t recv_bytes = (size_t)(sizes.recv_capacity * p.dim) * xp_dtype_bytes(p.dtype);
    int32_t *ids[2];
    float *weights[2];
    char *recv[3];
    for (int i = 0; i < 3; i++)
        recv[i] = ep_shared(env, recv_bytes);
    int64_t n = p.tokens[env->rank];
    char *x = ep_shared(env, (size_t)(n * p.dim) * xp_dtype_bytes(p.dtype));
    for (int64_t i = 0; i < n * p.dim; i++)
        ref_store(p.dtype, x, i, ref_x(&p, env->rank, i / p.dim, i % p.dim));
    for (int i = 0; i < 2; i++) {
        EP_OK(env, xp_ep_plan_create(group, &plans[i]));
        p.seed += 5;
        ep_fill_routing(&p, env->rank, &ids[i], &weights[i]);
        ids[i] = ep_share(env, ids[i], (size_t)(n * p.top_k) * sizeof *ids[i]);
        weights[i] = ep_share(env, weights[i], (size_t)(n * p.top_k) * sizeof *weights[i]);
    }
    if (!ep_settle(env))
        return false;
    for (int i = 0; i < 2; i++)
        EP_OK(env, xp_ep_plan_build(group, ids[i], weights[i], n, env->stream, plans[i]));
    xp_tensor x_view = xp_tensor_2d(x, p.dtype, n, p.dim);
    for (int i = 0; i < 3; i++) {
        xp_tensor view = xp_tensor_2d(recv[i], p.dtype, sizes.recv_capacity, p.dim);
        EP_OK(env, xp_ep_dispatch(group, plans[i % 2], 0, &x_view, &view, env->stream));
        EP_OK(env, xp_stream_sync(env->stream));
    }
    bool same = memcmp(recv[0], recv[2], recv_bytes) == 0,
         differs = memcmp(recv[0], recv[1], recv_bytes) != 0;
    if (!ep_settle(env))
        return false;
    for (int i = 0; i < 2; i++) {
        xp_ep_plan_destroy(plans[i]);
        ep_release(env, ids[i]);
        ep_release(env, weights[i]);
    }
    for (int i = 0; i < 3; i++)
        ep_release(env, recv[i]);
    ep_release(env, x);
    xp_ep_group_destroy(group);
    EP_CHECK(env, same, "a plan used again gave other bytes");
    EP_CHECK(env, differs || env->n_ranks == 1,
             "two routings gave the same bytes: the test shows nothing");
    return true;
}

/* Identity experts: each token comes back as itself times the number of ranks that had it. */
static bool returns_rank_count(ep_env *env) {
    ep_problem p = ep_problem_for(env, ROUTE_HOLES);
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    if (!ep_make_group(env, &p, 1, &group))
        return false;
    EP_OK(env, xp_ep_plan_create(group, &plan));
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    int64_t n = p.tokens[env->rank];
    size_t size = xp_dtype_bytes(p.dtype);
    char *x = calloc((size_t)(n * p.dim), size), *out = calloc((size_t)(n * p.dim), size);
    char *recv = calloc((size_t)(sizes.recv_capacity * p.dim), size),
         *y = calloc((size_t)(sizes.assignment_capacity * p.dim), size);
    int32_t *ids;
    float *weights;
    ep_fill_routing(&p, env->rank, &ids, &weights);
    for (int64_t i = 0; i < n * p.dim; i++) /* small integers: their multiples are exact in bf16 */
        ref_store(p.dtype, x, i, (float)((env->rank * 3 + i) % 8));
    xp_tensor xt = xp_tensor_2d(x, p.dtype, n, p.dim), ot = xp_tensor_2d(out, p.dtype, n, p.dim);
    xp_tensor rt = xp_tensor_2d(recv, p.dtype, sizes.recv_capacity, p.dim),
              yt = xp_tensor_2d(y, p.dtype, sizes.assignment_capacity, p.dim);
    xp_ep_view view;
    EP_OK(env, xp_ep_plan_build(group, ids, NULL, n, env->stream, plan));
    EP_OK(env, xp_ep_plan_view(plan, 0, &view));
    EP_OK(env, xp_ep_dispatch(group, plan, 0, &xt, &rt, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    /* The first assignment of each row carries the row, the others zeros. */
    char *taken = calloc((size_t)sizes.recv_capacity + 1, 1);
    bool ok = true;
    for (int32_t i = 0; i < view.offsets[p.n_experts / p.n_ranks]; i++) {
        int32_t row = view.gather[i];
        if (!taken[row])
            memcpy(y + (size_t)(i * p.dim) * size, recv + (size_t)(row * p.dim) * size,
                   (size_t)p.dim * size);
        taken[row] = 1;
        ok = ok && view.weight[i] == 1.0F;
    }
    EP_OK(env, xp_ep_combine(group, plan, 0, &yt, &ot, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    for (int64_t i = 0; i < n * p.dim && ok; i++) {
        int ranks = 0, n_local = p.n_experts / p.n_ranks;
        for (int r = 0; r < p.n_ranks; r++) {
            bool here = false;
            for (int k = 0; k < p.top_k; k++) {
                int32_t e = ids[i / p.dim * p.top_k + k];
                here |= e >= 0 && e / n_local == r;
            }
            ranks += here;
        }
        ok = ref_load(p.dtype, out, i) == (float)ranks * ref_load(p.dtype, x, i);
    }
    void *all[] = {x, out, recv, y, ids, weights, taken};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    EP_CHECK(env, ok,
             "a token did not come back as itself times its ranks, or a weight without topk_weight "
             "is not 1");
    return true;
}

const ep_case ep_cases[] = {
    {"random", random_routing, false, false, 1, false, 0},
    {"holes", holes, false, false, 1, false, 0},
    {"all-minus-one", all_minus_one, false, false, 1, false, 0},
    {"one-expert", one_expert, false, false, 1, false, 0},
    {"one-rank", one_rank, false, false, 1, false, 0},
    {"modulo", modulo, false, false, 1, false, 0},
    {"skewed", skewed, false, false, 1, false, 0},
    {"one-expert-a-rank", one_expert_a_rank, false, false, 1, false, 0},
    {"every-expert", every_expert, false, false, 1, false, 0},
    {"no-tokens-on-one", no_tokens_on_one, false, false, 1, false, 0},
    {"no-tokens-at-all", no_tokens_at_all, false, false, 1, false, 0},
    {"uneven-tokens", uneven_tokens, false, false, 1, false, 0},
    {"many-tokens", many_tokens, false, false, 1, false, 0},
    {"few-of-many-tokens", few_of_many_tokens, false, false, 1, false, 0},
    {"odd-dims", odd_dims, false, false, 1, false, 0},
    {"long-rows", long_rows, false, false, 1, false, 0},
    {"many-chunks", many_chunks, false, false, 1, false, 0},
    {"capacity-exactly-full", capacity_exactly_full, false, false, 1, false, 0},
    {"over-capacity-by-one", over_capacity_by_one, false, false, 1, false, 0},
    {"over-capacity-eightfold", over_capacity_eightfold, false, false, 1, false, 0},
    {"rounds-with-many-assignments", rounds_with_many_assignments, false, false, 1, false, 0},
    {"rounds-do-not-change-sums", rounds_do_not_change_sums, false, false, 1, false, 0},
    {"copies-change-nothing", copies_change_nothing, false, false, 1, false, 0},
    {"small-after-large", small_after_large, false, false, 1, false, 0},
    {"four-times", four_times, false, false, 1, false, 0},
    {"plans-side-by-side", plans_live_side_by_side, false, false, 1, false, 0},
    {"returns-rank-count", returns_rank_count, false, false, 1, true, 0},
    {"thousand-iterations", ep_thousand_iterations, false, false, 1, false, 0},
    {"wrong-routing", ep_wrong_routing, false, true, 1, false, 0},
    {"unlike-configs", ep_unlike_configs, false, true, 2, false, 0},
    {"wrong-tensors", ep_wrong_tensors, false, true, 1, false, 0},
    {"rounds-in-order", ep_rounds_in_order, false, true, 1, false, 0},
    {"halves-in-order", ep_halves_in_order, false, true, 1, false, 0},
    {"sent-and-left", ep_sent_and_left, false, true, 1, false, 0},
    {"epochs-start-over", ep_epochs_start_over, false, false, 2, false, 0},
    {"two-slots", ep_two_slots, false, false, 1, false, 0},
    {"worker-stream", ep_worker_stream, false, false, 1, true, 0},
    {"bytes", ep_bytes, false, false, 1, false, 0},
    {"null-device", ep_null_device, false, false, 1, false, 0},
    {"late-for-plan", ep_late_for_plan, true, true, 2, false, 0},
    {"late-for-dispatch", ep_late_for_dispatch, true, true, 2, false, 0},
    {"late-for-combine", ep_late_for_combine, true, true, 2, false, 0},
    {"late-for-receive", ep_late_for_receive, true, true, 2, false, 0},
    {"gives-up", ep_gives_up, true, true, 2, false, 0},
    {"gives-up-after-sending", ep_gives_up_after_sending, true, true, 2, false, 0},
    {"abort-while-reading", ep_abort_while_reading, true, true, 2, true, 10},
};
const int n_ep_cases = sizeof ep_cases / sizeof ep_cases[0];
