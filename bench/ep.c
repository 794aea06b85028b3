#include "ep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "device/plugin.h"
#include "samples.h"
#include "train/trainer.h"

#define COPY_BYTES  ((size_t)32 << 20) /* of each rank: more than its share of any cache */
#define GPU_COPY    ((size_t)256 << 20)
#define MIN_SAMPLES 5
#define INNER_S     2e-3 /* calls of a sample go on this long, so that short calls are timed well */

/* ---- one rank ---------------------------------------------------------------------------- */

typedef struct lane {
    xp_ep_group *group;
    xp_ep_plan *plan;
    int64_t n_rounds, n_recv, n_assignments;
    int n_inner;
    xp_bench_samples dispatch_s, combine_s;
} lane;

typedef struct bench_rank {
    const xp_bench_ep_case *c;
    xp_bench_ep_row *rows;
    xp_bench_rank *rank;
    xp_device *device;
    xp_stream *stream;
    const xp_cuda_backend *backend; /* NULL on the CPU */
    int32_t *ids;
    float *weights;
    void *x, *recv, *y, *out;
    int64_t recv_rows, assignment_rows;
    char *copy_from, *copy_to;
    xp_bench_samples copy_rate; /* of all ranks */
    lane lanes[XP_BENCH_EP_MAX_TRANSPORTS];
} bench_rank;

typedef struct shared_case {
    const xp_bench_ep_case *c;
    xp_bench_ep_row *rows;
} shared_case;

static size_t row_bytes(const xp_bench_ep_case *c) {
    return (size_t)c->dim * xp_dtype_bytes(c->dtype);
}

static xp_status largest(const bench_rank *r, double *value) {
    if (!r->rank->world)
        return XP_OK;
    return xp_comm_all_reduce(r->rank->world, value, value, 1, XP_F64, XP_MAX, NULL);
}

static xp_status total(const bench_rank *r, double *value) {
    if (!r->rank->world)
        return XP_OK;
    return xp_comm_all_reduce(r->rank->world, value, value, 1, XP_F64, XP_SUM, NULL);
}

static xp_status barrier(const bench_rank *r) {
    return r->rank->world ? xp_comm_barrier(r->rank->world, NULL) : XP_OK;
}

static xp_status open_lane(bench_rank *r, int i) {
    const xp_bench_ep_case *c = r->c;
    lane *l = &r->lanes[i];
    const xp_ep_config config = {.max_tokens = c->n_tokens,
                                 .dim = c->dim,
                                 .top_k = c->top_k,
                                 .n_experts = c->n_experts,
                                 .dtype = c->dtype,
                                 .capacity_factor = c->capacity_factor,
                                 .transport = c->transports[i],
                                 .host_synchronized = c->host_synchronized,
                                 .num_sms = c->num_sms};
    XP_TRY(xp_ep_group_create(r->rank->world, r->device, &config, &l->group));
    XP_TRY(xp_ep_plan_create(l->group, &l->plan));
    const xp_ep_sizes sizes = xp_ep_group_sizes(l->group);
    r->recv_rows = sizes.recv_capacity > r->recv_rows ? sizes.recv_capacity : r->recv_rows;
    r->assignment_rows = sizes.assignment_capacity > r->assignment_rows ? sizes.assignment_capacity
                                                                        : r->assignment_rows;
    return XP_OK;
}

/* After all memory has been reserved, which on a GPU may wait for kernels that wait for this rank.
 */
static xp_status plan_lane(bench_rank *r, lane *l) {
    xp_ep_counts counts;
    XP_TRY(xp_ep_plan_build(l->group, r->ids, r->weights, r->c->n_tokens, r->stream, l->plan));
    XP_TRY(xp_ep_plan_wait(l->plan, &counts));
    l->n_rounds = counts.n_rounds;
    l->n_recv = counts.n_recv;
    l->n_assignments = counts.n_assignments;
    return XP_OK;
}

/* Host memory to what the device can address; `data` lies in it already on the CPU. */
static xp_status upload(bench_rank *r, void *to, const void *data, size_t n_bytes) {
    if (to == data)
        return XP_OK;
    XP_TRY(xp_copy(r->stream, to, data, n_bytes));
    return xp_stream_sync(r->stream);
}

static xp_status take_rows(bench_rank *r, int64_t n_rows, uint64_t seed, void **rows) {
    const size_t n_bytes = (size_t)n_rows * row_bytes(r->c);
    XP_TRY(xp_device_alloc(r->device, n_bytes, "rows", rows));
    /* Random bits, but small numbers in both types: exponents stay below 1. */
    uint32_t *words = r->backend ? malloc(n_bytes + 1) : *rows;
    if (!words)
        return xp_error(XP_ENOMEM, "no memory for rows");
    for (size_t i = 0; i < n_bytes / sizeof *words; i++) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        words[i] = (uint32_t)(seed >> 32) & 0xBF7FBF7FU;
    }
    const xp_status status = upload(r, *rows, words, n_bytes);
    if (r->backend)
        free(words);
    return status;
}

static xp_status take_memory(bench_rank *r) {
    const xp_bench_ep_case *c = r->c;
    const uint64_t seed = (uint64_t)r->rank->rank * 4 + 1;
    XP_TRY(take_rows(r, c->n_tokens, seed, &r->x));
    XP_TRY(take_rows(r, c->n_tokens, seed + 1, &r->out));
    XP_TRY(take_rows(r, r->recv_rows, seed + 2, &r->recv));
    XP_TRY(take_rows(r, r->assignment_rows, seed + 3, &r->y));
    if (r->backend && r->rank->rank > 0)
        return XP_OK; /* one rank's copy takes the whole GPU */
    const size_t n_bytes = r->backend ? GPU_COPY : COPY_BYTES;
    XP_TRY(xp_device_alloc(r->device, n_bytes, "copy", (void **)&r->copy_from));
    XP_TRY(xp_device_alloc(r->device, n_bytes, "copy", (void **)&r->copy_to));
    if (r->backend)
        return XP_OK;
    memset(r->copy_from, 1, COPY_BYTES);
    memset(r->copy_to, 2, COPY_BYTES);
    return XP_OK;
}

/* All rounds; the two directions' times are added. */
static xp_status move_once(bench_rank *r, const lane *l, double *dispatch_s, double *combine_s) {
    xp_tensor x = xp_tensor_2d(r->x, r->c->dtype, r->c->n_tokens, r->c->dim);
    xp_tensor recv = xp_tensor_2d(r->recv, r->c->dtype, r->recv_rows, r->c->dim);
    xp_tensor y = xp_tensor_2d(r->y, r->c->dtype, r->assignment_rows, r->c->dim);
    xp_tensor out = xp_tensor_2d(r->out, r->c->dtype, r->c->n_tokens, r->c->dim);
    for (int64_t round = 0; round < l->n_rounds; round++) {
        const double began = xp_time_s();
        XP_TRY(xp_ep_dispatch(l->group, l->plan, round, &x, &recv, r->stream));
        XP_TRY(xp_stream_sync(r->stream));
        const double between = xp_time_s();
        XP_TRY(xp_ep_combine(l->group, l->plan, round, &y, &out, r->stream));
        XP_TRY(xp_stream_sync(r->stream));
        *dispatch_s += between - began;
        *combine_s += xp_time_s() - between;
    }
    return XP_OK;
}

/* What a GPU is timed with: n_inner times one direction, all rounds, queued without waiting. */
typedef struct gpu_calls {
    bench_rank *rank;
    const lane *lane;
    bool combine;
} gpu_calls;

static xp_status queue_calls(void *context) {
    const gpu_calls *calls = context;
    bench_rank *r = calls->rank;
    const lane *l = calls->lane;
    xp_tensor x = xp_tensor_2d(r->x, r->c->dtype, r->c->n_tokens, r->c->dim);
    xp_tensor recv = xp_tensor_2d(r->recv, r->c->dtype, r->recv_rows, r->c->dim);
    xp_tensor y = xp_tensor_2d(r->y, r->c->dtype, r->assignment_rows, r->c->dim);
    xp_tensor out = xp_tensor_2d(r->out, r->c->dtype, r->c->n_tokens, r->c->dim);
    for (int i = 0; i < l->n_inner; i++)
        for (int64_t round = 0; round < l->n_rounds; round++)
            XP_TRY(calls->combine ? xp_ep_combine(l->group, l->plan, round, &y, &out, r->stream)
                                  : xp_ep_dispatch(l->group, l->plan, round, &x, &recv, r->stream));
    return XP_OK;
}

static xp_status move_on_gpu(bench_rank *r, const lane *l, double *dispatch_s, double *combine_s) {
    gpu_calls calls = {.rank = r, .lane = l};
    XP_TRY(r->backend->time_call(r->stream, queue_calls, &calls, dispatch_s));
    calls.combine = true;
    XP_TRY(barrier(r));
    XP_TRY(r->backend->time_call(r->stream, queue_calls, &calls, combine_s));
    return xp_ep_async_error(l->group);
}

static xp_status sample_lane(bench_rank *r, lane *l) {
    double dispatch_s = 0, combine_s = 0;
    XP_TRY(barrier(r));
    if (r->backend)
        XP_TRY(move_on_gpu(r, l, &dispatch_s, &combine_s));
    for (int i = 0; i < l->n_inner && !r->backend; i++)
        XP_TRY(move_once(r, l, &dispatch_s, &combine_s));
    dispatch_s /= l->n_inner;
    combine_s /= l->n_inner;
    XP_TRY(largest(r, &dispatch_s));
    XP_TRY(largest(r, &combine_s));
    xp_bench_samples_add(&l->dispatch_s, dispatch_s);
    xp_bench_samples_add(&l->combine_s, combine_s);
    return XP_OK;
}

/* How many calls make a sample long enough; the same on every rank. */
static xp_status warm_up(bench_rank *r, lane *l) {
    double dispatch_s = 0, combine_s = 0;
    XP_TRY(move_once(r, l, &dispatch_s, &combine_s));
    dispatch_s = combine_s = 0;
    XP_TRY(move_once(r, l, &dispatch_s, &combine_s));
    double seconds = dispatch_s + combine_s;
    XP_TRY(largest(r, &seconds));
    l->n_inner = seconds < INNER_S ? (int)(INNER_S / (seconds + 1e-7)) + 1 : 1;
    return XP_OK;
}

static xp_status queue_copy(void *context) {
    bench_rank *r = context;
    return xp_copy(r->stream, r->copy_to, r->copy_from, GPU_COPY);
}

/* The GPU's own rate, by one rank while the others wait. */
static xp_status sample_gpu_copy(bench_rank *r) {
    double seconds = 0;
    if (r->rank->rank == 0)
        XP_TRY(r->backend->time_call(r->stream, queue_copy, r, &seconds));
    XP_TRY(largest(r, &seconds));
    xp_bench_samples_add(&r->copy_rate, 2.0 * (double)GPU_COPY / seconds);
    return XP_OK;
}

static xp_status sample_copy(bench_rank *r) {
    XP_TRY(barrier(r));
    if (r->backend)
        return sample_gpu_copy(r);
    const double began = xp_time_s();
    XP_TRY(xp_copy(r->stream, r->copy_to, r->copy_from, COPY_BYTES));
    XP_TRY(xp_stream_sync(r->stream));
    double seconds = xp_time_s() - began;
    XP_TRY(largest(r, &seconds));
    xp_bench_samples_add(&r->copy_rate, 2.0 * (double)COPY_BYTES * r->c->n_ranks / seconds);
    return XP_OK;
}

/* Tokens with an expert on their own rank: their rows need no other rank. */
static int64_t count_own(const bench_rank *r) {
    const int each = r->c->n_experts / r->c->n_ranks;
    int64_t n = 0;
    for (int64_t t = 0; t < r->c->n_tokens; t++) {
        bool own = false;
        for (int k = 0; k < r->c->top_k; k++)
            own |= r->ids[t * r->c->top_k + k] / each == r->rank->rank;
        n += own;
    }
    return n;
}

/* Threads of a CPU read each other's expert rows where they are, while there is one round of them:
 * no sum has to be stored for another rank. */
static bool stores_sums(const bench_rank *r, const lane *l) {
    const bool threads = r->rank->team != NULL;
    return !threads || r->backend || l->n_rounds > 1;
}

static xp_status fill_row(bench_rank *r, int i) {
    const lane *l = &r->lanes[i];
    const double row = (double)row_bytes(r->c);
    double recv = (double)l->n_recv, assignments = (double)l->n_assignments,
           tokens = (double)r->c->n_tokens;
    XP_TRY(total(r, &recv));
    XP_TRY(total(r, &assignments));
    XP_TRY(total(r, &tokens));
    double own = (double)count_own(r);
    XP_TRY(total(r, &own));
    if (r->rank->rank != 0)
        return XP_OK;
    const double stored = stores_sums(r, l) ? recv - own : 0;
    r->rows[i] = (xp_bench_ep_row){.n_rounds = l->n_rounds,
                                   .dispatch_s = xp_bench_samples_median(&l->dispatch_s),
                                   .combine_s = xp_bench_samples_median(&l->combine_s),
                                   .memcpy_bytes_per_s = xp_bench_samples_median(&r->copy_rate),
                                   .moved_bytes = 2 * recv * row,
                                   .dispatch_bytes = 2 * recv * row,
                                   .combine_bytes = (assignments + 2 * stored + tokens) * row,
                                   .n_samples = l->dispatch_s.n};
    return XP_OK;
}

static xp_status open_device(bench_rank *r) {
    const int n_threads = xp_train_n_cores() / r->rank->n_local;
    const xp_device_args args = {.kind = r->c->cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU,
                                 .n_threads = n_threads > 0 ? n_threads : 1};
    if (r->c->cuda)
        XP_TRY(xp_cuda_backend_get(&r->backend));
    XP_TRY(xp_device_create(&args, &r->device));
    return xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->stream);
}

/* Routing in memory that the host fills and the device reads. */
static xp_status take_routing(bench_rank *r) {
    const xp_bench_ep_case *c = r->c;
    const size_t n_assignments = (size_t)c->n_tokens * (size_t)c->top_k;
    void *ids, *weights;
    XP_TRY(xp_host_alloc(r->device, n_assignments * sizeof *r->ids, "routing", &ids));
    r->ids = ids;
    XP_TRY(xp_host_alloc(r->device, n_assignments * sizeof *r->weights, "routing", &weights));
    r->weights = weights;
    XP_TRY(xp_bench_fill_routing(c, r->rank->rank, r->ids));
    for (size_t i = 0; i < n_assignments; i++)
        r->weights[i] = 1.0F / (float)c->top_k;
    return XP_OK;
}

static xp_status measure(bench_rank *r) {
    const xp_bench_ep_case *c = r->c;
    XP_TRY(open_device(r));
    XP_TRY(take_routing(r));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(open_lane(r, i));
    XP_TRY(take_memory(r));
    XP_TRY(barrier(r));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(plan_lane(r, &r->lanes[i]));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(warm_up(r, &r->lanes[i]));
    double spent = 0;
    for (int n = 0; n < MIN_SAMPLES || spent < c->seconds; n++) {
        const double began = xp_time_s();
        XP_TRY(sample_copy(r));
        for (int i = 0; i < c->n_transports; i++)
            XP_TRY(sample_lane(r, &r->lanes[(i + n) % c->n_transports]));
        double seconds = (xp_time_s() - began) / c->n_transports;
        XP_TRY(largest(r, &seconds)); /* all ranks agree on when to stop */
        spent += seconds;
    }
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(fill_row(r, i));
    return XP_OK;
}

static xp_status run_rank(xp_bench_rank *rank, void *data) {
    const shared_case *shared = data;
    bench_rank *r = calloc(1, sizeof *r);
    if (!r)
        return xp_error(XP_ENOMEM, "no memory for a rank");
    r->c = shared->c;
    r->rows = shared->rows;
    r->rank = rank;
    const xp_status status = measure(r);
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    for (int i = 0; i < r->c->n_transports; i++) {
        xp_ep_plan_destroy(r->lanes[i].plan);
        xp_ep_group_destroy(r->lanes[i].group);
    }
    xp_stream_destroy(r->stream);
    xp_device_destroy(r->device); /* with all memory of it */
    free(r);
    return status;
}

xp_status xp_bench_ep(const xp_bench_host *host, const xp_bench_ep_case *c, xp_bench_ep_row *rows) {
    shared_case shared = {.c = c, .rows = rows};
    memset(rows, 0, (size_t)c->n_transports * sizeof *rows);
    const xp_status status = xp_bench_run_ranks(host, c->n_ranks, run_rank, &shared);
    for (int i = 0; status != XP_OK && i < c->n_transports; i++) {
        rows[i].failed = true;
        snprintf(rows[i].error, sizeof rows[i].error, "%s", xp_last_error());
    }
    return status;
}
