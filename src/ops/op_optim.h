/** Loss, optimizer, sums and initial values. The rules for all ops stand in ops.h. */
#ifndef XP_OPS_OP_OPTIM_H
#define XP_OPS_OP_OPTIM_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * cross_entropy: loss of each row of logits against its target; the gradient replaces the logits.
 * A row with target < 0 has loss 0 and gradient 0.
 */
typedef struct xp_cross_entropy_args {
    int64_t n_rows, vocab;
    void *logits;            /* [N, V] in; out: (softmax - onehot) * grad_scale when write_grad */
    const int32_t *targets;  /* [N] */
    float *loss;             /* out [N] */
    const float *grad_scale; /* [1] device memory; usually 1 / valid tokens of the global batch */
    bool write_grad;
    xp_dtype dtype;
} xp_cross_entropy_args;

/**
 * adamw: AdamW (Loshchilov and Hutter, 2019) over n elements, decoupled weight decay, gradient
 * scaled by *grad_scale first. Nothing is written when *grad_scale is NaN.
 *
 * Weights are fp32. A bf16 parameter is the upper part of its weight (core/remainder.h): the update is that of the fp32
 * weight, bit for bit.
 */
typedef struct xp_adamw_args {
    int64_t n;
    void *param; /* [n] of param_dtype, updated */
    xp_dtype param_dtype;
    uint16_t *remainder; /* bf16 parameters: [n], updated; else not used */
    const void *grad;    /* [n] of grad_dtype */
    xp_dtype grad_dtype;
    float *m, *v; /* [n], updated; with a remainder the sign of v belongs to the weight */
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step;            /* 1-based, for the bias correction */
    const float *grad_scale; /* [1] device memory: the clip factor */
} xp_adamw_args;

/**
 * remainder_split: fp32 master weights into bf16 parameters, remainders and the sign of v.
 * remainder_join: the way back; v is positive afterwards. See core/remainder.h.
 */
typedef struct xp_remainder_args {
    int64_t n;
    float *master;       /* [n] in, or out of remainder_join */
    uint16_t *param;     /* [n] bf16: out, or into remainder_join */
    uint16_t *remainder; /* [n] likewise */
    float *v;            /* [n] second moments: only the sign is written */
} xp_remainder_args;

/**
 * clip_scale: the factor for a gradient, from the sums of squares of its parts
 * (torch.nn.utils.clip_grad_norm_).
 *
 *   norm = sqrt(sum of the n squares, in order);  *scale = min(1, max_norm / (norm + 1e-6))
 *
 * *scale is 1 when max_norm is 0. It is NaN (no update) when the norm is not finite or an abort
 * flag is set.
 */
typedef struct xp_clip_scale_args {
    int64_t n;             /* >= 1 */
    const double *squares; /* [n] */
    double max_norm;
    const int32_t *stop
        [2]; /* abort flags in memory that the device can read, set by work queued before; or NULL */
    float *scale; /* [1] out */
} xp_clip_scale_args;

/** sum_squares: out[0] (+)= sum of squares of n elements in fp64, fixed order. */
typedef struct xp_sum_squares_args {
    int64_t n;
    const void *x; /* [n] */
    xp_dtype dtype;
    double *out; /* [1] */
    bool acc;
    double *scratch; /* [xp_sum_squares_scratch(n)] */
} xp_sum_squares_args;

/** Elements [first, first + n) of a buffer. */
typedef struct xp_ops_part {
    int64_t first, n;
} xp_ops_part;

/** sum_squares_parts: out[i] = sum of squares of part i of x: the bits of sum_squares, in few launches. */
typedef struct xp_sum_squares_parts_args {
    int n_parts;
    const xp_ops_part *parts; /* [n_parts] host memory, kept until the op has run */
    const void *x;
    xp_dtype dtype;
    double *out;     /* [n_parts] */
    double *scratch; /* [xp_sum_squares_parts_scratch()] */
} xp_sum_squares_parts_args;

/**
 * axpy: y = alpha * x (+ y when acc), cast from x_dtype to y_dtype. x may be y when the types
 * agree.
 */
typedef struct xp_axpy_args {
    int64_t n;
    float alpha;
    const void *x; /* [n] */
    void *y;       /* [n] */
    xp_dtype x_dtype, y_dtype;
    bool acc;
} xp_axpy_args;

/** sum: out[0] = sum of n fp32 values in fp64, fixed order. */
typedef struct xp_sum_args {
    int64_t n;
    const float *x; /* [n] */
    double *out;    /* [1] */
} xp_sum_args;

/**
 * draw: initial values; out[i] = std * xp_rng_normal(seed, stream, first + i), or 1 when std is 0
 * (norms).
 */
typedef struct xp_draw_args {
    uint64_t seed, stream, first; /* see core/rng.h: the same bits on every device */
    int64_t n;
    float std;
    float *out; /* [n]; 4-byte aligned */
} xp_draw_args;

/** Doubles of scratch. */
int64_t xp_sum_squares_scratch(int64_t n);
int64_t xp_sum_squares_parts_scratch(const xp_ops_part *parts, int n_parts);
/** The call that does part i alone. */
xp_sum_squares_args xp_sum_squares_of_part(const xp_sum_squares_parts_args *args, int i);

#ifdef __cplusplus
}
#endif
#endif
