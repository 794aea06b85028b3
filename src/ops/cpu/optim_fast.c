/** Optimizer and reductions over the pool: tiles of XP_OPS_SUM_BLOCK elements, sums added up in
 * tile order. */
#include <math.h>
#include "core/remainder.h"
#include "core/rng.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/row_kernels.h"
#include "ops/ops_blocks.h"

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t n_tiles(int64_t n) {
    return (n + XP_OPS_SUM_BLOCK - 1) / XP_OPS_SUM_BLOCK;
}

static int64_t tile_end(int64_t tile, int64_t n) {
    return smaller((tile + 1) * XP_OPS_SUM_BLOCK, n);
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

typedef struct adamw_job {
    const xp_adamw_args *args;
    const xp_row_kernels *kernels;
    xp_adamw_constants constants;
} adamw_job;

static void adamw_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const adamw_job *j = context;
    const xp_adamw_args *args = j->args;
    float block[XP_ROW_BLOCK], joined[XP_ROW_BLOCK];
    const bool joins = args->param_dtype == XP_BF16;
    int64_t end = tile_end(tile, args->n);
    for (int64_t i = tile * XP_OPS_SUM_BLOCK; i < end; i += XP_ROW_BLOCK) {
        int64_t n = smaller(XP_ROW_BLOCK, end - i);
        const float *grad = xp_row_read(j->kernels, args->grad, args->grad_dtype, i, n, block);
        float *m = args->m + i, *v = args->v + i;
        if (!joins) {
            j->kernels->adamw(&j->constants, n, grad, m, v, (float *)args->param + i);
            continue;
        }
        uint16_t *param = (uint16_t *)args->param + i, *remainder = args->remainder + i;
        xp_remainder_join(n, param, remainder, v, joined);
        j->kernels->adamw(&j->constants, n, grad, m, v, joined);
        xp_remainder_split(n, joined, param, remainder, v);
    }
}

static xp_status adamw(xp_stream *stream, const xp_adamw_args *args) {
    if (args->n == 0 || isnan(*args->grad_scale))
        return XP_OK;
    double beta1 = (double)args->beta1;
    double beta2 = (double)args->beta2;
    double lr = (double)args->lr;
    adamw_job j = {
        .args = args,
        .kernels = xp_row_kernels_of(stream),
        .constants =
            {
                .grad_scale = *args->grad_scale,
                .beta2 = args->beta2,
                .one_minus_beta1 = (float)(1 - beta1),
                .one_minus_beta2 = (float)(1 - beta2),
                .step_size = (float)(lr / (1 - pow(beta1, (double)args->step))),
                .inverse_correction2 = (float)(1 / sqrt(1 - pow(beta2, (double)args->step))),
                .eps = args->eps,
                .decay = (float)(1 - lr * (double)args->weight_decay),
            },
    };
    xp_pool_run(xp_cpu_stream_pool(stream), adamw_tile, &j, n_tiles(args->n));
    return XP_OK;
}

/* ---- sums ------------------------------------------------------------------------------------ */

typedef struct sum_job {
    const xp_row_kernels *kernels;
    const void *x;
    xp_dtype dtype;
    int64_t n;
    double (*reduce)(const float *x, int64_t n);
    double *parts;      /* [parts] */
    int64_t part_tiles; /* tiles of XP_OPS_SUM_BLOCK elements in a part */
} sum_job;

static void sum_part(void *context, int64_t part, int worker) {
    (void)worker;
    const sum_job *j = context;
    float block[XP_ROW_BLOCK];
    double sum = 0;
    int64_t end = smaller((part + 1) * j->part_tiles * XP_OPS_SUM_BLOCK, j->n);
    for (int64_t i = part * j->part_tiles * XP_OPS_SUM_BLOCK; i < end; i += XP_ROW_BLOCK) {
        int64_t n = smaller(XP_ROW_BLOCK, end - i);
        sum += j->reduce(xp_row_read(j->kernels, j->x, j->dtype, i, n, block), n);
    }
    j->parts[part] = sum;
}

static double run_sum(xp_stream *stream, sum_job *j) {
    int64_t n_parts = (n_tiles(j->n) + j->part_tiles - 1) / j->part_tiles;
    xp_pool_run(xp_cpu_stream_pool(stream), sum_part, j, n_parts);
    double sum = 0;
    for (int64_t i = 0; i < n_parts; i++)
        sum += j->parts[i];
    return sum;
}

static xp_status sum_squares(xp_stream *stream, const xp_sum_squares_args *args) {
    const xp_row_kernels *kernels = xp_row_kernels_of(stream);
    sum_job j = {
        .kernels = kernels,
        .x = args->x,
        .dtype = args->dtype,
        .n = args->n,
        .reduce = kernels->sum_squares,
        .parts = args->scratch,
        .part_tiles = 1,
    };
    double sum = run_sum(stream, &j);
    *args->out = args->acc ? *args->out + sum : sum;
    return XP_OK;
}

static xp_status sum_squares_parts(xp_stream *stream, const xp_sum_squares_parts_args *args) {
    for (int i = 0; i < args->n_parts; i++) {
        const xp_sum_squares_args part = xp_sum_squares_of_part(args, i);
        XP_TRY(sum_squares(stream, &part));
    }
    return XP_OK;
}

static xp_status sum(xp_stream *stream, const xp_sum_args *args) {
    enum { N_PARTS = 64 };
    double parts[N_PARTS];
    const xp_row_kernels *kernels = xp_row_kernels_of(stream);
    sum_job j = {
        .kernels = kernels,
        .x = args->x,
        .dtype = XP_F32,
        .n = args->n,
        .reduce = kernels->sum,
        .parts = parts,
        .part_tiles = n_tiles(args->n) / N_PARTS + 1,
    };
    *args->out = run_sum(stream, &j);
    return XP_OK;
}

/* ---- axpy ------------------------------------------------------------------------------------ */

typedef struct axpy_job {
    const xp_axpy_args *args;
    const xp_row_kernels *kernels;
} axpy_job;

static void axpy_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const axpy_job *j = context;
    const xp_axpy_args *args = j->args;
    float block_x[XP_ROW_BLOCK], block_y[XP_ROW_BLOCK];
    int64_t end = tile_end(tile, args->n);
    for (int64_t i = tile * XP_OPS_SUM_BLOCK; i < end; i += XP_ROW_BLOCK) {
        int64_t n = smaller(XP_ROW_BLOCK, end - i);
        const float *x = xp_row_read(j->kernels, args->x, args->x_dtype, i, n, block_x);
        float *y = xp_row_target(args->y, args->y_dtype, i, block_y);
        if (args->acc && y == block_y)
            xp_row_read(j->kernels, args->y, args->y_dtype, i, n, block_y);
        j->kernels->axpy(n, args->alpha, x, y, args->acc);
        xp_row_write(j->kernels, args->y, args->y_dtype, i, n, y);
    }
}

static xp_status axpy(xp_stream *stream, const xp_axpy_args *args) {
    axpy_job j = {.args = args, .kernels = xp_row_kernels_of(stream)};
    xp_pool_run(xp_cpu_stream_pool(stream), axpy_tile, &j, n_tiles(args->n));
    return XP_OK;
}

static void draw_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const xp_draw_args *args = context;
    const int64_t begin = tile * XP_OPS_SUM_BLOCK, end = tile_end(tile, args->n);
    if (args->std > 0)
        xp_rng_fill_normal(args->seed, args->stream, args->first + (uint64_t)begin, end - begin,
                           args->std, args->out + begin);
    for (int64_t i = begin; i < end && args->std == 0; i++)
        args->out[i] = 1.0F;
}

static xp_status draw(xp_stream *stream, const xp_draw_args *args) {
    xp_draw_args job = *args;
    xp_pool_run(xp_cpu_stream_pool(stream), draw_tile, &job, n_tiles(args->n));
    return XP_OK;
}

void xp_cpu_optim_fast(xp_ops *ops, unsigned caps) {
    ops->draw = draw;
    if (xp_row_kernels_for(caps) == NULL)
        return;
    ops->adamw = adamw;
    ops->sum_squares = sum_squares;
    ops->sum_squares_parts = sum_squares_parts;
    ops->axpy = axpy;
    ops->sum = sum;
}
