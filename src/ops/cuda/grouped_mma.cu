/*
 * bf16 grouped GEMM with mma.sync.m16n8k16 (PTX ISA 7.0, sm_80): the portable kernel. A block
 * computes 128 x 128 of c, its 8 warps 64 x 32 each. k tiles of 32 are loaded by cp.async into a
 * pipeline of three stages; rows are gathered by the loads. Operands whose contiguous direction is
 * not k are transposed by ldmatrix.trans.
 */
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tile_groups.cuh"

enum {
    TILE = 128,
    DEPTH = 32,
    N_THREADS = 256,
    N_STAGES = 3,
    PAD = 8, /* elements: neighbouring rows of a tile start 4 banks apart, so ldmatrix has no
                conflicts */
    STAGE_ELEMENTS = TILE * (DEPTH + PAD), /* of one operand: the larger of its two layouts */
    SHARED_BYTES = 2 * N_STAGES * STAGE_ELEMENTS * (int)sizeof(bf16)
};
static_assert(DEPTH * (TILE + PAD) <= STAGE_ELEMENTS, "both layouts must fit");

/* One operand of the block's tile, as it is stored: rows `outer`, contiguous `inner`. */
struct operand {
    const bf16 *data;
    int64_t ld, first_row, n_outer, n_inner;
    const int32_t *gather;
};

/* tile[o][i] = element (o0 + o, i0 + i), zeros outside. OUTER x INNER is TILE x DEPTH or the other
 * way round. */
template <int OUTER, int INNER, bool WIDE>
static __device__ __forceinline__ void load_k_tile(bf16 *tile, const operand &x, int64_t o0,
                                                   int64_t i0) {
    constexpr int CHUNKS = INNER / 8;
#pragma unroll
    for (int q = (int)threadIdx.x; q < OUTER * CHUNKS; q += N_THREADS) {
        const int o = q / CHUNKS, i = q % CHUNKS * 8;
        bf16 *to = tile + o * (INNER + PAD) + i;
        const bool in_rows = o0 + o < x.n_outer;
        int64_t row = 0;
        if (in_rows) {
            row = x.first_row + o0 + o;
            if (x.gather != nullptr)
                row = x.gather[row];
        }
        const bf16 *from = x.data + row * x.ld + i0 + i;
        if (WIDE) { /* widths are multiples of 8: a chunk is in or out as a whole */
            const bool valid = in_rows && i0 + i < x.n_inner;
            copy_async(to, valid ? from : x.data, valid);
        } else {
            for (int k = 0; k < 8; k++)
                to[k] = in_rows && i0 + i + k < x.n_inner ? from[k] : from_float<bf16>(0.0f);
        }
    }
}

/* Multiply one k tile into the warp's 64 x 32 of c. */
template <bool TRANS_A, bool TRANS_B>
static __device__ __forceinline__ void multiply_k_tile(float (&sum)[4][4][4], const bf16 *a,
                                                       const bf16 *b, int m0, int n0) {
    const int lane = (int)threadIdx.x % 32;
    const int low = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
#pragma unroll
    for (int k0 = 0; k0 < DEPTH; k0 += 16) {
        uint32_t x[4][4], y[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) { /* matrices: m, m + 8, then both at k + 8 */
            const int m = m0 + 16 * i + second, k = k0 + third;
            load_matrices<TRANS_A>(x[i], TRANS_A ? a + (k + low) * (TILE + PAD) + m
                                                 : a + (m + low) * (DEPTH + PAD) + k);
        }
#pragma unroll
        for (int j = 0; j < 2; j++) { /* matrices: k, k + 8, then both at n + 8 */
            const int n = n0 + 16 * j + third, k = k0 + second;
            load_matrices<!TRANS_B>(y[j], TRANS_B ? b + (n + low) * (DEPTH + PAD) + k
                                                  : b + (k + low) * (TILE + PAD) + n);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                multiply(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
}

template <bool TRANS_A, bool TRANS_B, bool WIDE>
static __device__ __forceinline__ void load_stage(bf16 *a, bf16 *b, const operand &oa,
                                                  const operand &ob, const xp_tile &t, int64_t k0) {
    if (TRANS_A)
        load_k_tile<DEPTH, TILE, WIDE>(a, oa, k0, t.m0);
    else
        load_k_tile<TILE, DEPTH, WIDE>(a, oa, t.m0, k0);
    if (TRANS_B)
        load_k_tile<TILE, DEPTH, WIDE>(b, ob, t.n0, k0);
    else
        load_k_tile<DEPTH, TILE, WIDE>(b, ob, k0, t.n0);
}

template <bool TRANS_A, bool TRANS_B, bool WIDE>
static __global__ void __launch_bounds__(N_THREADS) mma_kernel(const xp_tile_args p) {
    extern __shared__ __align__(16) bf16 stages[];
    xp_tile t;
    if (!xp_find_tile(p, blockIdx.x, TILE, TILE, &t))
        return;
    const operand oa = {(const bf16 *)p.a,       p.lda,     t.first_row, TRANS_A ? t.n_k : t.n_m,
                        TRANS_A ? t.n_m : t.n_k, p.gather_a};
    const operand ob = {(const bf16 *)p.b + (int64_t)t.expert * p.b_expert,
                        p.ldb,
                        p.rows_are_m ? 0 : t.first_row,
                        TRANS_B ? p.n : t.n_k,
                        TRANS_B ? t.n_k : p.n,
                        p.gather_b};
    const int warp = (int)threadIdx.x / 32, m0 = warp / 4 * 64, n0 = warp % 4 * 32;
    const int64_t n_k_tiles = (t.n_k + DEPTH - 1) / DEPTH;
    float sum[4][4][4] = {};
    for (int s = 0; s < N_STAGES - 1; s++) {
        if (s < n_k_tiles)
            load_stage<TRANS_A, TRANS_B, WIDE>(stages + 2 * s * STAGE_ELEMENTS,
                                               stages + (2 * s + 1) * STAGE_ELEMENTS, oa, ob, t,
                                               (int64_t)s * DEPTH);
        commit(); /* an empty group keeps the count */
    }
    for (int64_t s = 0; s < n_k_tiles; s++) {
        wait_groups<N_STAGES - 2>();
        __syncthreads(); /* k tile s is visible to all, and all have read k tile s - 1 */
        const int64_t next = s + N_STAGES - 1;
        if (next < n_k_tiles) {
            bf16 *to = stages + 2 * (next % N_STAGES) * STAGE_ELEMENTS;
            load_stage<TRANS_A, TRANS_B, WIDE>(to, to + STAGE_ELEMENTS, oa, ob, t, next * DEPTH);
        }
        commit();
        const bf16 *from = stages + 2 * (s % N_STAGES) * STAGE_ELEMENTS;
        multiply_k_tile<TRANS_A, TRANS_B>(sum, from, from + STAGE_ELEMENTS, m0, n0);
    }
    const int lane = (int)threadIdx.x % 32;
    const int64_t c0 = xp_tile_c(p, t);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int x = 0; x < 4; x++) {
                const int64_t row = t.m0 + m0 + 16 * i + lane / 4 + x / 2 * 8,
                              column = t.n0 + n0 + 8 * j + lane % 4 * 2 + x % 2;
                if (row < t.n_m && column < p.n)
                    xp_tile_put(p, c0 + row * p.ldc + column, sum[i][j][x]);
            }
}

template <bool TRANS_A, bool TRANS_B>
static xp_status launch(cudaStream_t stream, const xp_tile_args *p, unsigned n_blocks) {
    const bool wide = p->lda % 8 == 0 && p->ldb % 8 == 0 && p->n % 8 == 0 &&
                      (p->rows_are_m || p->m % 8 == 0) && xp_is_aligned(p->a) &&
                      xp_is_aligned(p->b);
    void (*kernel)(const xp_tile_args) =
        wide ? mma_kernel<TRANS_A, TRANS_B, true> : mma_kernel<TRANS_A, TRANS_B, false>;
    XP_TRY(xp_cuda_check(cudaFuncSetAttribute((const void *)kernel,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              SHARED_BYTES),
                         "grouped_mma"));
    kernel<<<n_blocks, N_THREADS, SHARED_BYTES, stream>>>(*p);
    return xp_cuda_check(cudaGetLastError(), "grouped_mma");
}

xp_status xp_cuda_grouped_mma(cudaStream_t stream, const xp_tile_args *p) {
    const int64_t n_blocks = xp_cuda_tile_blocks(p, TILE, TILE);
    if (n_blocks > XP_CUDA_MAX_GRID)
        return xp_error(XP_EINVAL, "grouped GEMM: %lld tiles are too many for one launch",
                        (long long)n_blocks);
    if (p->trans_a)
        return launch<true, false>(stream, p, (unsigned)n_blocks);
    return p->trans_b ? launch<false, true>(stream, p, (unsigned)n_blocks)
                      : launch<false, false>(stream, p, (unsigned)n_blocks);
}
