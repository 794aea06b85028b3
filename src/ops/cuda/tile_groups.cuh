/** Which expert and which of its tiles a block works on, and where its rows lie. */
#ifndef XP_OPS_CUDA_TILE_GROUPS_CUH
#define XP_OPS_CUDA_TILE_GROUPS_CUH

#include "ops/cuda/tile_gemm.h"
#include "ops/cuda/vector.cuh"

/** One block's tile of a GEMM. */
struct xp_tile {
    int expert;
    int64_t first_row; /* of the expert, or of the segment of its rows; 0 in a dense GEMM */
    int64_t m0, n0;    /* first row and column of c, counted from there */
    int64_t n_m, n_k;  /* m and k from there */
};

/** Assignment rows that follow each other. */
struct xp_segment {
    int first, n_rows;
};

/** From all rows of an expert to those that a call with row_range computes, given the expert's range:
 * `rows`, and after them `more`, which are none unless a range is left out. */
static __device__ __forceinline__ void xp_cut_rows(const xp_tile_args &p, int from, int to,
                                                   xp_segment &rows, xp_segment &more) {
    more = {to, 0};
    if (p.rows == XP_ROWS_IN_RANGE) {
        rows = {from, to - from};
    } else {
        more.n_rows = rows.first + rows.n_rows - to;
        rows.n_rows = from - rows.first;
    }
}

/** The rows of an expert that are computed. */
static __device__ __forceinline__ void xp_expert_rows(const xp_tile_args &p, int expert,
                                                      xp_segment &rows, xp_segment &more) {
    rows = {p.offsets[expert], p.offsets[expert + 1] - p.offsets[expert]};
    more = {0, 0};
    if (p.row_range != nullptr)
        xp_cut_rows(p, p.row_range[2 * expert], p.row_range[2 * expert + 1], rows, more);
}

static __device__ __forceinline__ int xp_n_row_tiles(const xp_segment &rows, int tile_rows) {
    return (rows.n_rows + tile_rows - 1) / tile_rows;
}

/**
 * Expert and tile of the `slot`-th tile of `tile_rows` rows, counted over the experts. All lanes of
 * a warp call it together and get the same. @return false past the last tile
 */
static __device__ __forceinline__ bool xp_find_rows(const xp_tile_args &p, int64_t slot,
                                                    int tile_rows, int *expert, int64_t *tile) {
    const int lane = (int)threadIdx.x % 32;
    int64_t before = 0;
    for (int base = 0; base < p.n_experts; base += 32) {
        const int e = base + lane;
        xp_segment rows = {0, 0}, more = {0, 0};
        if (e < p.n_experts)
            xp_expert_rows(p, e, rows, more);
        const int own = xp_n_row_tiles(rows, tile_rows) + xp_n_row_tiles(more, tile_rows);
        int sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        const unsigned found = __ballot_sync(0xffffffffu, slot < before + sum);
        if (found != 0) {
            const int at = __ffs((int)found) - 1;
            *expert = base + at;
            *tile = slot - before - __shfl_sync(0xffffffffu, sum - own, at);
            return true;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    return false;
}

/** The tile of block `index`; column tiles run fastest. @return false when there is none */
static __device__ __forceinline__ bool xp_find_tile(const xp_tile_args &p, int64_t index,
                                                    int tile_m, int tile_n, xp_tile *t) {
    const int64_t columns = (p.n + tile_n - 1) / tile_n;
    int64_t row_tile = index / columns;
    t->n0 = index % columns * tile_n;
    t->expert = 0;
    t->first_row = 0;
    t->n_m = p.m;
    t->n_k = p.k;
    if (p.offsets != nullptr && p.rows_are_m) {
        if (!xp_find_rows(p, row_tile, tile_m, &t->expert, &row_tile))
            return false;
        xp_segment rows, more;
        xp_expert_rows(p, t->expert, rows, more);
        const int n_first = xp_n_row_tiles(rows, tile_m);
        if (row_tile >= n_first) {
            row_tile -= n_first;
            rows = more;
        }
        t->first_row = rows.first;
        t->n_m = rows.n_rows;
    } else if (p.offsets != nullptr) {
        const int64_t rows = (p.m + tile_m - 1) / tile_m;
        t->expert = (int)(row_tile / rows);
        row_tile %= rows;
        t->first_row = p.offsets[t->expert];
        t->n_k = p.offsets[t->expert + 1] - t->first_row;
    }
    t->m0 = row_tile * tile_m;
    return true;
}

/** First element of the expert's c. */
static __device__ __forceinline__ int64_t xp_tile_c(const xp_tile_args &p, const xp_tile &t) {
    return p.rows_are_m ? t.first_row * p.ldc : (int64_t)t.expert * p.c_expert;
}

/** c[at] = alpha * value (+ c[at]). */
static __device__ __forceinline__ void xp_tile_put(const xp_tile_args &p, int64_t at, float value) {
    float x = p.alpha * value;
    if (p.c_f32) {
        float *c = (float *)p.c + at;
        *c = p.acc ? *c + x : x;
    } else {
        bf16 *c = (bf16 *)p.c + at;
        *c = from_float<bf16>(p.acc ? to_float(*c) + x : x);
    }
}

#endif
