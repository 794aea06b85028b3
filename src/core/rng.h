/**
 * Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011). A value is a pure function of (seed, stream, index), so
 * it is the same whatever rank or thread draws it.
 */
#ifndef XP_CORE_RNG_H
#define XP_CORE_RNG_H

#include <stdint.h>

/** Four 32-bit words for a 128-bit counter {index, stream} under the 64-bit key `seed`. */
void xp_rng_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
uint64_t xp_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
/** Uniform in [0, 1), 24 bits. */
float xp_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/** Uniform integer in [0, n), n >= 1, without modulo bias for n < 2^32 to 2^-32. */
uint64_t xp_rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);
/** Standard normal (Box-Muller over the two words of `index`). */
float xp_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);
/** out[i] = std * xp_rng_normal(seed, stream, first + i). */
void xp_rng_fill_normal(uint64_t seed, uint64_t stream, uint64_t first, int64_t n, float std,
                        float *out);
/** A stream number from a name (FNV-1a, 64 bits). */
uint64_t xp_rng_stream(const char *name);
/** Element `index` of a seeded permutation of [0, n) (a 4-round Feistel network with cycle
 * walking): no table needed. */
uint64_t xp_rng_permute(uint64_t seed, uint64_t stream, uint64_t n, uint64_t index);

#endif
