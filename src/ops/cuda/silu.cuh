/** silu(a) * b * p and its derivatives, element by element: the kernels of silu_gate_prob.cu and the
 * epilogues of hopper_silu.cuh compute the same bits from it. */
#ifndef XP_OPS_CUDA_SILU_CUH
#define XP_OPS_CUDA_SILU_CUH

#include <stdint.h>

/** 1 / (1 + exp(-a)). bf16 results keep 8 bits: the short instructions are exact enough there. */
template <typename T> static __device__ __forceinline__ float sigmoid(float a) {
    if constexpr (sizeof(T) == 2)
        return __fdividef(1.0f, 1.0f + __expf(-a));
    else
        return 1.0f / (1.0f + expf(-a));
}

template <typename T>
static __device__ __forceinline__ float silu_gate_prob(float a, float b, float p) {
    return a * sigmoid<T>(a) * b * p;
}

/**
 * N neighbouring elements: a and b become their gradients, `d` is the gradient of h.
 * @param[out] h  silu(a) * b * p
 * @return sum of d * silu(a) * b, in order
 */
template <typename T, int N>
static __device__ __forceinline__ float silu_gate_prob_gradients(float (&a)[N], float (&b)[N],
                                                                 const float (&d)[N], float p,
                                                                 float (&h)[N]) {
    float dp = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float s = sigmoid<T>(a[k]), silu = a[k] * s;
        const float d_silu = s * __fmaf_rn(a[k], 1.0f - s, 1.0f);
        h[k] = silu * b[k] * p;
        dp = __fmaf_rn(d[k] * silu, b[k], dp);
        a[k] = d[k] * b[k] * p * d_silu;
        b[k] = d[k] * silu * p;
    }
    return dp;
}

#endif
