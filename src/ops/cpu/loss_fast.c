/** Cross-entropy over the pool, a row at a time: it stays in the core's cache through its three
 * passes. */
#include <math.h>
#include <string.h>
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/pool_scratch.h"
#include "ops/cpu/row_kernels.h"

enum { TILE_ELEMENTS = 32 * 1024 };

typedef struct job {
    const xp_cross_entropy_args *args;
    const xp_row_kernels *kernels;
    xp_stream *stream;
    int64_t tile_rows;
} job;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void no_gradient(const xp_cross_entropy_args *args, int64_t r) {
    size_t row_bytes = (size_t)args->vocab * xp_dtype_bytes(args->dtype);
    if (args->write_grad)
        memset((char *)args->logits + (size_t)r * row_bytes, 0, row_bytes);
}

/** row: the logits as fp32, replaced by the gradient where that is wanted. */
static float row_loss(const job *j, float *row, int32_t target) {
    const xp_cross_entropy_args *args = j->args;
    float max = j->kernels->max(row, args->vocab);
    double logit = (double)row[target];
    double sum = j->kernels->exp_sum(row, args->vocab, max, args->write_grad ? row : NULL);
    if (args->write_grad) {
        float factor = (float)((double)*args->grad_scale / sum);
        j->kernels->scale(row, args->vocab, factor);
        row[target] -= *args->grad_scale;
    }
    return (float)((double)max + log(sum) - logit);
}

static void loss_tile(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_cross_entropy_args *args = j->args;
    float *scratch = NULL;
    if (args->dtype == XP_BF16)
        scratch = xp_cpu_stream_scratch(j->stream, worker, (size_t)args->vocab * sizeof *scratch);
    int64_t end = smaller((tile + 1) * j->tile_rows, args->n_rows);
    for (int64_t r = tile * j->tile_rows; r < end; r++) {
        int32_t target = args->targets[r];
        if (target < 0 || target >= args->vocab) {
            /* A target past the vocabulary is a caller's mistake that must not pass for a masked
             * token. */
            args->loss[r] = target < 0 ? 0 : NAN;
            no_gradient(args, r);
            continue;
        }
        int64_t first = r * args->vocab;
        if (args->dtype == XP_F32) {
            args->loss[r] = row_loss(j, (float *)args->logits + first, target);
            continue;
        }
        j->kernels->widen((const uint16_t *)args->logits + first, args->vocab, scratch);
        args->loss[r] = row_loss(j, scratch, target);
        if (args->write_grad)
            j->kernels->narrow(scratch, args->vocab, (uint16_t *)args->logits + first);
    }
}

static xp_status cross_entropy(xp_stream *stream, const xp_cross_entropy_args *args) {
    if (args->vocab == 0)
        return XP_OK;
    int64_t tile_rows = TILE_ELEMENTS / args->vocab;
    job j = {
        .args = args,
        .kernels = xp_row_kernels_of(stream),
        .stream = stream,
        .tile_rows = tile_rows > 1 ? tile_rows : 1,
    };
    if (args->dtype == XP_BF16)
        XP_TRY(xp_cpu_reserve_scratch(stream, (size_t)args->vocab * sizeof(float)));
    xp_pool_run(xp_cpu_stream_pool(stream), loss_tile, &j,
                (args->n_rows + j.tile_rows - 1) / j.tile_rows);
    return XP_OK;
}

void xp_cpu_loss_fast(xp_ops *ops, unsigned caps) {
    if (xp_row_kernels_for(caps) != NULL)
        ops->cross_entropy = cross_entropy;
}
