/**
 * Epilogue of the Hopper grouped GEMM from registers: bf16 that is added, and the last rows of an
 * expert, where c goes on with the next one. See hopper_store.cuh for the rest.
 * wgmma_64x256() says which thread holds which element.
 */
#ifndef XP_OPS_CUDA_HOPPER_EPILOGUE_CUH
#define XP_OPS_CUDA_HOPPER_EPILOGUE_CUH

#include "ops/cuda/tile_gemm.h"
#include "ops/cuda/vector.cuh"

/* Word j of lane q becomes word q of lane j, in each group of four lanes. */
static __device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
    const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
    const uint32_t x = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1),
                   y = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
    w[0] = odd ? x : w[0];
    w[1] = odd ? w[1] : x;
    w[2] = odd ? y : w[2];
    w[3] = odd ? w[3] : y;
    const uint32_t u = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2),
                   v = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
    w[0] = high ? u : w[0];
    w[1] = high ? v : w[1];
    w[2] = high ? w[2] : u;
    w[3] = high ? w[3] : v;
}

static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&both;
}

/* One predicated 16-byte store. From C the compiler makes four stores of a uint4 and serialises the
 * branches. */
static __device__ __forceinline__ void store_16(bf16 *to, const uint32_t (&w)[4], bool valid) {
    asm volatile("{\n"
                 ".reg .pred valid;\n"
                 "setp.ne.b32 valid, %5, 0;\n"
                 "@valid st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
                 "}" ::"l"(__cvta_generic_to_global(to)),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"((int)valid)
                 : "memory");
}

/* Store bf16, 16 bytes per store: groups of four lanes exchange words by shuffles until each lane
 * holds 8 neighbouring columns. All shuffles of a row come before its first store, so that they
 * overlap. */
static __device__ __forceinline__ void store_bf16(const xp_tile_args &p, const float (&d)[128],
                                                  bf16 *c, int64_t row, int64_t n_rows,
                                                  int64_t n0) {
    constexpr int N_STORES = 8;
    const int lane = (int)threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t r = row + 8 * half;
        uint32_t w[N_STORES][4];
#pragma unroll
        for (int g = 0; g < N_STORES; g++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int i = 4 * (4 * g + j) + 2 * half;
                w[g][j] = pack(d[i], d[i + 1]);
            }
        }
#pragma unroll
        for (int g = 0; g < N_STORES; g++)
            transpose_quad(w[g]);
#pragma unroll
        for (int g = 0; g < N_STORES; g++) {
            const int64_t column = n0 + 8 * (4 * g + lane);
            store_16(c + r * p.ldc + column, w[g], r < n_rows && column < p.n);
        }
    }
}

/* Add to bf16: two neighbouring columns per access. */
static __device__ __forceinline__ void add_bf16(const xp_tile_args &p, const float (&d)[128],
                                                int64_t c0, int64_t row, int64_t n_rows,
                                                int64_t n0) {
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int64_t r = row + 8 * (i % 2), column = n0 + 8 * (i / 2) + 2 * (threadIdx.x % 4);
        if (r >= n_rows || column >= p.n)
            continue;
        uint32_t *to = (uint32_t *)((bf16 *)p.c + c0 + r * p.ldc + column);
        const uint32_t bits = *to;
        const __nv_bfloat162 old = *(const __nv_bfloat162 *)&bits;
        *to = pack(__low2float(old) + d[2 * i], __high2float(old) + d[2 * i + 1]);
    }
}

/* Transpose an 8 x 8 block of bf16 in registers: two columns per lane become two rows per lane. */
static __device__ __forceinline__ uint32_t transpose_block(uint32_t pair) {
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

/* Add to bf16 transposed, c is [n, m]: rows are contiguous, 8 of them per access. `row` is the warp's
 * first. */
static __device__ __forceinline__ void add_transposed_bf16(const xp_tile_args &p,
                                                           const float (&d)[128], int64_t c0,
                                                           int64_t row, int64_t n_rows,
                                                           int64_t n0) {
    const int quad = (int)threadIdx.x % 4, group = (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int64_t r = row + 8 * (i % 2) + 2 * quad, column = n0 + 8 * (i / 2) + group;
        const bool valid = r < n_rows && column < p.n;
        uint32_t *to = (uint32_t *)((bf16 *)p.c + c0 + column * p.ldc + r);
        const uint32_t bits = transpose_block(valid ? *to : 0); /* in the accumulators' layout */
        const __nv_bfloat162 old = *(const __nv_bfloat162 *)&bits;
        const uint32_t turned =
            transpose_block(pack(__low2float(old) + d[2 * i], __high2float(old) + d[2 * i + 1]));
        if (valid)
            *to = turned;
    }
}

#endif
