/**
 * The arithmetic behind core/rng.h, for the host and for kernels: integers, and fp64 sums,
 * products, quotients and roots alone, so that a draw has the same bits on every machine and device
 * (compiled without contraction to FMA) and depends on no mathematics library.
 */
#ifndef XP_CORE_RANDOM_MATH_H
#define XP_CORE_RANDOM_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define XP_RANDOM_FN static __host__ __device__ __forceinline__
#else
#define XP_RANDOM_FN static inline
#endif

XP_RANDOM_FN void xp_random_philox_round(uint32_t c[4], uint32_t k0, uint32_t k1) {
    const uint64_t p0 = (uint64_t)0xD2511F53U * c[0];
    const uint64_t p1 = (uint64_t)0xCD9E8D57U * c[2];
    const uint32_t r0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
    const uint32_t r2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
    c[1] = (uint32_t)p1;
    c[3] = (uint32_t)p0;
    c[0] = r0;
    c[2] = r2;
}

/** Philox4x32-10: four words for the counter {index, stream} under the key `seed`. */
XP_RANDOM_FN void xp_random_philox(uint64_t seed, uint64_t stream, uint64_t index,
                                   uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    out[0] = (uint32_t)index;
    out[1] = (uint32_t)(index >> 32);
    out[2] = (uint32_t)stream;
    out[3] = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        xp_random_philox_round(out, k0, k1);
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}

/** log(x / 2^33) for 0 < x < 2^33. With x = m 2^e, m near 1: log m = 2 artanh((m - 1) / (m + 1)),
 * its series up to the 23rd power; off by less than 5e-16 of the result. */
XP_RANDOM_FN double xp_random_log(uint64_t x) {
    double m = (double)x;
    uint64_t bits;
    memcpy(&bits, &m, sizeof bits);
    /* m in [1/sqrt(2), sqrt(2)): the high bits of sqrt(1/2) taken off carry into the exponent */
    const uint64_t carried = bits - 0x3FE6A09E00000000U;
    const int e = (int)(carried >> 52);
    bits -= (uint64_t)e << 52;
    memcpy(&m, &bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0), q = s * s;
    double sum = 1.0 / 23.0;
    sum = sum * q + 1.0 / 21.0;
    sum = sum * q + 1.0 / 19.0;
    sum = sum * q + 1.0 / 17.0;
    sum = sum * q + 1.0 / 15.0;
    sum = sum * q + 1.0 / 13.0;
    sum = sum * q + 1.0 / 11.0;
    sum = sum * q + 1.0 / 9.0;
    sum = sum * q + 1.0 / 7.0;
    sum = sum * q + 1.0 / 5.0;
    sum = sum * q + 1.0 / 3.0;
    sum = sum * q + 1.0;
    return (double)(e - 33) * 0.6931471805599453 + 2.0 * s * sum;
}

/** cos(2 pi x / 2^32). The nearest quarter turn is taken off exactly, the rest is the Taylor series
 * of cosine or sine on [-pi/4, pi/4] up to the 18th or 19th power. */
XP_RANDOM_FN double xp_random_cos_turn(uint32_t x) {
    const uint32_t quarter = (x + 0x20000000U) >> 30;
    const double a = 6.283185307179586 * ((double)(int32_t)(x - (quarter << 30)) * 0x1p-32);
    const double q = a * a;
    double c = 1.0 - q * (1.0 / (18 * 17));
    c = 1.0 - c * q * (1.0 / (16 * 15));
    c = 1.0 - c * q * (1.0 / (14 * 13));
    c = 1.0 - c * q * (1.0 / (12 * 11));
    c = 1.0 - c * q * (1.0 / (10 * 9));
    c = 1.0 - c * q * (1.0 / (8 * 7));
    c = 1.0 - c * q * (1.0 / (6 * 5));
    c = 1.0 - c * q * (1.0 / (4 * 3));
    c = 1.0 - c * q * 0.5;
    double s = 1.0 - q * (1.0 / (19 * 18));
    s = 1.0 - s * q * (1.0 / (17 * 16));
    s = 1.0 - s * q * (1.0 / (15 * 14));
    s = 1.0 - s * q * (1.0 / (13 * 12));
    s = 1.0 - s * q * (1.0 / (11 * 10));
    s = 1.0 - s * q * (1.0 / (9 * 8));
    s = 1.0 - s * q * (1.0 / (7 * 6));
    s = 1.0 - s * q * (1.0 / (5 * 4));
    s = a * (1.0 - s * q * (1.0 / (3 * 2)));
    const double value = (quarter & 1U) != 0 ? s : c;
    return quarter == 1 || quarter == 2 ? -value : value;
}

/** Standard normal: Box-Muller over the first two words of the counter. */
XP_RANDOM_FN float xp_random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t w[4];
    xp_random_philox(seed, stream, index, w);
    const double log_u = xp_random_log(2 * (uint64_t)w[0] + 1); /* u = (w + 1/2) / 2^32 */
    return (float)(sqrt(-2.0 * log_u) * xp_random_cos_turn(w[1]));
}

#endif
