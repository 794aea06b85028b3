/**
 * Tiles of the plain attention kernels. A block of 256 threads is 16 x 16: thread (y, x) owns rows
 * y + 16 i of a tile's result and columns x + 16 j of scores, or 4 neighbours at 4 x + 64 j of
 * results as wide as a head. Tiles lie in shared memory as fp32 with rows of W + 4 floats: 16-byte
 * reads of eight neighbouring threads then fall into all 32 banks.
 */
#ifndef XP_OPS_CUDA_ATTENTION_TILE_CUH
#define XP_OPS_CUDA_ATTENTION_TILE_CUH

#include "ops/cuda/vector.cuh"

constexpr int TILE_THREADS = 256, TILE_KEYS = 64, SCORE_LD = TILE_KEYS + 4;

static __device__ __forceinline__ int tile_x() {
    return (int)threadIdx.x % 16;
}
static __device__ __forceinline__ int tile_y() {
    return (int)threadIdx.x / 16;
}

/** Rows in device memory: `n` of them count, each of `dim` elements, `ld` apart. wide: groups of
 * four elements are aligned and fill the row. */
template <typename T> struct tile_source {
    const T *data;
    int64_t ld;
    int n, dim;
    bool wide;
};

/** Fill ROWS x W with the rows that count and zeros. */
template <typename T, int ROWS, int W>
static __device__ __forceinline__ void load_tile(float *tile, const tile_source<T> &from) {
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < ROWS * W / 4; i += TILE_THREADS) {
        const int row = i / (W / 4), c = i % (W / 4) * 4;
        const T *at = from.data + row * from.ld + c;
        float x[4] = {};
        if (row < from.n && from.wide && c < from.dim)
            unpack(load_vec<T, 4>(at), x);
        else if (row < from.n)
#pragma unroll
            for (int k = 0; k < 4; k++)
                x[k] = c + k < from.dim ? to_float(at[k]) : 0.0f;
        *(float4 *)&tile[row * (W + 4) + c] = make_float4(x[0], x[1], x[2], x[3]);
    }
}

/** s[i][j] = row y + 16 i of a . row x + 16 j of b, both W wide. */
template <int I, int J, int W>
static __device__ __forceinline__ void tile_scores(const float *a, const float *b,
                                                   float (&s)[I][J]) {
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
        for (int j = 0; j < J; j++)
            s[i][j] = 0;
#pragma unroll 4
    for (int c = 0; c < W; c += 4) {
        float4 x[I], y[J];
#pragma unroll
        for (int i = 0; i < I; i++)
            x[i] = *(const float4 *)&a[(tile_y() + 16 * i) * (W + 4) + c];
#pragma unroll
        for (int j = 0; j < J; j++)
            y[j] = *(const float4 *)&b[(tile_x() + 16 * j) * (W + 4) + c];
#pragma unroll
        for (int i = 0; i < I; i++)
#pragma unroll
            for (int j = 0; j < J; j++)
                s[i][j] += x[i].x * y[j].x + x[i].y * y[j].y + x[i].z * y[j].z + x[i].w * y[j].w;
    }
}

/** A thread's part of a result of 64 rows as wide as a head: rows y + 16 i, columns 4 x + 64 j. */
template <int W> struct tile_rows { float4 at[4][W / 64]; };

static __device__ __forceinline__ void add_scaled(float4 &sum, float w, const float4 &x) {
    sum.x += w * x.x;
    sum.y += w * x.y;
    sum.z += w * x.z;
    sum.w += w * x.w;
}

/** result += s b: s is [64, KEYS] of scores, b [KEYS, W]. */
template <int W, int KEYS>
static __device__ __forceinline__ void add_product(const float *s, const float *b,
                                                   tile_rows<W> &result) {
#pragma unroll 4
    for (int k = 0; k < KEYS; k++) {
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[i] = s[(tile_y() + 16 * i) * SCORE_LD + k];
#pragma unroll
        for (int j = 0; j < W / 64; j++) {
            const float4 x = *(const float4 *)&b[k * (W + 4) + 4 * tile_x() + 64 * j];
#pragma unroll
            for (int i = 0; i < 4; i++)
                add_scaled(result.at[i][j], w[i], x);
        }
    }
}

/** result += s^T b: s is [QUERIES, 64] of scores, b [QUERIES, W]. */
template <int W, int QUERIES>
static __device__ __forceinline__ void add_transposed_product(const float *s, const float *b,
                                                              tile_rows<W> &result) {
#pragma unroll 4
    for (int q = 0; q < QUERIES; q++) {
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[i] = s[q * SCORE_LD + tile_y() + 16 * i];
#pragma unroll
        for (int j = 0; j < W / 64; j++) {
            const float4 x = *(const float4 *)&b[q * (W + 4) + 4 * tile_x() + 64 * j];
#pragma unroll
            for (int i = 0; i < 4; i++)
                add_scaled(result.at[i][j], w[i], x);
        }
    }
}

/** Write the first n rows, dim elements each, row i times factor[i]. */
template <typename T, int W>
static __device__ __forceinline__ void store_rows(const tile_rows<W> &result,
                                                  const float (&factor)[4], T *to, int64_t ld,
                                                  int n, int dim) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = tile_y() + 16 * i;
        if (row >= n)
            continue;
#pragma unroll
        for (int j = 0; j < W / 64; j++) {
            const int c = 4 * tile_x() + 64 * j;
            const float4 v = result.at[i][j];
            const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (c + k < dim)
                    to[row * ld + c + k] = from_float<T>(x[k] * factor[i]);
        }
    }
}

/** Sum, or maximum, over the 16 threads of a row. */
static __device__ __forceinline__ float row_sum(float x) {
    for (int step = 8; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
static __device__ __forceinline__ float row_max(float x) {
    for (int step = 8; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

#endif
