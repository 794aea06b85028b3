/**
 * Arithmetic on pieces of rows, in fp32. row_math.c is compiled once for each instruction set; all
 * give the same bits (additions in the same order, no contraction), the wider ones sooner.
 */
#ifndef XP_EP_COMMON_CPU_ROW_MATH_H
#define XP_EP_COMMON_CPU_ROW_MATH_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/tensor.h"

typedef struct xp_ep_row_math {
    const char *name;
    /** acc[i] (= or +=) rows[0][i] + rows[1][i] + ..., one after the other; at least one row of n
     * elements of fp32 or bf16. */
    void (*sum)(float *acc, const void *const *rows, int64_t n_rows, int64_t n, xp_dtype dtype,
                bool acc_holds);
    /** row[i] = cast(acc[i]). */
    void (*store)(void *row, const float *acc, int64_t n, xp_dtype dtype);
    /** acc[i] = the value that store() would leave. */
    void (*round)(float *acc, int64_t n, xp_dtype dtype);
} xp_ep_row_math;

extern const xp_ep_row_math xp_ep_row_math_plain;
#if defined(__x86_64__)
extern const xp_ep_row_math xp_ep_row_math_avx2;
extern const xp_ep_row_math xp_ep_row_math_avx512;
#endif

#endif
