/**
 * Grouped GEMM over the pool: one flat list of tiles over all experts, so that threads stay busy
 * whatever the routing.
 *
 * Forward and dgrad cut an expert's rows: one segment, or two around a range that is left out.
 * wgrad, whose inner dimension the rows are, cuts the weight instead, the finer the larger the
 * expert's share of all rows. Cuts depend on the counts only.
 */
#include "ops/cpu/grouped_gemm.h"

#include "device/cpu/cpu_device.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/gemm_tile.h"
#include "ops/cpu/pool_scratch.h"

enum { N_TILES = 32, ROWS_MIN = 64, ROWS_MAX = 256 };

typedef struct job {
    const xp_grouped_args *args;
    xp_stream *stream;
    size_t scratch_bytes;
    int64_t max_rows_part; /* forward, dgrad: rows of a tile, at most */
    xp_gemm_split columns; /* forward, dgrad: of the output */
} job;

/** Where a tile number leads: the tile-th tile of expert e, or of a segment of its rows. */
typedef struct row_tile {
    int64_t expert, tile;
    int64_t first_row, n_rows; /* of the expert or the segment */
} row_tile;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/** No weights: then offsets may be NULL. */
static bool is_empty(const xp_grouped_args *args) {
    return args->n_experts == 0 || args->n == 0 || args->k == 0;
}

static row_tile expert_rows(const xp_grouped_args *args, int64_t e) {
    return (row_tile){.expert = e,
                      .first_row = args->offsets[e],
                      .n_rows = args->offsets[e + 1] - args->offsets[e]};
}

static float *worker_scratch(const job *j, int worker) {
    return j->scratch_bytes > 0 ? xp_cpu_stream_scratch(j->stream, worker, j->scratch_bytes) : NULL;
}

/* ---- forward and dgrad ----------------------------------------------------------------------- */

static int64_t n_row_tiles(const job *j, int64_t n_rows) {
    return xp_gemm_split_evenly(n_rows, j->max_rows_part).n_parts * j->columns.n_parts;
}

static int64_t segments_per_expert(const xp_grouped_args *args) {
    return args->rows == XP_ROWS_OUT_OF_RANGE ? 2 : 1;
}

static row_tile segment_rows(const xp_grouped_args *args, int64_t segment) {
    const int64_t e = segment / segments_per_expert(args);
    if (args->rows == XP_ROWS_ALL)
        return expert_rows(args, e);
    int64_t first = args->row_range[2 * e], end = args->row_range[2 * e + 1];
    if (args->rows == XP_ROWS_OUT_OF_RANGE && segment % 2 == 0) {
        end = first;
        first = args->offsets[e];
    } else if (args->rows == XP_ROWS_OUT_OF_RANGE) {
        first = end;
        end = args->offsets[e + 1];
    }
    return (row_tile){.expert = e, .first_row = first, .n_rows = end - first};
}

static row_tile find_row_tile(const job *j, int64_t tile) {
    for (int64_t segment = 0;; segment++) {
        row_tile at = segment_rows(j->args, segment);
        int64_t n_tiles = n_row_tiles(j, at.n_rows);
        if (tile < n_tiles) {
            at.tile = tile;
            return at;
        }
        tile -= n_tiles;
    }
}

/** y rows = operand rows @ weight; `a` has inner columns, `b` is the first expert's weight as
 * [inner, outer]. */
static void multiply_rows(const job *j, int64_t tile, int worker, const xp_gemm_view *a,
                          const xp_gemm_view *b, int64_t inner, int64_t outer) {
    const xp_grouped_args *args = j->args;
    row_tile at = find_row_tile(j, tile);
    xp_gemm_split rows = xp_gemm_split_evenly(at.n_rows, j->max_rows_part);
    int64_t i0 = at.tile / j->columns.n_parts * rows.part;
    int64_t j0 = at.tile % j->columns.n_parts * j->columns.part;
    int64_t weight_rows = at.expert * args->n;
    xp_gemm_tile t = {
        .m = smaller(rows.part, at.n_rows - i0),
        .n = smaller(j->columns.part, outer - j0),
        .k = inner,
        .a = xp_gemm_view_from(a, at.first_row + i0, 0),
        .b = b->transposed ? xp_gemm_view_from(b, weight_rows + j0, 0)
                           : xp_gemm_view_from(b, weight_rows, j0),
        .c = (char *)args->y +
             ((at.first_row + i0) * outer + j0) * (int64_t)xp_dtype_bytes(args->dtype),
        .c_dtype = args->dtype,
        .ldc = outer,
        .alpha = 1,
    };
    xp_gemm_tile_multiply(&t, worker_scratch(j, worker));
}

static void forward_tile(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_grouped_args *args = j->args;
    xp_gemm_view x = {.data = args->x, .dtype = args->dtype, .ld = args->k, .gather = args->gather};
    xp_gemm_view w = {.data = args->w, .dtype = args->dtype, .ld = args->k, .transposed = true};
    multiply_rows(j, tile, worker, &x, &w, args->k, args->n);
}

static void dgrad_tile(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_grouped_args *args = j->args;
    xp_gemm_view dy = {
        .data = args->dy, .dtype = args->dtype, .ld = args->n, .gather = args->gather_dy};
    xp_gemm_view w = {.data = args->w, .dtype = args->dtype, .ld = args->k};
    multiply_rows(j, tile, worker, &dy, &w, args->n, args->k);
}

static xp_status run_rows(xp_stream *stream, const xp_grouped_args *args, xp_tile_fn fn,
                          int64_t outer, const int32_t *gather) {
    if (is_empty(args))
        return XP_OK;
    int64_t share = args->offsets[args->n_experts] / N_TILES;
    job j = {
        .args = args,
        .stream = stream,
        .max_rows_part = share < ROWS_MIN ? ROWS_MIN : smaller(share, ROWS_MAX),
        .columns = xp_gemm_split_evenly(outer, XP_GEMM_TILE_MAX),
    };
    if (gather || args->dtype != XP_F32) {
        j.scratch_bytes = xp_gemm_scratch_bytes(args->dtype);
        XP_TRY(xp_cpu_reserve_scratch(stream, j.scratch_bytes));
    }
    int64_t n_tiles = 0;
    for (int64_t s = 0; s < args->n_experts * segments_per_expert(args); s++)
        n_tiles += n_row_tiles(&j, segment_rows(args, s).n_rows);
    xp_gemm_tiles_run(xp_cpu_stream_pool(stream), fn, &j, n_tiles);
    return XP_OK;
}

xp_status xp_cpu_grouped_forward(xp_stream *stream, const xp_grouped_args *args) {
    return run_rows(stream, args, forward_tile, args->n, args->gather);
}

xp_status xp_cpu_grouped_dgrad(xp_stream *stream, const xp_grouped_args *args) {
    return run_rows(stream, args, dgrad_tile, args->k, args->gather_dy);
}

/* ---- wgrad ----------------------------------------------------------------------------------- */

/** The cut of one expert's [n, k] weight gradient; none for an expert without rows that is added
 * to. */
static void split_weight(const xp_grouped_args *args, int64_t n_rows, xp_gemm_split *rows,
                         xp_gemm_split *columns) {
    int64_t total = args->offsets[args->n_experts];
    int64_t n_wanted = total > 0 ? (N_TILES * n_rows + total - 1) / total : 0;
    if (n_rows == 0 && args->acc)
        *rows = *columns = (xp_gemm_split){.part = 1, .n_parts = 0};
    else
        xp_gemm_split_2d(args->n, args->k, n_wanted, rows, columns);
}

static void wgrad_tile(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_grouped_args *args = j->args;
    row_tile at;
    xp_gemm_split rows, columns;
    for (int64_t e = 0;; e++) {
        at = expert_rows(args, e);
        split_weight(args, at.n_rows, &rows, &columns);
        int64_t n_tiles = rows.n_parts * columns.n_parts;
        if (tile < n_tiles)
            break;
        tile -= n_tiles;
    }
    int64_t i0 = tile / columns.n_parts * rows.part;
    int64_t j0 = tile % columns.n_parts * columns.part;
    xp_gemm_view dy = {.data = args->dy,
                       .dtype = args->dtype,
                       .ld = args->n,
                       .gather = args->gather_dy,
                       .transposed = true};
    xp_gemm_view x = {.data = args->x, .dtype = args->dtype, .ld = args->k, .gather = args->gather};
    xp_gemm_tile t = {
        .m = smaller(rows.part, args->n - i0),
        .n = smaller(columns.part, args->k - j0),
        .k = at.n_rows,
        .a = xp_gemm_view_from(&dy, at.first_row, i0),
        .b = xp_gemm_view_from(&x, at.first_row, j0),
        .c = (char *)args->y +
             ((at.expert * args->n + i0) * args->k + j0) * (int64_t)xp_dtype_bytes(args->dw_dtype),
        .c_dtype = args->dw_dtype,
        .ldc = args->k,
        .alpha = 1,
        .acc = args->acc,
    };
    xp_gemm_tile_multiply(&t, worker_scratch(j, worker));
}

xp_status xp_cpu_grouped_wgrad(xp_stream *stream, const xp_grouped_args *args) {
    if (is_empty(args))
        return XP_OK;
    job j = {.args = args, .stream = stream};
    if (args->gather || args->gather_dy || args->dtype != XP_F32) {
        j.scratch_bytes = xp_gemm_scratch_bytes(args->dw_dtype);
        XP_TRY(xp_cpu_reserve_scratch(stream, j.scratch_bytes));
    }
    int64_t n_tiles = 0;
    for (int64_t e = 0; e < args->n_experts; e++) {
        xp_gemm_split rows, columns;
        split_weight(args, expert_rows(args, e).n_rows, &rows, &columns);
        n_tiles += rows.n_parts * columns.n_parts;
    }
    xp_gemm_tiles_run(xp_cpu_stream_pool(stream), wgrad_tile, &j, n_tiles);
    return XP_OK;
}
