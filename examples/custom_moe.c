/*
 * Train a small mixture-of-experts layer of your own with expar/moe.h, its experts spread over rank
 * threads.
 *
 *     custom_moe [n_ranks]          default 2
 *
 * The task: tokens come from 8 clusters, and each cluster has its own linear map to learn. One
 * dense layer of this size cannot do it; a router that sends each cluster to experts of its own
 * can. The program ends with 0 when it has learnt.
 *
 * What it shows: making the layer, forward, backward, which gradients to sum over ranks, balancing
 * the experts' load. A real program would use MPI ranks (xp_mpi_world_comm()) or a GPU device in
 * the same way.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "expar/moe.h"

enum { DIM = 16, CLUSTERS = 8, TOKENS = 128, STEPS = 400, MAX_RANKS = 8 };

/* A small linear congruential generator: the same data on every machine. */
static float uniform(unsigned *state) {
    *state = *state * 1664525U + 1013904223U;
    return (float)(*state >> 8) / 8388608.0F - 1.0F;
}

typedef struct task {
    float centre[CLUSTERS][DIM];
    float map[CLUSTERS][DIM][DIM];
} task;

static void task_make(task *t) {
    unsigned state = 1;
    for (int c = 0; c < CLUSTERS; c++) {
        for (int i = 0; i < DIM; i++) {
            t->centre[c][i] = 2.0F * uniform(&state);
            for (int j = 0; j < DIM; j++)
                t->map[c][i][j] = 0.4F * uniform(&state);
        }
    }
}

/* x = centre + noise, y = map x */
static void task_sample(const task *t, unsigned *state, float *x, float *y) {
    for (int n = 0; n < TOKENS; n++, x += DIM, y += DIM) {
        int c = (int)((uniform(state) + 1.0F) * 0.5F * CLUSTERS) % CLUSTERS;
        for (int i = 0; i < DIM; i++)
            x[i] = t->centre[c][i] + 0.5F * uniform(state);
        for (int i = 0; i < DIM; i++) {
            y[i] = 0.0F;
            for (int j = 0; j < DIM; j++)
                y[i] += t->map[c][i][j] * x[j];
        }
    }
}

/* Mean squared error over all ranks' tokens, and its gradient. */
static double squared_error(const float *out, const float *y, float *d_out, int n_ranks) {
    const float scale = 1.0F / (float)(TOKENS * DIM * n_ranks);
    double sum = 0.0;
    for (int i = 0; i < TOKENS * DIM; i++) {
        float difference = out[i] - y[i];
        sum += (double)difference * (double)difference;
        d_out[i] = 2.0F * scale * difference;
    }
    return sum * (double)scale;
}

/* Adam with the usual settings, on memory of the CPU device. */
typedef struct adam {
    float *m, *v;
} adam;

static void adam_update(adam *a, const xp_tensor *param, const xp_tensor *grad, int step,
                        double lr) {
    float *w = param->data;
    const float *g = grad->data;
    double correction = sqrt(1.0 - pow(0.999, step)) / (1.0 - pow(0.9, step));
    for (int64_t i = 0; i < xp_tensor_count(param); i++) {
        a->m[i] = 0.9F * a->m[i] + 0.1F * g[i];
        a->v[i] = 0.999F * a->v[i] + 0.001F * g[i] * g[i];
        w[i] -= (float)(lr * correction * (double)a->m[i] / (sqrt((double)a->v[i]) + 1e-8));
    }
}

/* What one rank owns. */
typedef struct rank {
    xp_thread_world *world;
    int index, n_ranks;
    xp_comm *comm;
    xp_device *device;
    xp_stream *stream;
    xp_moe *moe;
    adam state[XP_MOE_N_WEIGHTS];
    double first_loss, last_loss;
    xp_status status;
    char error[256];
} rank;

static xp_status setup(rank *r) {
    const xp_device_args device = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    const xp_moe_args args = {.num_experts = 16,
                              .top_k = 2,
                              .dim = DIM,
                              .moe_dim = 32,
                              .max_tokens = TOKENS,
                              .score_func = "softmax",
                              .route_norm = true,
                              .use_deepep = true};
    XP_TRY(xp_thread_world_comm(r->world, r->index, &r->comm));
    XP_TRY(xp_device_create(&device, &r->device));
    XP_TRY(xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->stream));
    XP_TRY(xp_moe_create(&args, r->comm, r->device, &r->moe));
    for (int w = 0; w < XP_MOE_N_WEIGHTS; w++) {
        xp_tensor param = xp_moe_param(r->moe, (xp_moe_weight)w);
        size_t n = (size_t)xp_tensor_count(&param);
        r->state[w] = (adam){calloc(n, sizeof(float)), calloc(n, sizeof(float))};
        if (!r->state[w].m || !r->state[w].v)
            return xp_error(XP_ENOMEM, "no memory for the optimizer");
    }
    return xp_moe_init_params(r->moe, 42, 0.1F, 0.1F);
}

static void teardown(rank *r) {
    for (int w = 0; w < XP_MOE_N_WEIGHTS; w++) {
        free(r->state[w].m);
        free(r->state[w].v);
    }
    xp_moe_destroy(r->moe);
    xp_stream_destroy(r->stream);
    xp_device_destroy(r->device);
    xp_comm_destroy(r->comm);
}

static xp_status train_step(rank *r, const task *t, unsigned *data, int step, double *loss) {
    float x[TOKENS * DIM], y[TOKENS * DIM], out[TOKENS * DIM], d_out[TOKENS * DIM],
        dx[TOKENS * DIM];
    xp_tensor tx = xp_tensor_2d(x, XP_F32, TOKENS, DIM),
              tout = xp_tensor_2d(out, XP_F32, TOKENS, DIM);
    xp_tensor td_out = xp_tensor_2d(d_out, XP_F32, TOKENS, DIM);
    xp_tensor tdx = xp_tensor_2d(dx, XP_F32, TOKENS, DIM);
    task_sample(t, data, x, y);
    XP_TRY(xp_moe_forward(r->moe, &tx, &tout, true, r->stream));
    XP_TRY(xp_stream_sync(r->stream));
    *loss = squared_error(out, y, d_out, r->n_ranks);
    XP_TRY(xp_moe_backward(r->moe, &tx, &td_out, &tdx, false, r->stream));
    XP_TRY(xp_stream_sync(r->stream));
    /* Each rank has its own experts, with gradients from all ranks' tokens; the router is
     * everybody's. */
    xp_tensor gate = xp_moe_grad(r->moe, XP_MOE_GATE);
    XP_TRY(xp_comm_all_reduce(r->comm, gate.data, gate.data, xp_tensor_count(&gate), XP_F32, XP_SUM,
                              NULL));
    XP_TRY(xp_comm_all_reduce(r->comm, loss, loss, 1, XP_F64, XP_SUM, NULL));
    for (int w = 0; w < XP_MOE_N_WEIGHTS; w++) {
        xp_tensor param = xp_moe_param(r->moe, (xp_moe_weight)w);
        xp_tensor grad = xp_moe_grad(r->moe, (xp_moe_weight)w);
        adam_update(&r->state[w], &param, &grad, step, 1e-2);
    }
    return xp_moe_update_bias(r->moe, 1e-3, r->comm, r->stream);
}

static xp_status train(rank *r) {
    task t;
    task_make(&t);
    unsigned data = 1000U + (unsigned)r->index;
    XP_TRY(setup(r));
    for (int step = 1; step <= STEPS; step++) {
        double loss = 0.0;
        XP_TRY(train_step(r, &t, &data, step, &loss));
        if (step == 1)
            r->first_loss = loss;
        r->last_loss = loss;
        if (r->index == 0 && (step == 1 || step % 50 == 0))
            printf("step %3d  loss %.4f\n", step, loss);
    }
    return XP_OK;
}

static void *rank_main(void *arg) {
    rank *r = arg;
    r->status = train(r);
    if (r->status != XP_OK) {
        snprintf(r->error, sizeof(r->error), "%s", xp_last_error());
        if (r->comm)
            xp_comm_abort(r->comm, r->error); /* nobody waits for this rank */
    }
    teardown(r);
    return NULL;
}

int main(int argc, char **argv) {
    int n_ranks = argc > 1 ? atoi(argv[1]) : 2;
    if (n_ranks < 1 || n_ranks > MAX_RANKS || 16 % n_ranks != 0) {
        fprintf(stderr, "usage: %s [n_ranks: 1, 2, 4 or 8]\n", argv[0]);
        return 2;
    }
    xp_thread_world *world = NULL;
    if (xp_thread_world_create(n_ranks, 60.0, &world) != XP_OK) {
        fprintf(stderr, "error: %s\n", xp_last_error());
        return 1;
    }
    rank ranks[MAX_RANKS] = {0};
    pthread_t threads[MAX_RANKS];
    for (int i = 0; i < n_ranks; i++) {
        ranks[i].world = world;
        ranks[i].index = i;
        ranks[i].n_ranks = n_ranks;
        if (pthread_create(&threads[i], NULL, rank_main, &ranks[i]) != 0) {
            fprintf(stderr, "error: cannot start a thread\n");
            return 1;
        }
    }
    int result = 0;
    for (int i = 0; i < n_ranks; i++) {
        pthread_join(threads[i], NULL);
        if (ranks[i].status != XP_OK) {
            fprintf(stderr, "error: rank %d: %s\n", i, ranks[i].error);
            result = 1;
        }
    }
    xp_thread_world_destroy(world);
    if (result == 0 && !(ranks[0].last_loss < 0.05 * ranks[0].first_loss)) {
        fprintf(stderr, "error: the loss fell only from %.4f to %.4f\n", ranks[0].first_loss,
                ranks[0].last_loss);
        result = 1;
    }
    return result;
}
