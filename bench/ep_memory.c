/* What a rank of the expert-parallel bench is made of. */
#include <stdlib.h>
#include <string.h>
#include "ep_rank.h"

#define COPY_BYTES ((size_t)32 << 20) /* of each rank: more than its share of any cache */
#define GPU_COPY   ((size_t)256 << 20)

xp_status xp_bench_ep_take_routing(xp_bench_ep_rank *r) {
    const xp_bench_ep_case *c = r->c;
    const size_t n_assignments = (size_t)c->n_tokens * (size_t)c->top_k;
    void *ids, *weights;
    XP_TRY(xp_host_alloc(r->d.device, n_assignments * sizeof *r->ids, "routing", &ids));
    r->ids = ids;
    XP_TRY(xp_host_alloc(r->d.device, n_assignments * sizeof *r->weights, "routing", &weights));
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
    XP_TRY(xp_copy(r->d.stream, to, data, n_bytes));
    return xp_stream_sync(r->d.stream);
}

static xp_status take_rows(xp_bench_ep_rank *r, int64_t n_rows, uint64_t seed, void **rows) {
    const size_t n_bytes = (size_t)(n_rows * r->c->dim) * xp_dtype_bytes(r->c->dtype);
    XP_TRY(xp_device_alloc(r->d.device, n_bytes, "rows", rows));
    /* Random bits, but small numbers in both types: exponents stay below 1. */
    uint32_t *words = r->d.backend ? malloc(n_bytes + 1) : *rows;
    if (!words)
        return xp_error(XP_ENOMEM, "no memory for rows");
    for (size_t i = 0; i < n_bytes / sizeof *words; i++) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        words[i] = (uint32_t)(seed >> 32) & 0xBF7FBF7FU;
    }
    const xp_status status = upload(r, *rows, words, n_bytes);
    if (r->d.backend)
        free(words);
    return status;
}

/* The routing as a router leaves it. */
static xp_status upload_routing(xp_bench_ep_rank *r) {
    const size_t n = (size_t)r->c->n_tokens * (size_t)r->c->top_k;
    void *ids = r->ids, *weights = r->weights;
    if (r->d.backend) {
        XP_TRY(xp_device_alloc(r->d.device, n * sizeof *r->ids, "routing", &ids));
        XP_TRY(xp_device_alloc(r->d.device, n * sizeof *r->weights, "routing", &weights));
    }
    r->device_ids = ids;
    r->device_weights = weights;
    XP_TRY(upload(r, ids, r->ids, n * sizeof *r->ids));
    return upload(r, weights, r->weights, n * sizeof *r->weights);
}

static xp_status take_weights(xp_bench_ep_rank *r, int64_t n, float **weights) {
    void *data;
    XP_TRY(xp_device_alloc(r->d.device, (size_t)n * sizeof **weights, "weights", &data));
    *weights = data;
    return xp_zero(r->d.stream, data, (size_t)n * sizeof **weights);
}

xp_status xp_bench_ep_take_memory(xp_bench_ep_rank *r) {
    const xp_bench_ep_case *c = r->c;
    const uint64_t seed = (uint64_t)r->rank->rank * 4 + 1;
    XP_TRY(upload_routing(r));
    XP_TRY(take_rows(r, c->n_tokens, seed, &r->x));
    XP_TRY(take_rows(r, c->n_tokens, seed + 1, &r->out));
    XP_TRY(take_rows(r, r->recv_rows, seed + 2, &r->recv));
    XP_TRY(take_rows(r, r->assignment_rows, seed + 3, &r->y));
    if (c->backward) {
        XP_TRY(take_weights(r, r->assignment_rows, &r->d_weights));
        XP_TRY(take_weights(r, c->n_tokens * c->top_k, &r->d_topk_weights));
    }
    const size_t n_bytes = r->d.backend ? GPU_COPY : COPY_BYTES;
    XP_TRY(xp_device_alloc(r->d.device, n_bytes, "copy", (void **)&r->copy_from));
    XP_TRY(xp_device_alloc(r->d.device, n_bytes, "copy", (void **)&r->copy_to));
    if (r->d.backend) { /* the first use of what overwrites the cache, before a kernel waits for a peer */
        XP_TRY(xp_zero(r->d.stream, r->copy_to, GPU_COPY));
        XP_TRY(xp_stream_sync(r->d.stream));
    } else {
        memset(r->copy_from, 1, COPY_BYTES);
        memset(r->copy_to, 2, COPY_BYTES);
    }
    return xp_bench_link_open(&r->link, r->rank, r->d.stream, r->d.gpu, r->copy_from, n_bytes);
}
