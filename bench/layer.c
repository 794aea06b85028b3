#include "layer.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "device/device_internal.h"
#include "comm/provider.h"
#include "layer_rank.h"

#define SAMPLE_S     5e-3 /* the passes of a sample take at least so long */
#define MEMORY_SHARE 0.9  /* of a GPU's, libraries take some */

typedef struct shared_case {
    const xp_bench_layer_case *c;
    xp_bench_layer_result *result;
} shared_case;

typedef struct queued {
    xp_layer_rank *r;
    xp_layer_lane *lane;
    int n;
} queued;

static xp_status reduce(const xp_layer_rank *r, double *values, int n, xp_reduce_op op) {
    return r->rank->world ? xp_comm_all_reduce(r->rank->world, values, values, n, XP_F64, op, NULL)
                          : XP_OK;
}

static xp_status wait_for_all(const xp_layer_rank *r) {
    return r->rank->world ? xp_comm_barrier(r->rank->world, NULL) : XP_OK;
}

static xp_status queue_passes(void *context) {
    const queued *q = context;
    for (int i = 0; i < q->n; i++)
        XP_TRY(xp_layer_pass(q->r, q->lane));
    return XP_OK;
}

/* Seconds of a pass on the slowest rank: the device's on a GPU, else the clock's. */
static xp_status time_passes(xp_layer_rank *r, int lane, int n, double *seconds) {
    queued q = {.r = r, .lane = &r->lanes[lane], .n = n};
    XP_TRY(wait_for_all(r));
    if (r->d.backend) {
        XP_TRY(r->d.backend->time_call(r->d.stream, queue_passes, &q, seconds));
    } else {
        const double began = xp_time_s();
        XP_TRY(queue_passes(&q));
        XP_TRY(xp_stream_sync(r->d.stream));
        *seconds = xp_time_s() - began;
    }
    XP_TRY(xp_ep_async_error(xp_moe_core_group(q.lane->core)));
    XP_TRY(reduce(r, seconds, 1, XP_MAX));
    *seconds /= n;
    return XP_OK;
}

/* The first pass loads kernels and opens libraries. Where ranks are threads with a GPU each, a load would wait for
 * kernels that wait for the rank that loads: until then the hosts make the barriers, as in a run's first step. */
static xp_status warm_up(xp_layer_rank *r, int *n_passes) {
    const bool waits = r->d.backend && !r->d.shares_gpu && r->rank->n_ranks > 1 &&
                       xp_comm_same_process(r->rank->world);
    double seconds = 0;
    xp_device_set_host_synchronized(r->d.device, waits);
    for (int i = 0; i < 2; i++)
        XP_TRY(time_passes(r, i, 1, &seconds));
    xp_device_set_host_synchronized(r->d.device, false);
    XP_TRY(time_passes(r, 0, 1, &seconds));
    *n_passes = seconds < SAMPLE_S ? (int)(SAMPLE_S / (seconds + 1e-7)) + 1 : 1;
    return XP_OK;
}

static xp_status fetch(xp_layer_rank *r, const void *data, size_t n_bytes, void *host) {
    XP_TRY(xp_copy(r->d.stream, host, data, n_bytes));
    return xp_stream_sync(r->d.stream);
}

static xp_status compare_bits(xp_layer_rank *r, bool *same) {
    const size_t n_bytes =
        (size_t)(r->c->n_tokens * r->c->model.dim) * xp_dtype_bytes(r->c->model.dtype);
    char *a = malloc(n_bytes), *b = malloc(n_bytes);
    double equal = 1;
    xp_status status = a && b ? XP_OK : xp_error(XP_ENOMEM, "no memory to compare two settings");
    for (int i = 0; i < 2 && status == XP_OK; i++) {
        status = fetch(r, i == 0 ? r->lanes[0].out : r->lanes[0].dx, n_bytes, a);
        if (status == XP_OK)
            status = fetch(r, i == 0 ? r->lanes[1].out : r->lanes[1].dx, n_bytes, b);
        if (status == XP_OK && memcmp(a, b, n_bytes) != 0)
            equal = 0;
    }
    free(a);
    free(b);
    if (status == XP_OK)
        status = reduce(r, &equal, 1, XP_MIN);
    *same = equal > 0;
    return status;
}

/* The setting that comes first changes from pair to pair. */
static xp_status measure_pair(xp_layer_rank *r, int n_passes, int pair,
                              xp_bench_layer_result *result) {
    double seconds[2];
    for (int i = 0; i < 2; i++) {
        const int lane = (i + pair) % 2;
        XP_TRY(time_passes(r, lane, n_passes, &seconds[lane]));
    }
    for (int i = 0; i < 2; i++)
        xp_bench_samples_add(&result->s[i], seconds[i]);
    xp_bench_samples_add(&result->ratio, seconds[1] / seconds[0]);
    return XP_OK;
}

/* All ranks have the same samples, so they agree; the time is the slowest rank's. */
static xp_status is_done(const xp_layer_rank *r, const xp_bench_layer_result *result, double began,
                         bool *done) {
    double spent = xp_time_s() - began, low, high;
    XP_TRY(reduce(r, &spent, 1, XP_MAX));
    if (r->rank->rank == 0 && r->c->progress)
        r->c->progress(r->c->context, spent < r->c->seconds ? spent / r->c->seconds : 1);
    const bool known = result->ratio.n >= XP_BENCH_LAYER_MIN_PAIRS &&
                       xp_bench_samples_median_bounds(&result->ratio, &low, &high) &&
                       high - low < 2 * r->c->precise;
    *done = known || spent >= r->c->seconds || result->ratio.n >= XP_BENCH_MAX_SAMPLES;
    return XP_OK;
}

static xp_status split(xp_layer_rank *r) {
    if (!r->rank->world)
        return XP_OK;
    return xp_comm_split(r->rank->world, r->rank->rank / r->c->ep_size, &r->ep);
}

/* Two layers' workspaces lie side by side. */
static xp_status check_memory(const xp_layer_rank *r) {
    const double gib = 1 << 30, total = (double)xp_device_total_bytes(r->d.device);
    int64_t needed;
    if (total == 0)
        return XP_OK;
    XP_TRY(xp_bench_layer_bytes(r->c, &needed));
    if ((double)needed < MEMORY_SHARE * total)
        return XP_OK;
    return xp_error(XP_ENOMEM,
                    "two settings side by side need %.1f GiB of a GPU's %.1f GiB: lower "
                    "training.local_batch_size for the measurement",
                    (double)needed / gib, total / gib);
}

static xp_status measure(xp_layer_rank *r, xp_bench_layer_result *result) {
    int n_passes;
    bool done = false;
    XP_TRY(xp_bench_device_open(r->rank, r->c->cuda, &r->d));
    XP_TRY(check_memory(r));
    XP_TRY(xp_ops_prepare(r->d.device));
    XP_TRY(split(r));
    XP_TRY(xp_layer_reserve(r));
    XP_TRY(xp_layer_fill(r));
    for (int i = 0; i < 2; i++)
        result->transport[i] = xp_ep_group_transport(xp_moe_core_group(r->lanes[i].core));
    XP_TRY(warm_up(r, &n_passes));
    XP_TRY(compare_bits(r, &result->same_bits));
    const double began = xp_time_s(); /* opening a GPU and filling the layer take seconds */
    for (int pair = 0; !done; pair++) {
        XP_TRY(measure_pair(r, n_passes, pair, result));
        XP_TRY(is_done(r, result, began, &done));
    }
    return wait_for_all(r); /* before anything is freed */
}

static xp_status run_rank(xp_bench_rank *rank, void *context) {
    const shared_case *shared = context;
    xp_layer_rank r = {.c = shared->c, .rank = rank};
    xp_bench_layer_result *own = calloc(1, sizeof *own);
    const xp_status status =
        own ? measure(&r, own) : xp_error(XP_ENOMEM, "no memory for the samples");
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    if (status == XP_OK && rank->rank == 0)
        *shared->result = *own;
    xp_layer_release(&r);
    xp_bench_device_close(&r.d);
    free(own);
    return status;
}

xp_status xp_bench_layer(const xp_bench_host *host, const xp_bench_layer_case *c,
                         xp_bench_layer_result *result) {
    shared_case shared = {.c = c, .result = result};
    memset(result, 0, sizeof *result);
    return xp_bench_run_ranks(host, c->n_ranks, run_rank, &shared);
}

xp_status xp_bench_layer_bytes(const xp_bench_layer_case *c, int64_t *n_bytes) {
    const xp_device_args args = {.kind = XP_DEVICE_NULL,
                                 .like = c->cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU};
    xp_layer_rank r = {.c = c};
    XP_TRY(xp_device_create(&args, &r.d.device));
    const xp_status status = xp_layer_reserve(&r);
    if (status == XP_OK)
        *n_bytes = xp_device_bytes(r.d.device, NULL);
    xp_layer_release(&r);
    xp_bench_device_close(&r.d);
    return status;
}
