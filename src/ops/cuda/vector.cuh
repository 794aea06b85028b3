/**
 * Rows of fp32 or bf16 as vectors of fp32 in registers. A load or store of `vec<T, N>` moves N
 * elements in one access: N = 16 / sizeof(T) is the widest, N = 1 serves rows that are not aligned.
 */
#ifndef XP_OPS_CUDA_VECTOR_CUH
#define XP_OPS_CUDA_VECTOR_CUH

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

/** Elements of a 16-byte access. */
template <typename T> __host__ __device__ constexpr int xp_wide() {
    return 16 / (int)sizeof(T);
}

static __device__ __forceinline__ float to_float(float x) {
    return x;
}
static __device__ __forceinline__ float to_float(bf16 x) {
    return __bfloat162float(x);
}
template <typename T> static __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/** What one access moves, kept as words until it is unpacked: half the registers for bf16. */
template <int N_BYTES> struct words;
template <> struct words<2> { typedef uint16_t type; };
template <> struct words<4> { typedef uint32_t type; };
template <> struct words<8> { typedef uint2 type; };
template <> struct words<16> { typedef uint4 type; };
template <typename T, int N> struct vec { typename words<(int)sizeof(T) * N>::type bits; };

template <typename T, int N> static __device__ __forceinline__ vec<T, N> load_vec(const T *from) {
    return *(const vec<T, N> *)from;
}

template <int N>
static __device__ __forceinline__ void unpack(const vec<float, N> &v, float (&x)[N]) {
    const uint32_t *w = (const uint32_t *)&v;
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = __uint_as_float(w[i]);
}
template <int N>
static __device__ __forceinline__ void unpack(const vec<bf16, N> &v, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = __uint_as_float((uint32_t)v.bits << 16);
    } else {
        const uint32_t *w = (const uint32_t *)&v;
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            x[i] = __uint_as_float(w[i / 2] << 16);
            x[i + 1] = __uint_as_float(w[i / 2] & 0xffff0000u);
        }
    }
}

static __device__ __forceinline__ uint32_t bf16_bits(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <typename T, int N> static __device__ __forceinline__ vec<T, N> pack(const float (&x)[N]) {
    vec<T, N> v;
    if constexpr (sizeof(T) == 4) {
        uint32_t *w = (uint32_t *)&v;
#pragma unroll
        for (int i = 0; i < N; i++)
            w[i] = __float_as_uint(x[i]);
    } else if constexpr (N == 1) {
        v.bits = (uint16_t)bf16_bits(x[0]);
    } else {
        uint32_t *w = (uint32_t *)&v;
#pragma unroll
        for (int i = 0; i < N; i += 2)
            w[i / 2] = bf16_bits(x[i]) | bf16_bits(x[i + 1]) << 16;
    }
    return v;
}

template <typename T, int N>
static __device__ __forceinline__ void store_vec(T *to, const float (&x)[N]) {
    *(vec<T, N> *)to = pack<T, N>(x);
}

/** N elements, N * sizeof(T) perhaps more than 16 bytes, in as many accesses as they need. */
template <typename T, int N>
static __device__ __forceinline__ void load_many(const T *from, float (&x)[N]) {
    constexpr int WIDE = xp_wide<T>() < N ? xp_wide<T>() : N;
#pragma unroll
    for (int i = 0; i < N; i += WIDE) {
        float part[WIDE];
        unpack(load_vec<T, WIDE>(from + i), part);
#pragma unroll
        for (int k = 0; k < WIDE; k++)
            x[i + k] = part[k];
    }
}
template <typename T, int N>
static __device__ __forceinline__ void store_many(T *to, const float (&x)[N]) {
    constexpr int WIDE = xp_wide<T>() < N ? xp_wide<T>() : N;
#pragma unroll
    for (int i = 0; i < N; i += WIDE) {
        float part[WIDE];
#pragma unroll
        for (int k = 0; k < WIDE; k++)
            part[k] = x[i + k];
        store_vec<T, WIDE>(to + i, part);
    }
}

/** Rounded as it would be when stored as a T. */
template <typename T> static __device__ __forceinline__ float rounded(float x) {
    return to_float(from_float<T>(x));
}

#endif
