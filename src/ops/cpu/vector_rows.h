/**
 * Vector access to rows of fp32 or bf16. Pass `dtype` as a constant through inlined functions, and
 * each row type gets its own loop.
 */
#ifndef XP_OPS_CPU_VECTOR_ROWS_H
#define XP_OPS_CPU_VECTOR_ROWS_H

#include "expar/tensor.h"
#include "ops/cpu/vector.h"

typedef uint32_t v_bits __attribute__((vector_size(V_LANES * 4)));
typedef uint16_t v_half __attribute__((vector_size(V_LANES * 2)));

V_INLINE vf v_from_bf16(v_half half) {
    return (vf)(__builtin_convertvector(half, v_bits) << 16);
}

/** Round to nearest even; a NaN stays one (quiet). */
V_INLINE v_half v_to_bf16(vf v) {
    const v_bits bits = (v_bits)v;
    const v_bits rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const v_bits quiet = (bits >> 16) | 0x40U;
    const v_bits nan = (v_bits)(v != v);
    return __builtin_convertvector((nan & quiet) | (~nan & rounded), v_half);
}

/** Elements [i, i + n) of a row, n <= V_LANES (more counts as V_LANES); zeros after them. */
V_INLINE vf v_row_load(const void *row, xp_dtype dtype, int64_t i, int64_t n) {
    if (dtype == XP_F32) {
        const float *p = (const float *)row + i;
        return n >= V_LANES ? v_load(p) : v_load_part(p, n, 0.0F);
    }
    v_half half = {0};
    memcpy(&half, (const uint16_t *)row + i,
           n >= V_LANES ? sizeof half : (size_t)n * sizeof(uint16_t));
    return v_from_bf16(half);
}

V_INLINE void v_row_store(void *row, xp_dtype dtype, int64_t i, int64_t n, vf v) {
    if (dtype == XP_F32) {
        float *p = (float *)row + i;
        if (n >= V_LANES)
            v_store(p, v);
        else
            v_store_part(p, n, v);
        return;
    }
    const v_half half = v_to_bf16(v);
    memcpy((uint16_t *)row + i, &half, n >= V_LANES ? sizeof half : (size_t)n * sizeof(uint16_t));
}

#endif
