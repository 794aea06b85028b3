/**
 * Vectors of floats for the *_kernels.c files, which are compiled once for each instruction set: 16
 * lanes with AVX-512, 8 with AVX2. Everything here is a static inline of a few instructions; that
 * is why a header has bodies.
 *
 * Sums run over lanes first and then over the lanes in a fixed order, so they are the same on every
 * run and thread, but not the same for both widths.
 */
#ifndef XP_OPS_CPU_VECTOR_H
#define XP_OPS_CPU_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(XP_KERNELS_AVX512)
#define V_LANES 16
#else
#define V_LANES 8
#endif
#define V_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(V_LANES * 4)));
typedef int32_t vi __attribute__((vector_size(V_LANES * 4)));
typedef double vd __attribute__((vector_size(V_LANES * 4))); /* half as many lanes */

V_INLINE vf v_set(float x) {
    return (vf){0} + x;
}

V_INLINE vf v_load(const float *x) {
    vf v;
    memcpy(&v, x, sizeof v);
    return v;
}

V_INLINE void v_store(float *x, vf v) {
    memcpy(x, &v, sizeof v);
}

/** The first n < V_LANES lanes from x, the others `fill`. */
V_INLINE vf v_load_part(const float *x, int64_t n, float fill) {
    float lanes[V_LANES];
    v_store(lanes, v_set(fill));
    memcpy(lanes, x, (size_t)n * sizeof *x);
    return v_load(lanes);
}

V_INLINE void v_store_part(float *x, int64_t n, vf v) {
    float lanes[V_LANES];
    v_store(lanes, v);
    memcpy(x, lanes, (size_t)n * sizeof *x);
}

/** Lanes of a where the mask is all ones, of b where it is zero. */
V_INLINE vf v_select(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/** The larger one; the second where either is NaN. */
V_INLINE vf v_max(vf a, vf b) {
    return v_select(a > b, a, b);
}

V_INLINE float v_sum_lanes(vf v) {
    float lanes[V_LANES];
    v_store(lanes, v);
    for (int width = V_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

/** The largest lane that is not NaN; -Inf when there is none. */
V_INLINE float v_max_lanes(vf v) {
    float lanes[V_LANES];
    v_store(lanes, v);
    float max = -INFINITY;
    for (int i = 0; i < V_LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    return max;
}

/** 2^n for n in [-126, 127]. */
V_INLINE vf v_exp2_int(vi n) {
    return (vf)((n + 127) << 23);
}

/**
 * exp(x), error at most 1.01 ulp where the result is a normal number (measured over all fp32 x);
 * below that it loses bits as subnormal numbers do, and from x = -104 on it is 0. exp(-Inf) = 0,
 * exp(Inf) = Inf, NaN stays NaN.
 *
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 P(r) with P fitted for the least relative
 * error, 3.1e-9.
 */
V_INLINE vf v_exp(vf x) {
    const vf highest = v_set(89.0F); /* beyond: Inf, as 2^n1 * 2^n2 overflows */
    const vf lowest = v_set(-104.0F);
    x = v_select(x > highest, highest, x);
    x = v_select(x < lowest, lowest, x);
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum. */
    const vf magic = v_set(0x1.8p23F);
    vf shifted = x * 0x1.715476p+0F + magic;
    vf n = shifted - magic;
    vf r = x - n * 0x1.62e400p-1F; /* ln 2 in two parts; n times the first, of 14 bits, is exact */
    r = r - n * 0x1.7f7d1cp-20F;
    vf p = v_set(0x1.6a23cep-10F);
    p = p * r + 0x1.123a20p-7F;
    p = p * r + 0x1.5558f2p-5F;
    p = p * r + 0x1.555492p-3F;
    p = p * r + 0x1.fffffcp-2F;
    p = p * (r * r) + r + 1.0F;
    /* In two steps, so that the ends of the range are reached. */
    vi n_all = (vi)shifted - (vi)magic;
    vi n_half = n_all >> 1;
    return p * v_exp2_int(n_half) * v_exp2_int(n_all - n_half);
}

/** 1 / (1 + exp(-x)). */
V_INLINE vf v_sigmoid(vf x) {
    return 1.0F / (1.0F + v_exp(-x));
}

#endif
