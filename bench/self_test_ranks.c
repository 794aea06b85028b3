/* What ranks do together: sums, and rows to the experts and back; on the CPU and on GPUs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/rng.h"
#include "expar/ep.h"
#include "self_test.h"
#include "self_test_parts.h"

/* ---- sums -------------------------------------------------------------------------------- */

/* Whole numbers, whose sums are exact in any order. */
static void fill_sum(int rank, int64_t n, float *values) {
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(rank + 1) * (float)(i % 64);
}

static xp_status check_sum(int n_ranks, int64_t n, const float *values) {
    for (int64_t i = 0; i < n; i++)
        if (values[i] != (float)(n_ranks * (n_ranks + 1) / 2) * (float)(i % 64))
            return xp_error(XP_EINTERNAL, "all-reduce over %d ranks is wrong: element %lld is %g",
                            n_ranks, (long long)i, (double)values[i]);
    return XP_OK;
}

xp_status xp_self_test_comm(xp_comm *comm) {
    float values[64];
    fill_sum(xp_comm_rank(comm), 64, values);
    XP_TRY(xp_comm_all_reduce(comm, values, values, 64, XP_F32, XP_SUM, NULL));
    return check_sum(xp_comm_size(comm), 64, values);
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

/* ---- experts ----------------------------------------------------------------------------- */

#define EP_TOKENS 24
#define EP_DIM    64
#define EP_TOP_K  2
#define EP_LOCAL  4 /* experts of a rank */

/* Host memory. */
typedef struct ep_host {
    uint16_t x[EP_TOKENS * EP_DIM], out[EP_TOKENS * EP_DIM];
    int32_t ids[EP_TOKENS * EP_TOP_K], offsets[EP_LOCAL + 1];
    uint16_t *recv, *y; /* as many rows as the group says */
    int32_t *gather;
} ep_host;

/* Device memory: the same. */
typedef struct ep_device {
    void *x, *out, *ids, *recv, *y;
} ep_device;

typedef struct ep_case {
    const xp_bench_rank *rank;
    xp_device *device;
    xp_stream *stream;
    xp_ep_transport transport;
    xp_ep_group *group;
    xp_ep_plan *plan;
    ep_host host;
    ep_device memory;
} ep_case;

#define ROW_BYTES (EP_DIM * sizeof(uint16_t))

static xp_status take(const ep_case *c, size_t n_bytes, void **data) {
    return xp_device_alloc(c->device, n_bytes, "self test", data);
}

static xp_status reserve(ep_case *c) {
    const xp_ep_sizes sizes = xp_ep_group_sizes(c->group);
    const size_t n_recv = (size_t)sizes.recv_capacity, n_y = (size_t)sizes.assignment_capacity;
    c->host.recv = calloc(n_recv, ROW_BYTES);
    c->host.y = calloc(n_y, ROW_BYTES);
    c->host.gather = calloc(n_y, sizeof *c->host.gather);
    if (!c->host.recv || !c->host.y || !c->host.gather)
        return xp_error(XP_ENOMEM, "no memory for the rows of a self test");
    XP_TRY(take(c, sizeof c->host.x, &c->memory.x));
    XP_TRY(take(c, sizeof c->host.out, &c->memory.out));
    XP_TRY(take(c, sizeof c->host.ids, &c->memory.ids));
    XP_TRY(take(c, n_recv * ROW_BYTES, &c->memory.recv));
    XP_TRY(take(c, n_y * ROW_BYTES, &c->memory.y));
    float values[EP_TOKENS * EP_DIM];
    xp_self_test_fill(5 + (uint64_t)c->rank->rank, EP_TOKENS * EP_DIM, XP_BF16, values);
    memcpy(c->host.x, values, sizeof c->host.x);
    const int n_ranks = c->rank->n_ranks;
    xp_forced_balance_fill(XP_FORCED_MODULO, EP_TOKENS, EP_TOP_K, EP_LOCAL * n_ranks, n_ranks,
                           c->host.ids);
    XP_TRY(xp_copy(c->stream, c->memory.x, c->host.x, sizeof c->host.x));
    return xp_copy(c->stream, c->memory.ids, c->host.ids, sizeof c->host.ids);
}

static void release(ep_case *c) {
    void *const memory[] = {c->memory.x, c->memory.out, c->memory.ids, c->memory.recv, c->memory.y};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        xp_device_free(c->device, memory[i]);
    free(c->host.recv);
    free(c->host.y);
    free(c->host.gather);
}

/* The experts return what they got. Through the host: this is no measurement. */
static xp_status run_experts(ep_case *c, int64_t round) {
    const xp_ep_sizes sizes = xp_ep_group_sizes(c->group);
    const size_t n_recv = (size_t)sizes.recv_capacity, n_y = (size_t)sizes.assignment_capacity;
    ep_host *h = &c->host;
    xp_ep_view view;
    XP_TRY(xp_ep_plan_view(c->plan, round, &view));
    XP_TRY(xp_copy(c->stream, h->recv, c->memory.recv, n_recv * ROW_BYTES));
    XP_TRY(xp_copy(c->stream, h->offsets, view.offsets, sizeof h->offsets));
    XP_TRY(xp_copy(c->stream, h->gather, view.gather, n_y * sizeof *h->gather));
    XP_TRY(xp_stream_sync(c->stream));
    XP_TRY(xp_ep_async_error(c->group));
    for (int32_t r = 0; r < h->offsets[EP_LOCAL]; r++) {
        const size_t from = (size_t)h->gather[r];
        if (from >= n_recv || (size_t)r >= n_y)
            return xp_error(XP_EINTERNAL, "expert exchange: row %zu of %zu is asked for", from,
                            n_recv);
        memcpy(h->y + (size_t)r * EP_DIM, h->recv + from * EP_DIM, ROW_BYTES);
    }
    return xp_copy(c->stream, c->memory.y, h->y, n_y * ROW_BYTES);
}

/* A token comes back times its assignments. */
static xp_status round_trip(ep_case *c) {
    const xp_ep_sizes sizes = xp_ep_group_sizes(c->group);
    XP_TRY(xp_ep_plan_build(c->group, c->memory.ids, NULL, EP_TOKENS, c->stream, c->plan));
    xp_ep_counts counts;
    XP_TRY(xp_ep_plan_wait(c->plan, &counts));
    xp_tensor x = xp_tensor_2d(c->memory.x, XP_BF16, EP_TOKENS, EP_DIM);
    xp_tensor recv = xp_tensor_2d(c->memory.recv, XP_BF16, sizes.recv_capacity, EP_DIM);
    xp_tensor y = xp_tensor_2d(c->memory.y, XP_BF16, sizes.assignment_capacity, EP_DIM);
    xp_tensor out = xp_tensor_2d(c->memory.out, XP_BF16, EP_TOKENS, EP_DIM);
    for (int64_t round = 0; round < counts.n_rounds; round++) {
        XP_TRY(xp_ep_dispatch(c->group, c->plan, round, &x, &recv, c->stream));
        XP_TRY(run_experts(c, round));
        XP_TRY(xp_ep_combine(c->group, c->plan, round, &y, &out, c->stream));
    }
    XP_TRY(xp_copy(c->stream, c->host.out, c->memory.out, sizeof c->host.out));
    XP_TRY(xp_stream_sync(c->stream));
    XP_TRY(xp_ep_async_error(c->group));
    for (int i = 0; i < EP_TOKENS * EP_DIM; i++) {
        const float got = xp_bf16_to_f32(c->host.out[i]),
                    wanted = EP_TOP_K * xp_bf16_to_f32(c->host.x[i]);
        if (got != wanted)
            return xp_error(XP_EINTERNAL, "expert exchange: element %d came back as %g, not %g", i,
                            (double)got, (double)wanted);
    }
    return XP_OK;
}

static xp_status try_in(ep_case *c) {
    XP_TRY(xp_ep_plan_create(c->group, &c->plan));
    XP_TRY(reserve(c));
    return round_trip(c);
}

/* @param[in,out] transport  AUTO becomes the one that was chosen */
static xp_status try_transport(const xp_bench_rank *rank, xp_device *device, xp_stream *stream,
                               bool shares_gpus, xp_ep_transport *transport) {
    const xp_ep_config config = {.max_tokens = EP_TOKENS,
                                 .dim = EP_DIM,
                                 .top_k = EP_TOP_K,
                                 .n_experts = EP_LOCAL * rank->n_ranks,
                                 .dtype = XP_BF16,
                                 .capacity_factor = 2,
                                 .shares_gpus = shares_gpus,
                                 .transport = *transport};
    ep_case *c = calloc(1, sizeof *c);
    if (!c)
        return xp_error(XP_ENOMEM, "no memory for a self test");
    c->rank = rank;
    c->device = device;
    c->stream = stream;
    xp_status status = xp_ep_group_create(rank->world, device, &config, &c->group);
    if (status == XP_OK) {
        *transport = xp_ep_group_transport(c->group);
        status = try_in(c);
    }
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    xp_ep_plan_destroy(c->plan);
    xp_ep_group_destroy(c->group);
    release(c);
    free(c);
    return status;
}

static xp_status ep_rank(xp_bench_rank *rank, void *context) {
    static const xp_ep_transport transports[] = {XP_EP_P2P, XP_EP_A2A};
    xp_self_test_device d;
    (void)context;
    xp_status status = xp_self_test_open(XP_DEVICE_CPU, 0, &d);
    for (size_t i = 0; i < 2 && status == XP_OK; i++) {
        xp_ep_transport transport = transports[i];
        status = try_transport(rank, d.device, d.stream, false, &transport);
    }
    xp_self_test_close(&d);
    return status;
}

xp_status xp_self_test_ep(char *text, size_t n_text) {
    const xp_bench_host threads = {0};
    XP_TRY(xp_bench_run_ranks(&threads, 2, ep_rank, NULL));
    snprintf(text, n_text, "on the CPU: rows went to 2 rank threads and back, p2p and a2a");
    return XP_OK;
}

/* ---- GPUs -------------------------------------------------------------------------------- */

#define SUM_ELEMENTS 65536

static int count_gpus(void) {
    const xp_cuda_backend *cuda = NULL;
    int n = 0;
    if (xp_cuda_backend_get(&cuda) != XP_OK || cuda->device_count(&n) != XP_OK)
        return 0;
    return n;
}

xp_status xp_self_test_gpus_open(const xp_bench_rank *rank, xp_bench_device *d, bool *has) {
    const int32_t n = count_gpus();
    int32_t least = n, most = n;
    *d = (xp_bench_device){.gpu = -1};
    XP_TRY(xp_comm_all_reduce(rank->world, &n, &least, 1, XP_I32, XP_MIN, NULL));
    XP_TRY(xp_comm_all_reduce(rank->world, &n, &most, 1, XP_I32, XP_MAX, NULL));
    *has = most > 0;
    if (most > 0 && n == 0)
        return xp_error(XP_ENOTSUP, "rank %d on node %d sees no GPU, and others do: %s", rank->rank,
                        xp_comm_node(rank->world, rank->rank), xp_last_error());
    return *has ? xp_bench_device_open(rank, true, d) : XP_OK;
}

static xp_status sum_on(const xp_bench_rank *rank, const xp_bench_device *d, float *values,
                        float *memory) {
    const size_t n_bytes = SUM_ELEMENTS * sizeof *values;
    fill_sum(rank->rank, SUM_ELEMENTS, values);
    XP_TRY(xp_copy(d->stream, memory, values, n_bytes));
    XP_TRY(
        xp_comm_all_reduce(rank->world, memory, memory, SUM_ELEMENTS, XP_F32, XP_SUM, d->stream));
    XP_TRY(xp_copy(d->stream, values, memory, n_bytes));
    XP_TRY(xp_stream_sync(d->stream));
    XP_TRY(xp_comm_async_error(rank->world));
    return check_sum(rank->n_ranks, SUM_ELEMENTS, values);
}

xp_status xp_self_test_gpus_sum(const xp_bench_rank *rank, const xp_bench_device *d, char *text,
                                size_t n_text) {
    const size_t n_bytes = SUM_ELEMENTS * sizeof(float);
    float *values = malloc(n_bytes);
    void *memory = NULL;
    xp_status status = values ? XP_OK : xp_error(XP_ENOMEM, "no memory for a sum");
    if (status == XP_OK)
        status = xp_device_alloc(d->device, n_bytes, "self test", &memory);
    if (status == XP_OK)
        status = xp_comm_prepare(rank->world, d->device, n_bytes);
    if (status == XP_OK)
        status = sum_on(rank, d, values, memory);
    xp_device_free(d->device, memory);
    free(values);
    snprintf(text, n_text, "%d ranks on GPUs agree on a sum%s", rank->n_ranks,
             d->shares_gpu ? " (some share a GPU: through host memory)" : ", over NCCL");
    return status;
}

static const char *name_of(xp_ep_transport transport) {
    return transport == XP_EP_P2P            ? "p2p"
           : transport == XP_EP_HIERARCHICAL ? "hierarchical"
                                             : "a2a";
}

xp_status xp_self_test_gpus_ep(const xp_bench_rank *rank, const xp_bench_device *d, char *text,
                               size_t n_text) {
    xp_ep_transport chosen = XP_EP_AUTO, a2a = XP_EP_A2A;
    XP_TRY(try_transport(rank, d->device, d->stream, d->shares_gpu, &chosen));
    if (chosen != XP_EP_A2A)
        XP_TRY(try_transport(rank, d->device, d->stream, d->shares_gpu, &a2a));
    snprintf(text, n_text, "rows went to %d ranks on GPUs and back, %s%s", rank->n_ranks,
             name_of(chosen), chosen == XP_EP_A2A ? "" : " and a2a");
    return XP_OK;
}
