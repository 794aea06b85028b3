#include "comm/reduce.h"

#include <string.h>

/* Elements reduced at a time: the accumulator stays in the first-level cache while the sources
 * stream past. */
#define BLOCK 1024

bool xp_reduce_has_type(xp_dtype dtype) {
    return dtype == XP_F32 || dtype == XP_BF16 || dtype == XP_F64 || dtype == XP_I32 ||
           dtype == XP_I64;
}

static void fold_f32(float *restrict acc, const float *restrict x, int64_t n, xp_reduce_op op) {
    if (op == XP_SUM) {
        for (int64_t i = 0; i < n; i++)
            acc[i] += x[i];
    } else if (op == XP_MAX) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] > acc[i] || x[i] != x[i] ? x[i] : acc[i];
    } else {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] < acc[i] || x[i] != x[i] ? x[i] : acc[i];
    }
}

static void fold_f64(double *restrict acc, const double *restrict x, int64_t n, xp_reduce_op op) {
    if (op == XP_SUM) {
        for (int64_t i = 0; i < n; i++)
            acc[i] += x[i];
    } else if (op == XP_MAX) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] > acc[i] || x[i] != x[i] ? x[i] : acc[i];
    } else {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] < acc[i] || x[i] != x[i] ? x[i] : acc[i];
    }
}

/* Sums wrap around instead of being undefined: counters never get near, and a test may. */
static void fold_i32(int32_t *restrict acc, const int32_t *restrict x, int64_t n, xp_reduce_op op) {
    if (op == XP_SUM) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = (int32_t)((uint32_t)acc[i] + (uint32_t)x[i]);
    } else if (op == XP_MAX) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] > acc[i] ? x[i] : acc[i];
    } else {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] < acc[i] ? x[i] : acc[i];
    }
}

static void fold_i64(int64_t *restrict acc, const int64_t *restrict x, int64_t n, xp_reduce_op op) {
    if (op == XP_SUM) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = (int64_t)((uint64_t)acc[i] + (uint64_t)x[i]);
    } else if (op == XP_MAX) {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] > acc[i] ? x[i] : acc[i];
    } else {
        for (int64_t i = 0; i < n; i++)
            acc[i] = x[i] < acc[i] ? x[i] : acc[i];
    }
}

typedef union block {
    float f32[BLOCK];
    double f64[BLOCK];
    int32_t i32[BLOCK];
    int64_t i64[BLOCK];
} block;

static void widen(float *restrict out, const uint16_t *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

static void fold(const xp_reduce_args *args, block *acc, const void *x, int64_t n) {
    switch (args->dtype) {
    case XP_BF16: {
        float wide[BLOCK];
        widen(wide, x, n);
        fold_f32(acc->f32, wide, n, args->op);
        break;
    }
    case XP_F64:
        fold_f64(acc->f64, x, n, args->op);
        break;
    case XP_I32:
        fold_i32(acc->i32, x, n, args->op);
        break;
    case XP_I64:
        fold_i64(acc->i64, x, n, args->op);
        break;
    default:
        fold_f32(acc->f32, x, n, args->op);
        break;
    }
}

void xp_reduce_run(const xp_reduce_args *args) {
    size_t size = xp_dtype_bytes(args->dtype);
    for (int64_t first = 0; first < args->n; first += BLOCK) {
        int64_t n = args->n - first < BLOCK ? args->n - first : BLOCK;
        size_t at = (size_t)first * size, n_bytes = (size_t)n * size;
        block acc;
        if (args->dtype == XP_BF16)
            widen(acc.f32, (const uint16_t *)args->src[0] + first, n);
        else
            memcpy(&acc, (const char *)args->src[0] + at, n_bytes);
        for (int k = 1; k < args->n_src; k++)
            fold(args, &acc, (const char *)args->src[k] + at, n);
        uint16_t narrow[BLOCK];
        const void *result = &acc;
        if (args->dtype == XP_BF16) {
            for (int64_t i = 0; i < n; i++)
                narrow[i] = xp_bf16_from_f32(acc.f32[i]);
            result = narrow;
        }
        for (int k = 0; k < args->n_dst; k++)
            memcpy((char *)args->dst[k] + at, result, n_bytes);
    }
}

void xp_reduce_to_one(const void *const *src, int n_src, int64_t n, xp_dtype dtype, xp_reduce_op op,
                      void *dst) {
    xp_reduce_run(&(xp_reduce_args){
        .src = src, .n_src = n_src, .dst = &dst, .n_dst = 1, .n = n, .dtype = dtype, .op = op});
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t xp_piece_of(const xp_pieces *p, int rank, int64_t *n) {
    int64_t start = smaller(p->each * rank + p->at, p->total);
    int64_t end = smaller(smaller(p->each * rank + p->at + p->n, p->each * (rank + 1)), p->total);
    *n = end > start ? end - start : 0;
    return start;
}

int64_t xp_piece_size(int64_t n, int n_ranks) {
    return ((n + n_ranks - 1) / n_ranks + 63) / 64 * 64;
}
