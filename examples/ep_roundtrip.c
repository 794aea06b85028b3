/*
 * Expert parallelism in one screen: a few ranks (threads), random routing, one layer's plan ->
 * dispatch -> experts -> combine. The "expert" e multiplies its rows by e + 1, so every result can
 * be checked by hand.
 *
 *   ./example_ep_roundtrip [ranks]
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "expar/ep.h"

enum { TOKENS = 512, DIM = 64, EXPERTS = 16, TOP_K = 2 };

typedef struct worker {
    xp_thread_world *world;
    int rank, n_ranks;
    xp_status status;
    pthread_t thread;
} worker;

/* Token t of a rank goes to two experts; any function of the model's router would stand here. */
static void route(int rank, int32_t *ids, float *weights) {
    for (int t = 0; t < TOKENS; t++) {
        ids[t * TOP_K] = (t * 7 + rank * 3) % EXPERTS;
        ids[t * TOP_K + 1] = (ids[t * TOP_K] + 1 + t % (EXPERTS - 1)) % EXPERTS;
        weights[t * TOP_K] = 0.75F;
        weights[t * TOP_K + 1] = 0.25F;
    }
}

/* y[assignment row] = (expert + 1) * weight * recv_x[gather[assignment row]]: where a model has its grouped
 * GEMMs. */
static void run_experts(const xp_ep_view *view, int first_expert, int n_local, const float *recv_x,
                        float *y) {
    for (int l = 0; l < n_local; l++) {
        for (int32_t i = view->offsets[l]; i < view->offsets[l + 1]; i++) {
            const float *row = recv_x + (size_t)view->gather[i] * DIM;
            for (int c = 0; c < DIM; c++)
                y[(size_t)i * DIM + (size_t)c] =
                    (float)(first_expert + l + 1) * view->weight[i] * row[c];
        }
    }
}

static int check(int rank, const int32_t *ids, const float *weights, const float *out) {
    int n_wrong = 0;
    for (int t = 0; t < TOKENS; t++) {
        float expected = 0;
        for (int k = 0; k < TOP_K; k++)
            expected +=
                weights[t * TOP_K + k] * (float)(ids[t * TOP_K + k] + 1) * (float)(rank + t);
        n_wrong += fabsf(out[(size_t)t * DIM] - expected) > 1e-4F * fabsf(expected);
    }
    return n_wrong;
}

/* One layer on one rank. Everything allocated here lives for the whole run in a real program. */
static xp_status run_layer(xp_comm *comm, xp_device *device, xp_stream *stream) {
    int rank = xp_comm_rank(comm), n_ranks = xp_comm_size(comm), n_local = EXPERTS / n_ranks;
    xp_ep_config config = {.max_tokens = TOKENS,
                           .dim = DIM,
                           .top_k = TOP_K,
                           .n_experts = EXPERTS,
                           .dtype = XP_F32,
                           .capacity_factor = 1.5,
                           .transport = XP_EP_AUTO};
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    XP_TRY(xp_ep_group_create(comm, device, &config, &group));
    xp_ep_sizes sizes = xp_ep_group_sizes(group);
    float *x = calloc(TOKENS, DIM * sizeof *x), *out = calloc(TOKENS, DIM * sizeof *out);
    float *recv_x = calloc((size_t)sizes.recv_capacity, DIM * sizeof *recv_x);
    float *y = calloc((size_t)sizes.assignment_capacity, DIM * sizeof *y);
    int32_t *ids = calloc(TOKENS, TOP_K * sizeof *ids);
    float *weights = calloc(TOKENS, TOP_K * sizeof *weights);
    xp_status status = XP_ENOMEM;
    if (!x || !out || !recv_x || !y || !ids || !weights)
        goto done;
    for (int i = 0; i < TOKENS * DIM; i++)
        x[i] = (float)(rank + i / DIM);
    route(rank, ids, weights);
    xp_tensor x_t = xp_tensor_2d(x, XP_F32, TOKENS, DIM),
              out_t = xp_tensor_2d(out, XP_F32, TOKENS, DIM);
    xp_tensor recv_t = xp_tensor_2d(recv_x, XP_F32, sizes.recv_capacity, DIM);
    xp_tensor y_t = xp_tensor_2d(y, XP_F32, sizes.assignment_capacity, DIM);
    xp_ep_counts counts;
    XP_TRY_GOTO(status, xp_ep_plan_create(group, &plan), done);
    XP_TRY_GOTO(status, xp_ep_plan_build(group, ids, weights, TOKENS, stream, plan), done);
    XP_TRY_GOTO(status, xp_ep_plan_wait(plan, &counts), done);
    for (int64_t round = 0; round < counts.n_rounds; round++) {
        xp_ep_view view;
        XP_TRY_GOTO(status, xp_ep_plan_view(plan, round, &view), done);
        XP_TRY_GOTO(status, xp_ep_dispatch(group, plan, round, &x_t, &recv_t, stream), done);
        XP_TRY_GOTO(status, xp_stream_sync(stream), done);
        run_experts(&view, rank * n_local, n_local, recv_x, y);
        XP_TRY_GOTO(status, xp_ep_combine(group, plan, round, &y_t, &out_t, stream), done);
    }
    XP_TRY_GOTO(status, xp_stream_sync(stream), done);
    int n_wrong = check(rank, ids, weights, out);
    xp_ep_stats stats;
    xp_ep_get_stats(group, &stats);
    printf("rank %d: received %lld rows for %lld assignments in %lld round%s, sent %lld bytes, %d "
           "of %d "
           "tokens wrong\n",
           rank, (long long)counts.n_recv, (long long)counts.n_assignments,
           (long long)counts.n_rounds, counts.n_rounds > 1 ? "s" : "",
           (long long)stats.bytes_sent_remote, n_wrong, TOKENS);
    status = n_wrong == 0 ? XP_OK : xp_error(XP_EINTERNAL, "%d tokens are wrong", n_wrong);
done:
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    free(x);
    free(out);
    free(recv_x);
    free(y);
    free(ids);
    free(weights);
    return status;
}

static xp_status run_rank(worker *w) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_comm *comm = NULL;
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    xp_status status;
    XP_TRY(xp_thread_world_comm(w->world, w->rank, &comm));
    XP_TRY_GOTO(status, xp_device_create(&args, &device), done);
    XP_TRY_GOTO(status, xp_stream_create(device, XP_STREAM_COMPUTE, &stream), done);
    status = run_layer(comm, device, stream);
done:
    if (status != XP_OK)
        xp_comm_abort(comm, NULL);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    xp_comm_destroy(comm);
    return status;
}

static void *rank_main(void *context) {
    worker *w = context;
    w->status = run_rank(w);
    if (w->status != XP_OK)
        fprintf(stderr, "rank %d: %s\n", w->rank, xp_last_error());
    return NULL;
}

int main(int argc, char **argv) {
    int n_ranks = argc > 1 ? atoi(argv[1]) : 4;
    worker workers[EXPERTS];
    xp_thread_world *world = NULL;
    if (n_ranks < 1 || EXPERTS % n_ranks != 0) {
        fprintf(stderr, "usage: %s [ranks], a divisor of %d\n", argv[0], EXPERTS);
        return 2;
    }
    if (xp_thread_world_create(n_ranks, 30.0, &world) != XP_OK) {
        fprintf(stderr, "%s\n", xp_last_error());
        return 1;
    }
    int n_started = 0, result = 0;
    for (; n_started < n_ranks; n_started++) {
        workers[n_started] = (worker){.world = world, .rank = n_started, .n_ranks = n_ranks};
        if (pthread_create(&workers[n_started].thread, NULL, rank_main, &workers[n_started]) != 0)
            break;
    }
    for (int r = 0; r < n_started; r++) {
        pthread_join(workers[r].thread, NULL);
        result |= workers[r].status != XP_OK;
    }
    xp_thread_world_destroy(world);
    return result | (n_started < n_ranks);
}
