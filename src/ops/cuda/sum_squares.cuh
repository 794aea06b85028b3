/** Sums of squares in fp64 in a fixed order: what sum_squares and sum_squares_parts share, so that they give
 * the same bits. */
#ifndef XP_OPS_CUDA_SUM_SQUARES_CUH
#define XP_OPS_CUDA_SUM_SQUARES_CUH

#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int SQUARE_THREADS = 256, LAST_THREADS = 1024;

/* Of `n` neighbouring elements, by a block of SQUARE_THREADS; a thread owns vectors threadIdx.x, threadIdx.x
 * + SQUARE_THREADS, ... of them. partial: shared, one a warp. */
template <typename T, int N>
static __device__ __forceinline__ double block_squares(const T *x, int64_t n, double *partial) {
    double sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x * N; i + N <= n; i += SQUARE_THREADS * N) {
        float v[N];
        unpack(load_vec<T, N>(x + i), v);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum += (double)v[k] * (double)v[k];
    }
    const int64_t tail = n / N * N + threadIdx.x; /* fewer than N elements */
    if (tail < n) {
        const double v = (double)to_float(x[tail]);
        sum += v * v;
    }
    return block_sum(sum, partial);
}

/* Of n values, by a block of LAST_THREADS. */
template <typename T>
static __device__ __forceinline__ double block_total(const T *x, int64_t n, double *partial) {
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += LAST_THREADS)
        sum += (double)x[i];
    return block_sum(sum, partial);
}

} // namespace

#endif
