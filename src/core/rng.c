#include "core/rng.h"

#include "core/random_math.h"

void xp_rng_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    xp_random_philox(seed, stream, index, out);
}

uint64_t xp_rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t w[4];
    xp_rng_philox(seed, stream, index, w);
    return (uint64_t)w[0] | ((uint64_t)w[1] << 32);
}

float xp_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (float)(xp_rng_u64(seed, stream, index) >> 40) * 0x1p-24F;
}

uint64_t xp_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n) {
    unsigned __int128 product = (unsigned __int128)xp_rng_u64(seed, stream, index) * n;
    return (uint64_t)(product >> 64);
}

/* One counter gives two words and so one normal: an index never depends on its neighbours. */
float xp_rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    return xp_random_normal(seed, stream, index);
}

void xp_rng_fill_normal(uint64_t seed, uint64_t stream, uint64_t first, int64_t n, float std,
                        float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = std * xp_rng_normal(seed, stream, first + (uint64_t)i);
}

uint64_t xp_rng_stream(const char *name) {
    uint64_t hash = 0xcbf29ce484222325U;
    for (; *name != '\0'; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3U;
    return hash;
}

uint64_t xp_rng_permute(uint64_t seed, uint64_t stream, uint64_t n, uint64_t index) {
    if (n < 2)
        return index;
    int bits = 64 - __builtin_clzll(n - 1);
    int half = (bits + 1) / 2;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t x = index;
    /* The network permutes [0, 4^half); walk along the cycle until the value is back inside [0, n).
     */
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (xp_rng_u64(seed, stream ^ (round << 60), right) & mask);
            left = right;
            right = next;
        }
        x = (left << half) | right;
    } while (x >= n);
    return x;
}
