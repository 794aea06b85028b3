/* What a rank of the expert-parallel bench is made of. */
#include <stdlib.h>
#include <string.h>
#include "device/device_internal.h"
#include "device/gpu_placement.h"
#include "ep_rank.h"
#include "train/trainer.h"

#define COPY_BYTES ((size_t)32 << 20) /* of each rank: more than its share of any cache */
#define GPU_COPY   ((size_t)256 << 20)

/* Ranks of its node before this one. */
static int local_rank(const xp_bench_rank *rank) {
    int n = 0;
    for (int r = 0; rank->world && r < rank->rank; r++)
        n += xp_comm_node(rank->world, r) == xp_comm_node(rank->world, rank->rank);
    return n;
}

static xp_status find_placement(xp_bench_ep_rank *r) {
    const xp_bench_rank *rank = r->rank;
    if (!rank->world)
        return XP_OK;
    xp_rank_gpu mine, *all = calloc((size_t)rank->n_ranks, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", rank->n_ranks);
    memset(&mine, 0, sizeof mine);
    mine.on_gpu = 1;
    mine.index = r->gpu;
    mine.node = xp_comm_node(rank->world, rank->rank);
    xp_status status = r->backend->peer_access->identity(r->device, mine.id);
    if (status == XP_OK)
        status = xp_comm_all_gather(rank->world, &mine, all, sizeof mine, XP_U8, NULL);
    if (status == XP_OK) {
        r->shares_gpu = xp_gpu_placement_of(all, rank->n_ranks, rank->rank).any_shared;
        xp_device_set_gpu_shared(r->device, r->shares_gpu);
    }
    free(all);
    return status;
}

xp_status xp_bench_ep_open_device(xp_bench_ep_rank *r) {
    const int n_threads = xp_train_n_cores() / r->rank->n_local;
    xp_device_args args = {.kind = r->c->cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU,
                           .n_threads = n_threads > 0 ? n_threads : 1};
    r->gpu = -1;
    if (r->c->cuda) {
        int n_devices = 0;
        XP_TRY(xp_cuda_backend_get(&r->backend));
        XP_TRY(r->backend->device_count(&n_devices));
        r->gpu = args.index = xp_gpu_choose(local_rank(r->rank), n_devices);
    }
    XP_TRY(xp_device_create(&args, &r->device));
    if (r->c->cuda)
        XP_TRY(find_placement(r));
    return xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->stream);
}

xp_status xp_bench_ep_take_routing(xp_bench_ep_rank *r) {
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

/* Host memory to what the device can address; `data` lies in it already on the CPU. */
static xp_status upload(xp_bench_ep_rank *r, void *to, const void *data, size_t n_bytes) {
    if (to == data)
        return XP_OK;
    XP_TRY(xp_copy(r->stream, to, data, n_bytes));
    return xp_stream_sync(r->stream);
}

static xp_status take_rows(xp_bench_ep_rank *r, int64_t n_rows, uint64_t seed, void **rows) {
    const size_t n_bytes = (size_t)(n_rows * r->c->dim) * xp_dtype_bytes(r->c->dtype);
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

static xp_status take_weights(xp_bench_ep_rank *r, int64_t n, float **weights) {
    void *data;
    XP_TRY(xp_device_alloc(r->device, (size_t)n * sizeof **weights, "weights", &data));
    *weights = data;
    return xp_zero(r->stream, data, (size_t)n * sizeof **weights);
}

xp_status xp_bench_ep_take_memory(xp_bench_ep_rank *r) {
    const xp_bench_ep_case *c = r->c;
    const uint64_t seed = (uint64_t)r->rank->rank * 4 + 1;
    XP_TRY(take_rows(r, c->n_tokens, seed, &r->x));
    XP_TRY(take_rows(r, c->n_tokens, seed + 1, &r->out));
    XP_TRY(take_rows(r, r->recv_rows, seed + 2, &r->recv));
    XP_TRY(take_rows(r, r->assignment_rows, seed + 3, &r->y));
    if (c->backward) {
        XP_TRY(take_weights(r, r->assignment_rows, &r->d_weights));
        XP_TRY(take_weights(r, c->n_tokens * c->top_k, &r->d_topk_weights));
    }
    const size_t n_bytes = r->backend ? GPU_COPY : COPY_BYTES;
    XP_TRY(xp_device_alloc(r->device, n_bytes, "copy", (void **)&r->copy_from));
    XP_TRY(xp_device_alloc(r->device, n_bytes, "copy", (void **)&r->copy_to));
    if (r->backend) { /* the first use of what overwrites the cache, before a kernel waits for a peer */
        XP_TRY(xp_zero(r->stream, r->copy_to, GPU_COPY));
        XP_TRY(xp_stream_sync(r->stream));
    } else {
        memset(r->copy_from, 1, COPY_BYTES);
        memset(r->copy_to, 2, COPY_BYTES);
    }
    return xp_bench_link_open(&r->link, r->rank, r->stream, r->gpu, r->copy_from, n_bytes);
}
