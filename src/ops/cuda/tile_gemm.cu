/*
 * SIMT GEMM: a block computes 64 x 64 of c, a thread 4 x 4 of it. Both operands pass through shared
 * memory in k tiles of 16, converted to fp32. Sums run over k in ascending order.
 */
#include "ops/cuda/launch.h"
#include "ops/cuda/tile_groups.cuh"

enum { TILE = 64, DEPTH = 16, N_THREADS = 256, EACH = TILE * DEPTH / N_THREADS };

/*
 * tile[p][i] = element (i, p) of an operand: i along m or n, p along k. `along_k`: the
 * operand's stored rows are i and p is contiguous; else stored rows are p and i is contiguous.
 */
template <typename T>
static __device__ __forceinline__ void
load_k_tile(float (*tile)[TILE + 4], const T *data, int64_t ld, const int32_t *gather,
            int64_t first_row, bool along_k, int64_t i0, int64_t n_i, int64_t p0, int64_t n_p) {
    for (int x = 0; x < EACH; x++) {
        const int at = (int)threadIdx.x + x * N_THREADS;
        const int i = along_k ? at / DEPTH : at % TILE, p = along_k ? at % DEPTH : at / TILE;
        const int64_t gi = i0 + i, gp = p0 + p;
        float value = 0;
        if (gi < n_i && gp < n_p) {
            int64_t row = first_row + (along_k ? gi : gp);
            if (gather != nullptr)
                row = gather[row];
            value = to_float(data[row * ld + (along_k ? gp : gi)]);
        }
        tile[p][i] = value;
    }
}

template <typename T>
static __global__ void __launch_bounds__(N_THREADS) tile_kernel(const xp_tile_args p) {
    __shared__ float a[DEPTH][TILE + 4], b[DEPTH][TILE + 4];
    xp_tile t;
    if (!xp_find_tile(p, blockIdx.x, TILE, TILE, &t))
        return;
    /* Rows of the gathered side start at the expert's first; a weight matrix at its own 0. */
    const T *b_data = (const T *)p.b + (int64_t)t.expert * p.b_expert;
    const int64_t b_first = p.rows_are_m ? 0 : t.first_row;
    const int row = (int)threadIdx.x / 16 * 4, column = (int)threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (int64_t p0 = 0; p0 < t.n_k; p0 += DEPTH) {
        load_k_tile(a, (const T *)p.a, p.lda, p.gather_a, t.first_row, !p.trans_a, t.m0, t.n_m, p0,
                    t.n_k);
        load_k_tile(b, b_data, p.ldb, p.gather_b, b_first, p.trans_b, t.n0, p.n, p0, t.n_k);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            float x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = a[d][row + i];
                y[i] = b[d][column + i];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        __syncthreads();
    }
    const int64_t c0 = xp_tile_c(p, t);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (t.m0 + row + i < t.n_m && t.n0 + column + j < p.n)
                xp_tile_put(p, c0 + (t.m0 + row + i) * p.ldc + t.n0 + column + j, sum[i][j]);
}

xp_status xp_cuda_tile_run(cudaStream_t stream, const xp_tile_args *problem) {
    const int64_t n_blocks = xp_cuda_tile_blocks(problem, TILE, TILE);
    if (n_blocks > XP_CUDA_MAX_GRID)
        return xp_error(XP_EINVAL, "GEMM: %lld tiles are too many for one launch",
                        (long long)n_blocks);
    if (problem->ab_f32)
        tile_kernel<float><<<(unsigned)n_blocks, N_THREADS, 0, stream>>>(*problem);
    else
        tile_kernel<bf16><<<(unsigned)n_blocks, N_THREADS, 0, stream>>>(*problem);
    return xp_cuda_check(cudaGetLastError(), "tile_gemm");
}
