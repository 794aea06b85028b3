/**
 * fp32 master weights as bf16 parameters and what rounding took from them.
 *
 * The parameter is the master rounded to nearest even; the remainder is the lower 16 bits of the master. They do not say
 * whether rounding went up: of masters that lie half-way between two parameters both neighbours of an even one round
 * to it, with the same lower bits. The sign of the element's second moment says it, which is free: the moment is
 * never negative. It is set when the parameter's bits are one more than the upper 16 bits of the master:
 *
 *   master = (parameter - (sign of v)) << 16 | remainder          in bits
 *
 * This gives back the bits of every master but NaN, which stays a NaN.
 */
#ifndef XP_CORE_REMAINDER_H
#define XP_CORE_REMAINDER_H

#include <stdint.h>

/** All arrays are [n]. Only the sign of v is written. */
void xp_remainder_split(int64_t n, const float *master, uint16_t *param, uint16_t *remainder,
                        float *v);
/** v becomes the second moment itself: its sign is cleared. */
void xp_remainder_join(int64_t n, const uint16_t *param, const uint16_t *remainder, float *v,
                       float *master);

#endif
