/** Embedding, RMSNorm, per-head RMSNorm with RoPE. The rules for all ops stand in ops.h. */
#ifndef XP_OPS_OP_NORM_H
#define XP_OPS_OP_NORM_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 *   embed_forward    x[t, :] = table[ids[t], :]
 *   embed_backward   dtable[ids[t], :] += dx[t, :], tokens of one id in ascending order
 *
 * An id outside [0, vocab) is XP_EINVAL on a CPU.
 */
typedef struct xp_embed_args {
    int64_t n_tokens, dim, vocab;
    const int32_t *ids; /* [T], each in [0, vocab) */
    const void *table;  /* [V, D] */
    void *x;            /* forward: out [T, D] */
    const void *dx;     /* backward: [T, D] */
    void
        *dtable; /* backward: [V, D] of dtable_dtype; without acc the whole table is zeroed first */
    xp_dtype dtype, dtable_dtype;
    bool acc;
    int32_t *scratch; /* backward: [T + V + 1] int32 */
    bool sort_only;   /* backward: only tokens by id into scratch; dx and dtable are not used */
    bool sorted;      /* backward: scratch holds what sort_only has left for these ids */
} xp_embed_args;

/**
 * rmsnorm_forward: RMSNorm over rows of D with the residual sum before it, statistics in fp32.
 *
 *   s = x + residual (residual NULL: s = x);  rstd = 1 / sqrt(mean(s^2) + eps);  y = s * rstd * w
 *
 * Zhang and Sennrich, "Root mean square layer normalization", 2019.
 */
typedef struct xp_rmsnorm_args {
    int64_t n_rows, dim;
    float eps;
    const void *x, *residual; /* [N, D] */
    const void *w;            /* [D] */
    void *sum;                /* [N, D] out: s; NULL when residual is NULL; may be x or residual */
    void *y;                  /* [N, D] out; NULL: statistics only */
    float *rstd;              /* [N] out */
    xp_dtype dtype;
} xp_rmsnorm_args;

/** Halves of a norm's backward. ROWS may add the weights' gradient already: plain CPU code does. */
typedef enum xp_norm_part {
    XP_NORM_ALL = 0,
    XP_NORM_ROWS,   /* gradients of rows, and what WEIGHTS needs, in the scratch */
    XP_NORM_WEIGHTS /* of the weights, from the scratch that ROWS has left */
} xp_norm_part;

/** rmsnorm_backward: dx = d_residual + the gradient through the norm; dw (+)= sum over rows. */
typedef struct xp_rmsnorm_backward_args {
    int64_t n_rows, dim;
    const void *s, *w, *dy; /* [N, D], [D], [N, D] */
    const float *rstd;      /* [N] */
    const void *d_residual; /* [N, D] gradient that reaches s past the norm, or NULL; may be dx */
    void *dx;               /* [N, D]; may be dy */
    void *dw;               /* [D] of dw_dtype */
    xp_dtype dtype, dw_dtype;
    bool acc;       /* dw += */
    float *scratch; /* [xp_rmsnorm_scratch(n_rows, dim)] */
    xp_norm_part part;
} xp_rmsnorm_backward_args;

/**
 * rmsnorm_apply: y = s * rstd * w from saved statistics; the same bits as rmsnorm_forward wrote.
 */
typedef struct xp_rmsnorm_apply_args {
    int64_t n_rows, dim;
    const void *s, *w; /* [N, D], [D] */
    const float *rstd; /* [N] */
    void *y;           /* [N, D] out */
    xp_dtype dtype;
} xp_rmsnorm_apply_args;

/**
 * qknorm_rope_forward: per-head RMSNorm n of q and k, then RoPE in the rotate-half form (Su et al.,
 * "RoFormer", 2021).
 *
 *   out[i]       = n[i] cos - n[i + C/2] sin
 *   out[i + C/2] = n[i + C/2] cos + n[i] sin        angle = position * theta^(-2i/C)
 *
 * Rows of qkv are [q: H*C | k: G*C | v: G*C]. v is not touched.
 */
typedef struct xp_qknorm_rope_args {
    int64_t n_tokens;
    int n_heads, n_kv_heads, head_dim; /* H, G, C */
    float eps;
    const void *qkv;             /* [T, (H + 2G) * C] raw projections */
    const void *q_norm, *k_norm; /* [C] each; both NULL: no norm */
    const int32_t *positions;    /* [T] */
    const float *rope;           /* [n_positions, C]: cos of C/2 angles, then sin (xp_rope_fill) */
    void *q, *k;                 /* out [T, H*C], [T, G*C] */
    xp_dtype dtype;
} xp_qknorm_rope_args;

/**
 * qknorm_rope_backward: recomputes the statistics from qkv; writes the q and k parts of dqkv and
 * leaves v's part alone.
 */
typedef struct xp_qknorm_rope_backward_args {
    xp_qknorm_rope_args forward; /* q and k unused */
    const void *dq, *dk;         /* [T, H*C], [T, G*C] */
    void *dqkv;                  /* [T, (H + 2G) * C] */
    void *dq_norm, *dk_norm;     /* [C] of dw_dtype */
    xp_dtype dw_dtype;
    bool acc;       /* dq_norm, dk_norm += */
    float *scratch; /* [xp_qknorm_scratch(n_tokens, head_dim)] */
    xp_norm_part part;
} xp_qknorm_rope_backward_args;

/** Floats of scratch. */
int64_t xp_rmsnorm_scratch(int64_t n_rows, int64_t dim);
int64_t xp_qknorm_scratch(int64_t n_tokens, int64_t head_dim);

/**
 * Host: fill rope[n_positions, C] for xp_qknorm_rope_args. Angles are fp32 as in transformers
 * (inv_freq fp32).
 */
void xp_rope_fill(float theta, int head_dim, int64_t n_positions, float *rope);

#ifdef __cplusplus
}
#endif
#endif
