/* Compiled once for each instruction set; XP_EP_ROW_MATH is the name of the table,
 * XP_EP_ROW_MATH_NAME its text. */
#include "ep/cpu/row_math.h"

#include <string.h>

/* The rounding of xp_bf16_from_f32 in a form that the compiler turns into vector code. */
static uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40U;
    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

static float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/*
 * Four rows at a time: their pages stream in side by side, and the sum so far stays in registers.
 * The additions of an element keep their order.
 */
static void sum_f32(float *restrict acc, const void *const *rows, int64_t n_rows, int64_t n,
                    bool acc_holds) {
    int64_t r = 0;
    if (!acc_holds) {
        memcpy(acc, rows[0], (size_t)n * sizeof *acc);
        r = 1;
    }
    for (; r + 4 <= n_rows; r += 4) {
        const float *restrict a = rows[r], *restrict b = rows[r + 1];
        const float *restrict c = rows[r + 2], *restrict d = rows[r + 3];
        for (int64_t i = 0; i < n; i++)
            acc[i] = (((acc[i] + a[i]) + b[i]) + c[i]) + d[i];
    }
    for (; r + 2 <= n_rows; r += 2) {
        const float *restrict a = rows[r], *restrict b = rows[r + 1];
        for (int64_t i = 0; i < n; i++)
            acc[i] = (acc[i] + a[i]) + b[i];
    }
    for (; r < n_rows; r++) {
        const float *restrict a = rows[r];
        for (int64_t i = 0; i < n; i++)
            acc[i] += a[i];
    }
}

static void sum_bf16(float *restrict acc, const void *const *rows, int64_t n_rows, int64_t n,
                     bool acc_holds) {
    int64_t r = 0;
    if (!acc_holds) {
        const uint16_t *restrict a = rows[0];
        for (int64_t i = 0; i < n; i++)
            acc[i] = widen(a[i]);
        r = 1;
    }
    for (; r + 4 <= n_rows; r += 4) {
        const uint16_t *restrict a = rows[r], *restrict b = rows[r + 1];
        const uint16_t *restrict c = rows[r + 2], *restrict d = rows[r + 3];
        for (int64_t i = 0; i < n; i++)
            acc[i] = (((acc[i] + widen(a[i])) + widen(b[i])) + widen(c[i])) + widen(d[i]);
    }
    for (; r < n_rows; r++) {
        const uint16_t *restrict a = rows[r];
        for (int64_t i = 0; i < n; i++)
            acc[i] += widen(a[i]);
    }
}

static void sum(float *acc, const void *const *rows, int64_t n_rows, int64_t n, xp_dtype dtype,
                bool acc_holds) {
    if (dtype == XP_F32)
        sum_f32(acc, rows, n_rows, n, acc_holds);
    else
        sum_bf16(acc, rows, n_rows, n, acc_holds);
}

static void store(void *restrict row, const float *restrict acc, int64_t n, xp_dtype dtype) {
    uint16_t *x = row;
    if (dtype == XP_F32) {
        memcpy(row, acc, (size_t)n * sizeof *acc);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        x[i] = narrow(acc[i]);
}

static void round_in_place(float *acc, int64_t n, xp_dtype dtype) {
    for (int64_t i = 0; i < n && dtype == XP_BF16; i++)
        acc[i] = widen(narrow(acc[i]));
}

const xp_ep_row_math XP_EP_ROW_MATH = {
    .name = XP_EP_ROW_MATH_NAME,
    .sum = sum,
    .store = store,
    .round = round_in_place,
};
