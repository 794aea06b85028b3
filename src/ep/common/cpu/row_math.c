/* Compiled once for each instruction set; XP_EP_ROW_MATH is the name of the table,
 * XP_EP_ROW_MATH_NAME its text. */
#include "ep/common/cpu/row_math.h"

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
static int64_t start_f32(float *restrict acc, const float *const *rows, int64_t n_rows, int64_t n) {
    const float *restrict a = rows[0];
    if (n_rows < 4) {
        memcpy(acc, a, (size_t)n * sizeof *acc);
        return 1;
    }
    const float *restrict b = rows[1], *restrict c = rows[2], *restrict d = rows[3];
    for (int64_t i = 0; i < n; i++)
        acc[i] = ((a[i] + b[i]) + c[i]) + d[i];
    return 4;
}

static void go_on_f32(float *restrict acc, const float *const *rows, int64_t n_rows, int64_t n) {
    int64_t r = 0;
    for (; r + 3 <= n_rows; r += 3) {
        const float *restrict a = rows[r], *restrict b = rows[r + 1], *restrict c = rows[r + 2];
        for (int64_t i = 0; i < n; i++)
            acc[i] = ((acc[i] + a[i]) + b[i]) + c[i];
    }
    for (; r < n_rows; r++) {
        const float *restrict a = rows[r];
        for (int64_t i = 0; i < n; i++)
            acc[i] += a[i];
    }
}

static int64_t start_bf16(float *restrict acc, const uint16_t *const *rows, int64_t n_rows,
                          int64_t n) {
    const uint16_t *restrict a = rows[0];
    if (n_rows < 4) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = widen(a[i]);
        return 1;
    }
    const uint16_t *restrict b = rows[1], *restrict c = rows[2], *restrict d = rows[3];
    for (int64_t i = 0; i < n; i++)
        acc[i] = ((widen(a[i]) + widen(b[i])) + widen(c[i])) + widen(d[i]);
    return 4;
}

static void go_on_bf16(float *restrict acc, const uint16_t *const *rows, int64_t n_rows,
                       int64_t n) {
    int64_t r = 0;
    for (; r + 3 <= n_rows; r += 3) {
        const uint16_t *restrict a = rows[r], *restrict b = rows[r + 1], *restrict c = rows[r + 2];
        for (int64_t i = 0; i < n; i++)
            acc[i] = ((acc[i] + widen(a[i])) + widen(b[i])) + widen(c[i]);
    }
    for (; r < n_rows; r++) {
        const uint16_t *restrict a = rows[r];
        for (int64_t i = 0; i < n; i++)
            acc[i] += widen(a[i]);
    }
}

static void sum(float *acc, const void *const *rows, int64_t n_rows, int64_t n, xp_dtype dtype,
                bool acc_holds) {
    int64_t r = 0;
    if (dtype == XP_F32) {
        const float *const *wide = (const float *const *)rows;
        if (!acc_holds)
            r = start_f32(acc, wide, n_rows, n);
        go_on_f32(acc, wide + r, n_rows - r, n);
    } else {
        const uint16_t *const *half = (const uint16_t *const *)rows;
        if (!acc_holds)
            r = start_bf16(acc, half, n_rows, n);
        go_on_bf16(acc, half + r, n_rows - r, n);
    }
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
    if (dtype != XP_BF16)
        return;
    for (int64_t i = 0; i < n; i++)
        acc[i] = widen(narrow(acc[i]));
}

const xp_ep_row_math XP_EP_ROW_MATH = {
    .name = XP_EP_ROW_MATH_NAME,
    .sum = sum,
    .store = store,
    .round = round_in_place,
};
