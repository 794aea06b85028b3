/**
 * One tile of a GEMM: what the pool's threads run, on top of a single-threaded sgemm.
 *
 * Operands that sgemm cannot read where they are (bf16, or rows behind a gather list) are brought
 * into the worker's scratch a chunk of the inner dimension at a time. Tile borders come from sizes
 * alone (xp_gemm_split), so results do not depend on the number of threads.
 */
#ifndef XP_OPS_CPU_GEMM_TILE_H
#define XP_OPS_CPU_GEMM_TILE_H

#include "core/pool.h"
#include "ops/ops.h"

/** Most rows and columns of a tile, and its largest area. */
#define XP_GEMM_TILE_MAX  1024
#define XP_GEMM_TILE_AREA (512 * 1024)

/** op(view)[i][j] is stored row i, column j; transposed: stored row j, column i. */
typedef struct xp_gemm_view {
    const void *data;
    xp_dtype dtype;
    int64_t ld;            /* elements between stored rows */
    const int32_t *gather; /* stored row r is data's row gather[r]; NULL: r */
    bool transposed;
} xp_gemm_view;

/** c[m, n] = alpha * op(a) @ op(b) + (acc ? c : 0); all pointers are at the tile's corner. */
typedef struct xp_gemm_tile {
    int64_t m, n, k;
    xp_gemm_view a, b; /* [m, k], [k, n] */
    void *c;
    xp_dtype c_dtype;
    int64_t ldc;
    float alpha;
    bool acc;
} xp_gemm_tile;

/** The view from stored row `row` and stored column `column` on. */
xp_gemm_view xp_gemm_view_from(const xp_gemm_view *view, int64_t row, int64_t column);

/** @param scratch xp_gemm_scratch_bytes() of the operands' type; may be NULL when a and b are fp32
 * without gather */
void xp_gemm_tile_multiply(const xp_gemm_tile *tile, float *scratch);
/** xp_pool_run() of tiles that multiply. */
void xp_gemm_tiles_run(xp_pool *pool, xp_tile_fn fn, void *context, int64_t n_tiles);
/** Bytes of scratch for tiles within the limits above. */
size_t xp_gemm_scratch_bytes(xp_dtype dtype);

/** [0, n) in n_parts parts of `part` each, the last one shorter. */
typedef struct xp_gemm_split {
    int64_t part, n_parts;
} xp_gemm_split;
/** Parts of at most max_part, as even as multiples of 16 allow. n = 0: no parts. */
xp_gemm_split xp_gemm_split_evenly(int64_t n, int64_t max_part);

/** Cut [m, n] into at least n_wanted tiles where they stay at least 128 x 256 (or 256 x 128) large.
 */
void xp_gemm_split_2d(int64_t m, int64_t n, int64_t n_wanted, xp_gemm_split *rows,
                      xp_gemm_split *columns);

#endif
