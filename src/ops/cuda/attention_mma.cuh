/**
 * Tiles of the bf16 attention kernels on mma.sync. A block is four warps; a warp owns one or more
 * groups of 16 rows of the result and needs nothing of other warps. Tiles lie in shared memory as
 * rows of W + 8 elements, so the eight rows of an ldmatrix start in different banks.
 *
 * Of a 16 x 8 piece of a result, lane l holds columns 2 (l % 4) and the next of row l / 4 in [0]
 * and [1], of row l / 4 + 8 in [2] and [3].
 */
#ifndef XP_OPS_CUDA_ATTENTION_MMA_CUH
#define XP_OPS_CUDA_ATTENTION_MMA_CUH

#include <limits.h>
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
#include "ops/ops.h"

constexpr int MMA_THREADS = 128, MMA_WARPS = 4, MMA_KEYS = 64;

/** Elements from a row of a tile to the next. */
template <int W> __host__ __device__ constexpr int tile_ld() {
    return W + 8;
}

/** What a kernel gets. Query i of row b sees the keys [start_of(i), i] of its row. */
struct attention_problem {
    xp_attention_args a;
    const bf16 *dout;
    bf16 *dq, *dk, *dv;
    int64_t lddq, lddk, lddv;
    float *delta; /* [B, H, S]: dout . out */
};

static __device__ __forceinline__ int lane_of() {
    return (int)threadIdx.x % 32;
}
static __device__ __forceinline__ int warp_of() {
    return (int)threadIdx.x / 32;
}
static __device__ __forceinline__ int lesser(int a, int b) {
    return a < b ? a : b;
}

/** First key that query i of row b sees; of queries past the row: none. */
static __device__ __forceinline__ int start_of(const xp_attention_args &a, int b, int i) {
    if (i >= a.seq_len)
        return INT_MAX;
    return a.doc_start == nullptr ? 0 : a.doc_start[b * a.seq_len + i];
}

/** Element 0 of head h of token i of row b. */
static __device__ __forceinline__ int64_t place_of(const xp_attention_args &a, int64_t ld, int b,
                                                   int i, int h) {
    return (b * a.seq_len + i) * ld + (int64_t)h * a.head_dim;
}

/** Index of query i of head h of row b in lse and delta. */
static __device__ __forceinline__ int64_t fact_of(const xp_attention_args &a, int b, int i, int h) {
    return ((int64_t)b * a.n_heads + h) * a.seq_len + i;
}

/** Start copying: tile [ROWS, W] = the first n rows of `from`, dim elements each, and zeros. */
template <int ROWS, int W>
static __device__ __forceinline__ void load_rows(bf16 *tile, const bf16 *from, int64_t ld, int n,
                                                 int dim) {
    constexpr int CHUNKS = W / 8, STEP = MMA_THREADS / CHUNKS;
    const int c = (int)threadIdx.x % CHUNKS * 8, first = (int)threadIdx.x / CHUNKS;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        const int row = first + i * STEP;
        const bool valid = row < n && c < dim;
        copy_async(tile + row * tile_ld<W>() + c, valid ? from + row * ld + c : from, valid);
    }
}

/** x [16 M, 8 N] = rows of a . rows of b, both W wide. */
template <int W, int M, int N>
static __device__ __forceinline__ void row_products(const bf16 *a, const bf16 *b,
                                                    float (&x)[M][N][4]) {
    const int low = lane_of() % 8, second = lane_of() / 8 % 2 * 8, third = lane_of() / 16 * 8;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x[i][j][e] = 0.0f;
#pragma unroll 2 /* all at once would spill registers */
    for (int k = 0; k < W; k += 16) {
        uint32_t of_a[M][4];
#pragma unroll
        for (int i = 0; i < M; i++)
            load_matrices<false>(of_a[i], a + (16 * i + second + low) * tile_ld<W>() + k + third);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t of_b[4];
            load_matrices<false>(of_b, b + (8 * j + third + low) * tile_ld<W>() + k + second);
#pragma unroll
            for (int i = 0; i < M; i++) {
                multiply(x[i][j], of_a[i], of_b[0], of_b[1]);
                multiply(x[i][j + 1], of_a[i], of_b[2], of_b[3]);
            }
        }
    }
}

static __device__ __forceinline__ uint32_t pair_of(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

/** sum [16 M, W] += x b: x [16 M, 8 N] rounded to bf16, b [8 N, W]. */
template <int W, int M, int N>
static __device__ __forceinline__ void add_product(const float (&x)[M][N][4], const bf16 *b,
                                                   float (&sum)[M][W / 8][4]) {
    const int low = lane_of() % 8, second = lane_of() / 8 % 2 * 8, third = lane_of() / 16 * 8;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t of_x[M][4];
#pragma unroll
        for (int i = 0; i < M; i++) {
            of_x[i][0] = pair_of(x[i][k][0], x[i][k][1]);
            of_x[i][1] = pair_of(x[i][k][2], x[i][k][3]);
            of_x[i][2] = pair_of(x[i][k + 1][0], x[i][k + 1][1]);
            of_x[i][3] = pair_of(x[i][k + 1][2], x[i][k + 1][3]);
        }
#pragma unroll
        for (int j = 0; j < W / 8; j += 2) {
            uint32_t of_b[4];
            load_matrices<true>(of_b, b + (8 * k + second + low) * tile_ld<W>() + 8 * j + third);
#pragma unroll
            for (int i = 0; i < M; i++) {
                multiply(sum[i][j], of_x[i], of_b[0], of_b[1]);
                multiply(sum[i][j + 1], of_x[i], of_b[2], of_b[3]);
            }
        }
    }
}

/** Write the first n of 16 rows, dim elements each, times `low` (rows of [0], [1]) and `high`.
 * `tile`: 16 rows of shared memory that this warp alone reads and no longer needs. */
template <int W>
static __device__ __forceinline__ void store_rows(bf16 *tile, const float (&x)[W / 8][4], float low,
                                                  float high, bf16 *to, int64_t ld, int n,
                                                  int dim) {
    const int row = lane_of() / 4, column = lane_of() % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < W / 8; j++) {
        bf16 *at = tile + row * tile_ld<W>() + 8 * j + column;
        *(uint32_t *)at = pair_of(x[j][0] * low, x[j][1] * low);
        *(uint32_t *)(at + 8 * tile_ld<W>()) = pair_of(x[j][2] * high, x[j][3] * high);
    }
    __syncwarp();
    constexpr int CHUNKS = W / 8;
#pragma unroll
    for (int i = lane_of(); i < 16 * CHUNKS; i += 32) {
        const int r = i / CHUNKS, c = i % CHUNKS * 8;
        if (r < n && c < dim)
            *(uint4 *)(to + r * ld + c) = *(const uint4 *)(tile + r * tile_ld<W>() + c);
    }
}

/** 2^x; 0 for -infinity. */
static __device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

/** Over the four lanes that share rows. */
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/** The queries [first, last] of a warp or a tile and the first keys they see, which never fall:
 * which tiles of keys concern them at all, and which need no mask. */
struct query_range {
    int first, last, least_start, most_start;
};

static __device__ __forceinline__ query_range range_of(const xp_attention_args &a, int b, int first,
                                                       int n) {
    const int last = lesser(first + n, (int)a.seq_len) - 1;
    return {first, last, start_of(a, b, first), last < first ? INT_MAX : start_of(a, b, last)};
}
/** Some query sees one of the keys [k0, k0 + n). False for queries past the row. */
static __device__ __forceinline__ bool sees_some(const query_range &q, int k0, int n) {
    return k0 <= q.last && k0 + n > q.least_start;
}
/** All queries see all of the keys [k0, k0 + n). */
static __device__ __forceinline__ bool sees_all(const query_range &q, int k0, int n) {
    return k0 + n - 1 <= q.first && k0 >= q.most_start;
}

/** Launch with `n_bytes` of dynamic shared memory, above the default limit. */
static inline xp_status launch_attention(void (*kernel)(attention_problem),
                                         const attention_problem &p, dim3 grid, size_t n_bytes,
                                         cudaStream_t stream, const char *name) {
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_bytes),
        name));
    kernel<<<grid, MMA_THREADS, n_bytes, stream>>>(p);
    return xp_cuda_check(cudaGetLastError(), name);
}

#endif
