/* One routing, followed through every call, and compared with the reference bit for bit. */
#include <stdlib.h>
#include <string.h>
#include "harness.h"

typedef struct buffers {
    int32_t *ids;
    float *weights, *d_assignment_weight, *d_topk_weight, *row;
    char *x, *recv, *y, *out, *dx, *grad;
    int64_t n_tokens, recv_rows, assignment_rows;
    int64_t n_rounds; /* of the whole group */
    size_t row_bytes;
} buffers;

static buffers make_buffers(ep_env *env, const ep_problem *p, const xp_ep_sizes *sizes) {
    const int rank = env->rank;
    buffers b = {.n_tokens = p->tokens[rank],
                 .recv_rows = sizes->recv_capacity,
                 .assignment_rows = sizes->assignment_capacity};
    b.row_bytes = (size_t)p->dim * xp_dtype_bytes(p->dtype);
    size_t n_assignments = (size_t)(b.n_tokens * p->top_k);
    ep_fill_routing(p, rank, &b.ids, &b.weights);
    b.ids = ep_share(env, b.ids, n_assignments * sizeof *b.ids);
    b.weights = ep_share(env, b.weights, n_assignments * sizeof *b.weights);
    b.x = ep_shared(env, (size_t)b.n_tokens * b.row_bytes);
    b.recv = ep_shared(env, (size_t)b.recv_rows * b.row_bytes);
    b.y = ep_shared(env, (size_t)b.assignment_rows * b.row_bytes);
    b.out = ep_shared(env, (size_t)b.n_tokens * b.row_bytes);
    b.dx = ep_shared(env, (size_t)b.n_tokens * b.row_bytes);
    b.grad = ep_shared(env, (size_t)b.recv_rows * b.row_bytes);
    b.d_assignment_weight = ep_shared(env, (size_t)b.assignment_rows * sizeof(float));
    b.d_topk_weight = ep_shared(env, n_assignments * sizeof(float));
    b.row = ep_shared(env, (size_t)p->dim * sizeof(float));
    for (int64_t t = 0; t < b.n_tokens; t++) {
        for (int64_t c = 0; c < p->dim; c++)
            ref_store(p->dtype, b.x, t * p->dim + c, ref_x(p, rank, t, c));
    }
    return b;
}

static void free_buffers(ep_env *env, buffers *b) {
    void *all[] = {b->ids,
                   b->weights,
                   b->d_assignment_weight,
                   b->d_topk_weight,
                   b->row,
                   b->x,
                   b->recv,
                   b->y,
                   b->out,
                   b->dx,
                   b->grad};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        ep_release(env, all[i]);
}

/* The rows of this round, in order, hold their source's data; the rows behind them were left alone.
 */
static bool check_rows(ep_env *env, const ep_problem *p, const ref_layout *layout, int64_t round,
                       const buffers *b, const char *recv, const char *what) {
    int64_t at = 0;
    for (int64_t i = 0; i < layout->n_rows; i++) {
        const ref_row *row = &layout->rows[i];
        if (row->round != round)
            continue;
        for (int64_t c = 0; c < p->dim; c++) {
            float expected = ref_x(p, row->source, row->token, c),
                  got = ref_load(p->dtype, recv, at * p->dim + c);
            EP_CHECK(
                env, memcmp(&expected, &got, sizeof got) == 0,
                "%s: round %lld row %lld (source %d token %lld) column %lld is %g, expected %g",
                what, (long long)round, (long long)at, row->source, (long long)row->token,
                (long long)c, (double)got, (double)expected);
        }
        at++;
    }
    for (size_t i = (size_t)at * b->row_bytes; i < (size_t)b->recv_rows * b->row_bytes + 16; i++)
        EP_CHECK(env, recv[i] == EP_POISON, "%s: wrote past the %lld rows of round %lld", what,
                 (long long)at, (long long)round);
    return true;
}

/* With one round own_rows[l] are those of this rank's tokens, in order; else none. */
static bool check_own_rows(ep_env *env, const xp_ep_view *view, int64_t n_rounds, int l,
                           const ref_row *row, int64_t at, int64_t *own_at) {
    const int32_t *own = view->own_rows + (ptrdiff_t)2 * l;
    const bool is_own = at >= own[0] && at < own[1];
    EP_CHECK(env, is_own == (n_rounds == 1 && row->source == env->rank),
             "assignment row %lld of source %d: own_rows[%d] is %d to %d", (long long)at,
             row->source, l, own[0], own[1]);
    EP_CHECK(env, !is_own || view->own_token[at] == row->token,
             "own_token[%lld] is %d, expected %lld", (long long)at, view->own_token[at],
             (long long)row->token);
    *own_at += is_own;
    return true;
}

/* offsets, gather and weights against a count; then play the experts: y rows, gradients of weights.
 */
static bool check_view(ep_env *env, const ep_problem *p, const ref_layout *layout, int64_t round,
                       const xp_ep_view *view, const buffers *b) {
    int n_local = p->n_experts / p->n_ranks;
    int64_t at = 0, n_recv = 0;
    for (int64_t i = 0; i < layout->n_rows; i++)
        n_recv += layout->rows[i].round == round;
    EP_CHECK(env, view->n_recv[0] == n_recv, "round %lld: n_recv %d, expected %lld",
             (long long)round, view->n_recv[0], (long long)n_recv);
    EP_CHECK(env, view->offsets[0] == 0, "offsets[0] is %d", view->offsets[0]);
    for (int l = 0; l < n_local; l++) {
        int expert = env->rank * n_local + l;
        int32_t row_at = 0;
        int64_t n_own = 0;
        for (int64_t i = 0; i < layout->n_rows; i++) {
            const ref_row *row = &layout->rows[i];
            if (row->round != round)
                continue;
            for (int j = 0; j < row->n_assignments; j++) {
                if (row->experts[j] != expert)
                    continue;
                float weight = ref_weight(p, row->source, row->token, expert);
                EP_CHECK(env, view->gather[at] == row_at && view->weight[at] == weight,
                         "round %lld assignment row %lld (expert %d): gather %d weight %g, "
                         "expected %d %g",
                         (long long)round, (long long)at, expert, view->gather[at],
                         (double)view->weight[at], row_at, (double)weight);
                if (!check_own_rows(env, view, b->n_rounds, l, row, at, &n_own))
                    return false;
                b->d_assignment_weight[at] = ref_d_weight(row->source, row->token, expert);
                for (int64_t c = 0; c < p->dim; c++)
                    ref_store(p->dtype, b->y, at * p->dim + c,
                              ref_expert(p, expert, ref_x(p, row->source, row->token, c), weight));
                at++;
            }
            row_at++;
        }
        EP_CHECK(env, view->offsets[l + 1] == at, "round %lld: offsets[%d] is %d, expected %lld",
                 (long long)round, l + 1, view->offsets[l + 1], (long long)at);
        const int32_t *own = view->own_rows + (ptrdiff_t)2 * l;
        EP_CHECK(env, own[1] - own[0] == n_own && own[0] >= view->offsets[l] && own[1] <= at,
                 "round %lld: own_rows[%d] is %d to %d, but %lld rows are this rank's",
                 (long long)round, l, own[0], own[1], (long long)n_own);
    }
    EP_CHECK(env, at <= b->assignment_rows, "round %lld has %lld assignment rows, capacity %lld",
             (long long)round, (long long)at, (long long)b->assignment_rows);
    return true;
}

static bool check_sums(ep_env *env, const ep_problem *p, const buffers *b, const char *out,
                       const char *what) {
    int nodes[64];
    for (int r = 0; r < env->n_ranks; r++)
        nodes[r] = xp_comm_node(env->comm, r);
    const int *levels = env->transport == XP_EP_HIERARCHICAL ? nodes : NULL;
    for (int64_t t = 0; t < b->n_tokens; t++) {
        ref_combine(p, env->rank, b->assignment_rows, levels, t, b->row);
        for (int64_t c = 0; c < p->dim; c++) {
            float got = ref_load(p->dtype, out, t * p->dim + c);
            EP_CHECK(env, memcmp(&got, &b->row[c], sizeof got) == 0,
                     "%s: token %lld column %lld is %.9g, expected %.9g", what, (long long)t,
                     (long long)c, (double)got, (double)b->row[c]);
        }
    }
    for (size_t i = (size_t)b->n_tokens * b->row_bytes; i < (size_t)b->n_tokens * b->row_bytes + 16;
         i++)
        EP_CHECK(env, out[i] == EP_POISON, "%s: wrote past its %lld rows", what,
                 (long long)b->n_tokens);
    return true;
}

static bool check_weights(ep_env *env, const ep_problem *p, const buffers *b) {
    for (int64_t i = 0; i < b->n_tokens * p->top_k; i++) {
        float expected = b->ids[i] < 0 ? 0 : ref_d_weight(env->rank, i / p->top_k, b->ids[i]);
        EP_CHECK(env, b->d_topk_weight[i] == expected,
                 "d_topk_weight of token %lld assignment %lld is %g, expected %g",
                 (long long)(i / p->top_k), (long long)(i % p->top_k), (double)b->d_topk_weight[i],
                 (double)expected);
    }
    return true;
}

static bool check_round(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                        int64_t round, const ref_layout *layout, buffers *b, xp_stream *stream) {
    xp_tensor x = xp_tensor_2d(b->x, p->dtype, b->n_tokens, p->dim),
              out = xp_tensor_2d(b->out, p->dtype, b->n_tokens, p->dim);
    xp_tensor recv = xp_tensor_2d(b->recv, p->dtype, b->recv_rows, p->dim);
    xp_tensor grad = xp_tensor_2d(b->grad, p->dtype, b->recv_rows, p->dim);
    xp_tensor y = xp_tensor_2d(b->y, p->dtype, b->assignment_rows, p->dim);
    size_t recv_bytes = (size_t)b->recv_rows * b->row_bytes;
    xp_ep_view view;
    memset(b->recv, EP_POISON, recv_bytes);
    memset(b->grad, EP_POISON, recv_bytes);
    void *memory;
    if (!ep_read_view(env, p, plan, round, b->assignment_rows, stream, &view, &memory))
        return false;
    EP_OK(env, xp_ep_dispatch(group, plan, round, &x, &recv, stream));
    EP_OK(env, xp_stream_sync(stream));
    bool ok = check_rows(env, p, layout, round, b, b->recv, "dispatch") &&
              check_view(env, p, layout, round, &view, b);
    free(memory);
    /* Even when a check failed the collective calls go on, so that the other ranks do not wait for
     * this one. */
    EP_OK(env, xp_ep_combine_backward(group, plan, round, &x, &grad, stream));
    EP_OK(env, xp_stream_sync(stream));
    ok = ok && check_rows(env, p, layout, round, b, b->grad, "combine backward");
    EP_OK(env, xp_ep_combine(group, plan, round, &y, &out, stream));
    EP_OK(env, xp_stream_sync(stream));
    return ok;
}

/* Own rows of y to `to` when it is not NULL, and poison in their place; else back from `from`. */
static void move_own_rows(const ep_problem *p, const xp_ep_view *view, buffers *b, char *to,
                          const char *from) {
    for (int l = 0; l < p->n_experts / p->n_ranks; l++) {
        const size_t first = (size_t)view->own_rows[2 * l] * b->row_bytes;
        const size_t n_bytes = (size_t)view->own_rows[2 * l + 1] * b->row_bytes - first;
        if (to) {
            memcpy(to + first, b->y + first, n_bytes);
            memset(b->y + first, EP_POISON, n_bytes);
        } else {
            memcpy(b->y + first, from + first, n_bytes);
        }
    }
}

/* Combine in two halves, on two streams; own rows of y are computed in between. */
static bool split_round(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                        int64_t round, const xp_ep_view *view, buffers *b, xp_stream *other) {
    const xp_tensor y = xp_tensor_2d(b->y, p->dtype, b->assignment_rows, p->dim);
    xp_tensor out = xp_tensor_2d(b->out, p->dtype, b->n_tokens, p->dim);
    char *own = malloc((size_t)b->assignment_rows * b->row_bytes + 1);
    if (!own)
        abort();
    move_own_rows(p, view, b, own, NULL);
    xp_status status = xp_ep_combine_send(group, plan, round, &y, other);
    if (status == XP_OK && env->rank % 2 == 0) /* on the others while sums are on their way */
        status = xp_stream_sync(other);
    move_own_rows(p, view, b, NULL, own);
    free(own);
    EP_CHECK(env, status == XP_OK, "combine send: %s", xp_last_error());
    EP_OK(env, xp_ep_combine_recv(group, plan, round, &y, &out, env->stream));
    EP_OK(env, xp_stream_sync(env->stream));
    return true;
}

/* All rounds; the tokens of `whole`, what combine made of the same rows. */
static bool run_split(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                      const ref_layout *layout, buffers *b, const char *whole) {
    const size_t n_bytes = (size_t)b->n_tokens * b->row_bytes;
    xp_stream *other;
    bool ok = true;
    EP_OK(env, xp_stream_create(env->device, XP_STREAM_COMPUTE, &other));
    if (!ep_settle(env))
        return false;
    memset(b->out, EP_POISON, n_bytes);
    for (int64_t round = 0; round < b->n_rounds; round++) {
        xp_ep_view view;
        void *memory;
        if (!ep_read_view(env, p, plan, round, b->assignment_rows, env->stream, &view, &memory))
            return false;
        if (b->n_rounds > 1) /* else y has the rows already */
            ok = ok && check_view(env, p, layout, round, &view, b);
        ok = split_round(env, p, group, plan, round, &view, b, other) && ok;
        free(memory);
    }
    if (!ep_settle(env))
        return false;
    xp_stream_destroy(other);
    EP_CHECK(env, memcmp(b->out, whole, n_bytes + 16) == 0,
             "combine in two halves gives other bits than in one");
    return ok;
}

/* dispatch_backward is a round loop of its own: between the rounds of one sum no other sum may run
 * in the slot. */
static bool run_backward(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                         int64_t n_rounds, const ref_layout *layout, buffers *b,
                         xp_stream *stream) {
    xp_tensor dx = xp_tensor_2d(b->dx, p->dtype, b->n_tokens, p->dim),
              y = xp_tensor_2d(b->y, p->dtype, b->assignment_rows, p->dim);
    bool ok = true;
    for (int64_t round = 0; round < n_rounds; round++) {
        xp_ep_view view;
        void *memory;
        if (!ep_read_view(env, p, plan, round, b->assignment_rows, stream, &view, &memory))
            return false;
        ok = ok && check_view(env, p, layout, round, &view, b);
        free(memory);
        EP_OK(env, xp_ep_dispatch_backward(group, plan, round, &y, b->d_assignment_weight, &dx,
                                           b->d_topk_weight, stream));
        EP_OK(env, xp_stream_sync(stream));
    }
    return ok;
}

static bool check_counts(ep_env *env, const ep_problem *p, const ref_layout *mine, int64_t n_rounds,
                         const xp_ep_counts *counts) {
    int n_local = p->n_experts / p->n_ranks;
    EP_CHECK(env, counts->n_rounds == n_rounds, "%lld rounds, expected %lld",
             (long long)counts->n_rounds, (long long)n_rounds);
    EP_CHECK(env, counts->n_recv == mine->n_rows && counts->n_assignments == mine->n_assignments,
             "n_recv %lld n_assignments %lld, expected %lld %lld", (long long)counts->n_recv,
             (long long)counts->n_assignments, (long long)mine->n_rows,
             (long long)mine->n_assignments);
    for (int l = 0; l < n_local; l++) {
        int64_t n = 0;
        for (int64_t i = 0; i < mine->n_rows; i++) {
            for (int j = 0; j < mine->rows[i].n_assignments; j++)
                n += mine->rows[i].experts[j] == env->rank * n_local + l;
        }
        EP_CHECK(env, counts->expert_tokens[l] == n,
                 "expert %d has %lld assignments, expected %lld", l,
                 (long long)counts->expert_tokens[l], (long long)n);
    }
    return true;
}

static bool check_with(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                       xp_stream *stream, const ref_layout *mine, buffers *b) {
    const int64_t n_rounds = b->n_rounds;
    xp_ep_counts counts;
    EP_OK(env, xp_ep_plan_build(group, b->ids, b->weights, b->n_tokens, stream, plan));
    EP_OK(env, xp_ep_plan_wait(plan, &counts));
    bool ok = check_counts(env, p, mine, n_rounds, &counts);
    for (int64_t round = 0; round < n_rounds; round++)
        ok = check_round(env, p, group, plan, round, mine, b, stream) && ok;
    ok = ok && check_sums(env, p, b, b->out, "combine");
    const size_t n_bytes = (size_t)b->n_tokens * b->row_bytes + 16;
    char *whole = malloc(n_bytes);
    if (!whole)
        abort();
    memcpy(whole, b->out, n_bytes);
    ok = run_split(env, p, group, plan, mine, b, whole) && ok;
    free(whole);
    ok = run_backward(env, p, group, plan, n_rounds, mine, b, stream) && ok;
    ok = ok && check_sums(env, p, b, b->dx, "dispatch backward") && check_weights(env, p, b);
    return ok;
}

bool ep_check_in_group(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                       xp_stream *stream) {
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    int64_t n_rounds = 1;
    ref_layout mine = {0};
    for (int r = 0; r < p->n_ranks; r++) {
        ref_layout layout = ref_receive(p, r, sizes.assignment_capacity);
        n_rounds = layout.n_rounds > n_rounds ? layout.n_rounds : n_rounds;
        if (r == env->rank)
            mine = layout;
        else
            free(layout.rows);
    }
    buffers b = make_buffers(env, p, &sizes);
    b.n_rounds = n_rounds;
    bool ok = ep_settle(env) && check_with(env, p, group, plan, stream, &mine, &b);
    ok = ep_settle(env) && ok;
    free_buffers(env, &b);
    free(mine.rows);
    return ok;
}

bool ep_check_all(ep_env *env, const ep_problem *p, int n_repeats) {
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    if (!ep_make_group(env, p, 1, &group))
        return false;
    bool ok = xp_ep_plan_create(group, &plan) == XP_OK || ep_fail(env, "plan: %s", xp_last_error());
    for (int i = 0; i < n_repeats && plan; i++)
        ok = ep_check_in_group(env, p, group, plan, env->stream) && ok;
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    return ok;
}
