/** Which expert and which of its tiles a block works on, and where its rows lie. */
#ifndef XP_OPS_CUDA_TILE_GROUPS_CUH
#define XP_OPS_CUDA_TILE_GROUPS_CUH

#include "ops/cuda/tile_gemm.h"
#include "ops/cuda/vector.cuh"

/** One block's tile of a GEMM. */
struct xp_tile {
    int expert;
    int64_t first_row; /* offsets[expert]; 0 in a dense GEMM */
    int64_t m0, n0;    /* first row and column of c, counted in the expert's matrix */
    int64_t n_m, n_k;  /* this expert's m and k */
};

/**
 * Expert and tile of the `slot`-th tile of `tile_rows` rows, counted over the experts. All lanes of
 * a warp call it together and get the same. @return false past the last tile
 */
static __device__ __forceinline__ bool xp_find_rows(const int32_t *offsets, int n_experts,
                                                    int64_t slot, int tile_rows, int *expert,
                                                    int64_t *tile) {
    const int lane = (int)threadIdx.x % 32;
    int64_t before = 0;
    for (int base = 0; base < n_experts; base += 32) {
        const int e = base + lane;
        const int own =
            e < n_experts ? (offsets[e + 1] - offsets[e] + tile_rows - 1) / tile_rows : 0;
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
        if (!xp_find_rows(p.offsets, p.n_experts, row_tile, tile_m, &t->expert, &row_tile))
            return false;
    } else if (p.offsets != nullptr) {
        const int64_t rows = (p.m + tile_m - 1) / tile_m;
        t->expert = (int)(row_tile / rows);
        row_tile %= rows;
    }
    t->m0 = row_tile * tile_m;
    if (p.offsets != nullptr) {
        t->first_row = p.offsets[t->expert];
        const int64_t n_rows = p.offsets[t->expert + 1] - t->first_row;
        if (p.rows_are_m)
            t->n_m = n_rows;
        else
            t->n_k = n_rows;
    }
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
