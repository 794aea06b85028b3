/** Sums and maxima over a warp or a block, always in the same order. */
#ifndef XP_OPS_CUDA_REDUCE_CUH
#define XP_OPS_CUDA_REDUCE_CUH

#include <stdint.h>

/** Every lane gets the sum over groups of `width` lanes (a power of two). */
template <typename T> static __device__ __forceinline__ T warp_sum(T x, int width = 32) {
    for (int step = width / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/**
 * Sum over the `n_warps` neighbouring warps that work on one row; every thread gets it. All threads
 * of the block call it. `partial`: shared memory, one element a warp of the block; may be used
 * again at once.
 */
template <typename T> static __device__ __forceinline__ T warps_sum(T x, int n_warps, T *partial) {
    x = warp_sum(x);
    if (n_warps == 1)
        return x;
    const int warp = (int)threadIdx.x / 32, first = warp / n_warps * n_warps;
    if (threadIdx.x % 32 == 0)
        partial[warp] = x;
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < n_warps; i++)
        sum += partial[first + i];
    __syncthreads();
    return sum;
}

/** Sum over the block; every thread gets it. `partial` as above. */
template <typename T> static __device__ __forceinline__ T block_sum(T x, T *partial) {
    return warps_sum(x, (int)blockDim.x / 32, partial);
}

#endif
