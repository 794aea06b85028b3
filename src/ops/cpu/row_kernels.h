/**
 * Vector routines over rows of fp32, for the ops that are not GEMMs: one table for each
 * instruction set. Rows need no alignment. Sums have a fixed order for a given table and n.
 */
#ifndef XP_OPS_CPU_ROW_KERNELS_H
#define XP_OPS_CPU_ROW_KERNELS_H

#include "expar/device.h"

/** One AdamW step's constants: g' = grad_scale g; see reference_optim.c for the formula. */
typedef struct xp_adamw_constants {
    float grad_scale, beta2;
    float one_minus_beta1, one_minus_beta2;
    float step_size;           /* lr / (1 - beta1^step) */
    float inverse_correction2; /* 1 / sqrt(1 - beta2^step) */
    float eps, decay;          /* decay: 1 - lr * weight_decay */
} xp_adamw_constants;

/** Gradient of silu(a) * b * p over one row; h may be NULL or dh, da may be a, db may be b. */
typedef struct xp_silu_row {
    int64_t n;
    const float *a, *b, *dh;
    float p;
    float *h, *da, *db;
} xp_silu_row;

typedef struct xp_row_kernels {
    /** The largest element that is not NaN; -Inf when there is none. */
    float (*max)(const float *x, int64_t n);
    /** Sum of exp(x[i] - shift); out[i] = that exponential when out is not NULL (it may be x). */
    double (*exp_sum)(const float *x, int64_t n, float shift, float *out);
    /** x[i] *= factor */
    void (*scale)(float *x, int64_t n, float factor);
    /** out[i] = 1 / (1 + exp(-x[i])); out may be x */
    void (*sigmoid)(const float *x, int64_t n, float *out);
    /**
     * keys[i] orders (scores[i] + bias[i], -i): the largest key is the largest biased score, of
     * equal ones the first; NaN below everything. bias may be NULL.
     */
    void (*topk_keys)(const float *scores, const float *bias, int n, int64_t *keys);
    /** Index of the largest key, which is taken out: INT64_MIN. */
    int32_t (*select)(int64_t *keys, int n);
    /** h = silu(a) * b * p */
    void (*silu)(const float *a, const float *b, float p, int64_t n, float *h);
    /** @return sum over the row of dh * silu(a) * b */
    double (*silu_backward)(const xp_silu_row *row);
    /** Sums in fp64. */
    double (*sum)(const float *x, int64_t n);
    double (*sum_squares)(const float *x, int64_t n);
    /** y = alpha * x + (acc ? y : 0); y may be x */
    void (*axpy)(int64_t n, float alpha, const float *x, float *y, bool acc);
    void (*adamw)(const xp_adamw_constants *c, int64_t n, const float *grad, float *m, float *v,
                  float *master);
    /** bf16 -> fp32, and fp32 -> bf16 as xp_bf16_from_f32() rounds. */
    void (*widen)(const uint16_t *bits, int64_t n, float *out);
    void (*narrow)(const float *x, int64_t n, uint16_t *bits);
} xp_row_kernels;

/** row_kernels.c, compiled for each instruction set. */
extern const xp_row_kernels xp_row_kernels_avx2;
extern const xp_row_kernels xp_row_kernels_avx512;

/** The table for these capabilities (XP_CPU_AVX2, XP_CPU_AVX512); NULL when there is none: use the
 * plain code. */
const xp_row_kernels *xp_row_kernels_for(unsigned caps);
/** The same for the stream's device. */
const xp_row_kernels *xp_row_kernels_of(const xp_stream *stream);

/** Elements of a block that ops convert to fp32 on the stack. */
#define XP_ROW_BLOCK 1024

/** n <= XP_ROW_BLOCK elements from `first` on as fp32: in place, or widened into `block`. */
const float *xp_row_read(const xp_row_kernels *kernels, const void *data, xp_dtype dtype,
                         int64_t first, int64_t n, float *block);
/** Where fp32 results for elements from `first` on go: in place, or `block`, which xp_row_write()
 * then stores. */
float *xp_row_target(void *data, xp_dtype dtype, int64_t first, float *block);
void xp_row_write(const xp_row_kernels *kernels, void *data, xp_dtype dtype, int64_t first,
                  int64_t n, const float *block);

#endif
