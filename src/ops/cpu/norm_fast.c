/* The norm family over the stream's pool: fixed blocks of rows, the work in norm_kernels.c. */
#include <string.h>
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/norm_kernels.h"
#include "ops/ops_blocks.h"

#define TILE_ROWS 32

/* What a tile function sees. */
typedef struct row_job {
    const xp_cpu_norm_kernels *kernels;
    const void *args;
    int64_t n_rows, tile_rows;
} row_job;

static int64_t first_row(const row_job *job, int64_t tile) {
    return tile * job->tile_rows;
}
static int64_t last_row(const row_job *job, int64_t tile) {
    const int64_t last = (tile + 1) * job->tile_rows;
    return last < job->n_rows ? last : job->n_rows;
}

static void run_rows(xp_stream *stream, xp_tile_fn fn, row_job *job) {
    xp_pool_run(xp_cpu_stream_pool(stream), fn, job,
                (job->n_rows + job->tile_rows - 1) / job->tile_rows);
}

/* The table that an entry stands in is chosen by the same capabilities. */
static const xp_cpu_norm_kernels *kernels_of(xp_stream *stream) {
    const unsigned caps = xp_cpu_device_caps(xp_stream_device(stream));
    return (caps & XP_CPU_AVX512) != 0 ? xp_cpu_norm_kernels_avx512() : xp_cpu_norm_kernels_avx2();
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

static void rmsnorm_forward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    job->kernels->rmsnorm_forward(job->args, first_row(job, tile), last_row(job, tile));
}

static void rmsnorm_apply_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    job->kernels->rmsnorm_apply(job->args, first_row(job, tile), last_row(job, tile));
}

static void rmsnorm_backward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    const xp_rmsnorm_backward_args *args = job->args;
    job->kernels->rmsnorm_backward(args, first_row(job, tile), last_row(job, tile),
                                   args->scratch + tile * args->dim);
}

static xp_status rmsnorm_forward(xp_stream *stream, const xp_rmsnorm_args *args) {
    run_rows(stream, rmsnorm_forward_tile,
             &(row_job){kernels_of(stream), args, args->n_rows, TILE_ROWS});
    return XP_OK;
}

static xp_status rmsnorm_apply(xp_stream *stream, const xp_rmsnorm_apply_args *args) {
    run_rows(stream, rmsnorm_apply_tile,
             &(row_job){kernels_of(stream), args, args->n_rows, TILE_ROWS});
    return XP_OK;
}

static xp_status rmsnorm_backward(xp_stream *stream, const xp_rmsnorm_backward_args *args) {
    row_job job = {kernels_of(stream), args, args->n_rows, xp_ops_block_rows(args->n_rows)};
    if (args->part != XP_NORM_WEIGHTS)
        run_rows(stream, rmsnorm_backward_tile, &job);
    if (args->part == XP_NORM_ROWS)
        return XP_OK;
    job.kernels->sum_parts(args->scratch, xp_ops_n_blocks(args->n_rows), args->dim, args->dim,
                           args->dw, args->dw_dtype, args->acc);
    return XP_OK;
}

/* ---- QK-norm and RoPE ------------------------------------------------------------------------ */

static void qknorm_rope_forward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    job->kernels->qknorm_rope_forward(job->args, first_row(job, tile), last_row(job, tile));
}

static void qknorm_rope_backward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    const xp_qknorm_rope_backward_args *args = job->args;
    float *part =
        args->forward.q_norm == NULL ? NULL : args->scratch + tile * 2 * args->forward.head_dim;
    job->kernels->qknorm_rope_backward(args, first_row(job, tile), last_row(job, tile), part);
}

static xp_status qknorm_rope_forward(xp_stream *stream, const xp_qknorm_rope_args *args) {
    run_rows(stream, qknorm_rope_forward_tile,
             &(row_job){kernels_of(stream), args, args->n_tokens, TILE_ROWS});
    return XP_OK;
}

static xp_status qknorm_rope_backward(xp_stream *stream, const xp_qknorm_rope_backward_args *args) {
    const int64_t n_tokens = args->forward.n_tokens, dim = args->forward.head_dim;
    row_job job = {kernels_of(stream), args, n_tokens, xp_ops_block_rows(n_tokens)};
    if (args->part != XP_NORM_WEIGHTS)
        run_rows(stream, qknorm_rope_backward_tile, &job);
    if (args->forward.q_norm == NULL || args->part == XP_NORM_ROWS)
        return XP_OK;
    const int64_t n_blocks = xp_ops_n_blocks(n_tokens);
    job.kernels->sum_parts(args->scratch, n_blocks, 2 * dim, dim, args->dq_norm, args->dw_dtype,
                           args->acc);
    job.kernels->sum_parts(args->scratch + dim, n_blocks, 2 * dim, dim, args->dk_norm,
                           args->dw_dtype, args->acc);
    return XP_OK;
}

/* ---- embedding ------------------------------------------------------------------------------- */

static void embed_forward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    const xp_embed_args *args = job->args;
    const size_t row_bytes = (size_t)args->dim * xp_dtype_bytes(args->dtype);
    for (int64_t t = first_row(job, tile); t < last_row(job, tile); t++)
        memcpy((char *)args->x + (size_t)t * row_bytes,
               (const char *)args->table + (size_t)args->ids[t] * row_bytes, row_bytes);
}

static xp_status embed_forward(xp_stream *stream, const xp_embed_args *args) {
    XP_TRY(xp_cpu_embed_check_ids(args));
    run_rows(stream, embed_forward_tile, &(row_job){NULL, args, args->n_tokens, TILE_ROWS});
    return XP_OK;
}

/* Rows of the table; with acc only those of ids that occur. */
static void embed_backward_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const row_job *job = context;
    const xp_embed_args *args = job->args;
    const int32_t *order = args->scratch, *end = args->scratch + args->n_tokens;
    for (int64_t id = first_row(job, tile); id < last_row(job, tile); id++) {
        const int32_t first = id == 0 ? 0 : end[id - 1], n = end[id] - first;
        if (n > 0 || !args->acc)
            job->kernels->embed_row(args, id, order + first, n);
    }
}

static xp_status embed_backward(xp_stream *stream, const xp_embed_args *args) {
    if (!args->sorted)
        XP_TRY(xp_cpu_embed_sort(args));
    if (args->sort_only)
        return XP_OK;
    run_rows(stream, embed_backward_tile,
             &(row_job){kernels_of(stream), args, args->vocab, TILE_ROWS});
    return XP_OK;
}

void xp_cpu_norm_fast(xp_ops *ops, unsigned caps) {
    ops->embed_forward = embed_forward;
    if ((caps & XP_CPU_AVX2) == 0)
        return;
    ops->embed_forward = embed_forward;
    ops->embed_backward = embed_backward;
    ops->rmsnorm_forward = rmsnorm_forward;
    ops->rmsnorm_apply = rmsnorm_apply;
    ops->rmsnorm_backward = rmsnorm_backward;
    ops->qknorm_rope_forward = qknorm_rope_forward;
    ops->qknorm_rope_backward = qknorm_rope_backward;
}
