#include "self_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/rng.h"
#include "expar/ep.h"
#include "ops/ops.h"
#include "ranks.h"

/* ---- ops --------------------------------------------------------------------------------- */

#define ROWS  37
#define WIDTH 72

/* Inputs and both results of every op that is tried. */
typedef struct op_memory {
    float a[ROWS * WIDTH], b[WIDTH * WIDTH], p[ROWS];
    float fast[ROWS * WIDTH], plain[ROWS * WIDTH], rstd[ROWS];
} op_memory;

static xp_status call_gemm(const xp_ops *ops, xp_stream *stream, op_memory *m, float *out) {
    const xp_gemm_args args = {.m = ROWS,
                               .n = WIDTH,
                               .k = WIDTH,
                               .trans_b = true,
                               .a = m->a,
                               .b = m->b,
                               .c = out,
                               .lda = WIDTH,
                               .ldb = WIDTH,
                               .ldc = WIDTH,
                               .alpha = 1.0F};
    return ops->gemm(stream, &args);
}

static xp_status call_rmsnorm(const xp_ops *ops, xp_stream *stream, op_memory *m, float *out) {
    const xp_rmsnorm_args args = {.n_rows = ROWS,
                                  .dim = WIDTH,
                                  .eps = 1e-6F,
                                  .x = m->a,
                                  .w = m->b,
                                  .y = out,
                                  .rstd = m->rstd};
    return ops->rmsnorm_forward(stream, &args);
}

static xp_status call_activation(const xp_ops *ops, xp_stream *stream, op_memory *m, float *out) {
    const xp_silu_gate_prob_args args = {.n_rows = ROWS,
                                         .dim = WIDTH / 2,
                                         .a = m->a,
                                         .b = m->a + WIDTH / 2,
                                         .ld = WIDTH,
                                         .p = m->p,
                                         .h = out};
    return ops->silu_gate_prob_forward(stream, &args);
}

static xp_status call_axpy(const xp_ops *ops, xp_stream *stream, op_memory *m, float *out) {
    const xp_axpy_args args = {.n = (int64_t)ROWS * WIDTH, .alpha = 0.5F, .x = m->a, .y = out};
    return ops->axpy(stream, &args);
}

static const struct {
    const char *name;
    xp_status (*call)(const xp_ops *ops, xp_stream *stream, op_memory *m, float *out);
} op_tests[] = {
    {"GEMM", call_gemm},
    {"RMSNorm", call_rmsnorm},
    {"silu*gate*prob", call_activation},
    {"axpy", call_axpy},
};
#define N_OP_TESTS (sizeof op_tests / sizeof op_tests[0])

static xp_status compare(const char *table, const char *name, const op_memory *m) {
    for (int i = 0; i < ROWS * WIDTH; i++)
        if (!(fabsf(m->fast[i] - m->plain[i]) <= 1e-4F * (1.0F + fabsf(m->plain[i]))))
            return xp_error(XP_EINTERNAL, "%s: %s gives %g at element %d, the plain code %g", table,
                            name, (double)m->fast[i], i, (double)m->plain[i]);
    return XP_OK;
}

static xp_status try_ops(xp_device *device, xp_stream *stream, op_memory *m, char *text,
                         size_t n_text) {
    const xp_ops *ops = NULL;
    XP_TRY(xp_ops_get(device, &ops));
    for (size_t i = 0; i < N_OP_TESTS; i++) {
        memset(m->fast, 0, sizeof m->fast);
        memset(m->plain, 0, sizeof m->plain);
        XP_TRY(op_tests[i].call(ops, stream, m, m->fast));
        XP_TRY(op_tests[i].call(xp_ops_reference(), stream, m, m->plain));
        XP_TRY(xp_stream_sync(stream));
        XP_TRY(compare(ops->name, op_tests[i].name, m));
    }
    snprintf(text, n_text, "%s agrees with the plain code in %zu ops", ops->name, N_OP_TESTS);
    return XP_OK;
}

xp_status xp_self_test_ops(char *text, size_t n_text) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 2};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    void *memory = NULL;
    XP_TRY(xp_device_create(&args, &device));
    xp_status status = xp_stream_create(device, XP_STREAM_COMPUTE, &stream);
    if (status == XP_OK)
        status = xp_device_alloc(device, sizeof(op_memory), "self test", &memory);
    if (status == XP_OK) {
        op_memory *m = memory;
        xp_rng_fill_normal(1, 1, 0, ROWS * WIDTH, 1.0F, m->a);
        xp_rng_fill_normal(1, 2, 0, WIDTH * WIDTH, 1.0F, m->b);
        xp_rng_fill_normal(1, 3, 0, ROWS, 1.0F, m->p);
        status = try_ops(device, stream, m, text, n_text);
    }
    xp_device_free(device, memory);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    return status;
}

/* ---- ranks ------------------------------------------------------------------------------- */

xp_status xp_self_test_comm(xp_comm *comm) {
    const int n = xp_comm_size(comm), rank = xp_comm_rank(comm);
    float values[64];
    for (int i = 0; i < 64; i++)
        values[i] = (float)(rank + 1) * (float)i;
    XP_TRY(xp_comm_all_reduce(comm, values, values, 64, XP_F32, XP_SUM, NULL));
    for (int i = 0; i < 64; i++)
        if (values[i] != (float)(n * (n + 1) / 2) * (float)i)
            return xp_error(XP_EINTERNAL, "all-reduce over %d ranks: element %d is %g", n, i,
                            (double)values[i]);
    return XP_OK;
}

static xp_status all_reduce_rank(xp_bench_rank *rank, void *context) {
    (void)context;
    return xp_self_test_comm(rank->world);
}

xp_status xp_self_test_all_reduce(char *text, size_t n_text) {
    const xp_bench_host threads = {0};
    XP_TRY(xp_bench_run_ranks(&threads, 2, all_reduce_rank, NULL));
    snprintf(text, n_text, "2 rank threads agree on a sum");
    return XP_OK;
}

#define EP_TOKENS  24
#define EP_DIM     20
#define EP_TOP_K   2
#define EP_EXPERTS 8

typedef struct ep_memory {
    float x[EP_TOKENS * EP_DIM], out[EP_TOKENS * EP_DIM];
    float recv[2 * EP_TOKENS * EP_DIM], y[2 * EP_TOKENS * EP_TOP_K * EP_DIM];
    int32_t ids[EP_TOKENS * EP_TOP_K];
} ep_memory;

/* The experts return what they got, so a token comes back times its assignments. */
static xp_status round_trip(xp_ep_group *group, xp_ep_plan *plan, ep_memory *m, xp_stream *stream) {
    const xp_ep_sizes sizes = xp_ep_group_sizes(group);
    XP_TRY(xp_ep_plan_build(group, m->ids, NULL, EP_TOKENS, stream, plan));
    xp_ep_counts counts;
    XP_TRY(xp_ep_plan_wait(plan, &counts));
    xp_tensor x = xp_tensor_2d(m->x, XP_F32, EP_TOKENS, EP_DIM);
    xp_tensor recv = xp_tensor_2d(m->recv, XP_F32, sizes.recv_capacity, EP_DIM);
    xp_tensor y = xp_tensor_2d(m->y, XP_F32, sizes.assignment_capacity, EP_DIM);
    xp_tensor out = xp_tensor_2d(m->out, XP_F32, EP_TOKENS, EP_DIM);
    for (int64_t round = 0; round < counts.n_rounds; round++) {
        xp_ep_view view;
        XP_TRY(xp_ep_dispatch(group, plan, round, &x, &recv, stream));
        XP_TRY(xp_ep_plan_view(plan, round, &view));
        for (int32_t r = 0; r < view.offsets[EP_EXPERTS / 2]; r++)
            memcpy(m->y + (size_t)r * EP_DIM, m->recv + (size_t)view.gather[r] * EP_DIM,
                   EP_DIM * sizeof(float));
        XP_TRY(xp_ep_combine(group, plan, round, &y, &out, stream));
    }
    for (int i = 0; i < EP_TOKENS * EP_DIM; i++)
        if (m->out[i] != EP_TOP_K * m->x[i])
            return xp_error(XP_EINTERNAL, "expert exchange: element %d came back as %g, not %g", i,
                            (double)m->out[i], (double)(EP_TOP_K * m->x[i]));
    return XP_OK;
}

static xp_status try_transport(xp_bench_rank *rank, xp_device *device, xp_stream *stream,
                               ep_memory *m, xp_ep_transport transport) {
    const xp_ep_config config = {.max_tokens = EP_TOKENS,
                                 .dim = EP_DIM,
                                 .top_k = EP_TOP_K,
                                 .n_experts = EP_EXPERTS,
                                 .dtype = XP_F32,
                                 .capacity_factor = 2,
                                 .transport = transport};
    xp_ep_group *group = NULL;
    xp_ep_plan *plan = NULL;
    XP_TRY(xp_ep_group_create(rank->world, device, &config, &group));
    xp_status status = xp_ep_plan_create(group, &plan);
    if (status == XP_OK)
        status = round_trip(group, plan, m, stream);
    xp_ep_plan_destroy(plan);
    xp_ep_group_destroy(group);
    return status;
}

static xp_status ep_rank(xp_bench_rank *rank, void *context) {
    (void)context;
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    void *memory = NULL;
    XP_TRY(xp_device_create(&args, &device));
    xp_status status = xp_stream_create(device, XP_STREAM_COMPUTE, &stream);
    if (status == XP_OK)
        status = xp_device_alloc(device, sizeof(ep_memory), "self test", &memory);
    if (status == XP_OK) {
        ep_memory *m = memory;
        xp_rng_fill_normal(1, (uint64_t)rank->rank, 0, EP_TOKENS * EP_DIM, 1.0F, m->x);
        xp_forced_balance_fill(XP_FORCED_MODULO, EP_TOKENS, EP_TOP_K, EP_EXPERTS, 2, m->ids);
        status = try_transport(rank, device, stream, m, XP_EP_P2P);
        if (status == XP_OK)
            status = try_transport(rank, device, stream, m, XP_EP_A2A);
    }
    xp_device_free(device, memory);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    return status;
}

xp_status xp_self_test_ep(char *text, size_t n_text) {
    const xp_bench_host threads = {0};
    XP_TRY(xp_bench_run_ranks(&threads, 2, ep_rank, NULL));
    snprintf(text, n_text, "on the CPU: rows went to 2 rank threads and back, p2p and a2a");
    return XP_OK;
}

/* ---- files ------------------------------------------------------------------------------- */

xp_status xp_self_test_folder(const char *folder, char *text, size_t n_text) {
    char path[4096], back[16] = "";
    static const char content[] = "expar doctor";
    snprintf(path, sizeof path, "%s/.expar-doctor-XXXXXX", folder);
    const int fd = mkstemp(path);
    if (fd < 0)
        return xp_error(XP_EIO, "cannot create a file in %s: %s", folder, strerror(errno));
    const bool written = write(fd, content, sizeof content) == (ssize_t)sizeof content &&
                         fsync(fd) == 0 &&
                         pread(fd, back, sizeof back, 0) == (ssize_t)sizeof content &&
                         memcmp(back, content, sizeof content) == 0;
    const int error = errno;
    close(fd);
    unlink(path);
    if (!written)
        return xp_error(XP_EIO, "cannot write to %s: %s", folder, strerror(error));
    snprintf(text, n_text, "files can be written and synced");
    return XP_OK;
}
