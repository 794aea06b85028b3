/**
 * Vector code of attention: what is done to one block of 64 queries against one block of 64 keys.
 * Compiled for each instruction set.
 *
 * Blocks are fp32 copies with zeros where the sequence or the head ends. Scores stand transposed,
 * s[key][query]: a query is a lane, so that the softmax needs no sums across lanes, and neither
 * keys nor weights are ever transposed.
 */
#ifndef XP_OPS_CPU_ATTENTION_KERNELS_H
#define XP_OPS_CPU_ATTENTION_KERNELS_H

#include <stdbool.h>
#include "expar/tensor.h"

/** Queries and keys of a block. */
#define XP_ATTENTION_BLOCK 64
/** On the diagonal, strips of this many keys leave out the queries before them. A multiple of every
 * vector width. */
#define XP_ATTENTION_STRIP 16

/** c[m, n] = a @ b, or added to c: a[i][p] at a[i * row_a + p * col_a]; m a multiple of 4, n of
 * XP_ATTENTION_STRIP. */
typedef struct xp_tile_gemm {
    int64_t m, n, k;
    const float *a, *b;
    float *c;
    int64_t row_a, col_a, ldb, ldc;
    bool acc;
} xp_tile_gemm;

/** Rows of fp32 or bf16 inside a tensor. */
typedef struct xp_tile_rows {
    const void *data; /* the first row's first element */
    xp_dtype dtype;
    int64_t ld, n_rows, dim;
} xp_tile_rows;

/** One block of scores. Arrays [64] are by query. */
typedef struct xp_attention_block {
    float *s; /* [64, 64] by key, by query */
    int64_t first_key, first_query;
    const int32_t *starts; /* [64] first key that a query sees */
    bool diagonal;         /* only the strips on and above the diagonal hold scores */
    bool masked;           /* some query-key pair of the block is masked */
} xp_attention_block;

typedef struct xp_cpu_attention_kernels {
    void (*gemm)(const xp_tile_gemm *args);
    /** dst[n_pad, dim_pad] = rows * factor, zeros past their ends. */
    void (*pack)(const xp_tile_rows *rows, float factor, float *dst, int64_t n_pad,
                 int64_t dim_pad);
    /** dst[dim_pad, 64] = transposed src[64, dim_pad]. */
    void (*transpose)(const float *src, int64_t dim_pad, float *dst);
    /** Back: `rows` (written) = src[*, dim_pad] * factor, or * factors[row] when that is not NULL.
     */
    void (*unpack)(const xp_tile_rows *rows, void *data, const float *src, int64_t dim_pad,
                   float factor, const float *factors);
    /**
     * One step of the running softmax: s becomes exp(s - max), and `max`, `sum` [64] take the block
     * in.
     * @param[out] shrink  [64] what earlier sums and outputs must be multiplied by
     * @return whether any of them is not 1
     */
    bool (*softmax)(const xp_attention_block *block, float *max, float *sum, float *shrink);
    /** rows[64, dim_pad] *= factors[64]. */
    void (*scale_rows)(float *rows, int64_t dim_pad, const float *factors);
    /** s becomes p = exp(s - lse), dp becomes p * (dp - delta). */
    void (*softmax_backward)(const xp_attention_block *block, float *dp, const float *lse,
                             const float *delta);
    /** dots[r] = sum of a[r] * b[r] over 64 rows. */
    void (*row_dots)(const float *a, const float *b, int64_t dim_pad, float *dots);
} xp_cpu_attention_kernels;

const xp_cpu_attention_kernels *xp_cpu_attention_kernels_avx2(void);
const xp_cpu_attention_kernels *xp_cpu_attention_kernels_avx512(void);

#endif
