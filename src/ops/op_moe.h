/**
 * Router, its extra losses, expert counts, the experts' activation. The rules for all ops stand in
 * ops.h.
 */
#ifndef XP_OPS_OP_MOE_H
#define XP_OPS_OP_MOE_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum xp_score_func { XP_SCORE_SOFTMAX = 0, XP_SCORE_SIGMOID } xp_score_func;

/**
 * router_forward: scores = softmax or sigmoid of the logits, in fp32; a token's experts are the K
 * largest of scores + bias (ties: the lower id); their weights come from the scores without bias.
 * Formulas: docs/explanation/numerics.md.
 */
typedef struct xp_router_args {
    int64_t n_tokens;
    int n_experts, top_k;
    xp_score_func score_func;
    bool route_norm;
    float route_scale;
    const float *logits;   /* [T, E] */
    const float *bias;     /* [E] or NULL */
    const int32_t *forced; /* [T, K] ids to use instead of the largest, or NULL */
    float *scores;         /* out [T, E]; may be logits */
    int32_t *topk_idx;     /* out [T, K], in descending order of biased score (forced: as given) */
    float *topk_weight;    /* out [T, K] */
    float *lse;            /* out [T] log sum exp of the logits (for the z-loss), or NULL */
} xp_router_args;

/**
 * router_backward: dlogits from the gradients of the weights, the auxiliary loss and the z-loss.
 * Formulas: docs/explanation/numerics.md.
 */
typedef struct xp_router_backward_args {
    int64_t n_tokens;
    int n_experts, top_k;
    xp_score_func score_func;
    bool route_norm;
    float route_scale;
    const float *scores;        /* [T, E] */
    const int32_t *topk_idx;    /* [T, K] */
    const float *d_topk_weight; /* [T, K] */
    int64_t seq_len;            /* tokens of a sequence (the auxiliary loss is per sequence) */
    const float *
        aux_density; /* [T / seq_len, E] d aux_loss / d scores of each token of a sequence, or NULL */
    const float *lse; /* [T] or NULL: no z-loss */
    float z_scale;    /* d z_loss / d lse = z_scale * lse */
    float *dlogits;   /* out [T, E]; may be scores */
} xp_router_backward_args;

/**
 * router_linear_backward: gradients of the router's logits = x gate^T for bf16 x and gate.
 *
 *   d_gate (+)= dlogits^T x     dx += dlogits gate
 *
 * dlogits stay fp32: a GPU cuts each into three bf16 parts whose sum is the value, so that tensor
 * cores compute with all of it. Sums in fp32, rounded once when stored.
 */
typedef enum xp_router_part {
    XP_ROUTER_ALL = 0,
    XP_ROUTER_ROWS, /* dx alone */
    XP_ROUTER_GATE  /* d_gate alone, from the scratch that ROWS has left for the same dlogits */
} xp_router_part;

typedef struct xp_router_linear_args {
    int64_t n_tokens, dim;
    int n_experts;
    const float *dlogits; /* [T, E] */
    const void *x, *gate; /* [T, D], [E, D] bf16 */
    void *dx;             /* [T, D] bf16: += */
    void *d_gate;         /* [E, D] of grad_dtype */
    xp_dtype grad_dtype;
    bool acc;      /* d_gate += */
    void *scratch; /* xp_router_linear_scratch() bytes, 256-byte aligned */
    xp_router_part part;
} xp_router_linear_args;

/**
 * router_losses: the router's two extra losses over T tokens in sequences of S. A sequence s weighs
 * by its valid tokens, w_s = n_valid(s) * loss_scale, so that the sum over all ranks is the mean
 * over the global batch.
 *
 *   aux = aux_coeff * sum_s w_s * E * sum_e f_e P_e     f_e = assignments of e in s / (S K); P_e =
 *     mean of scores over s
 *   z   = z_coeff * loss_scale * sum over valid tokens of lse^2
 */
typedef struct xp_router_losses_args {
    int64_t n_tokens, seq_len; /* T a multiple of S */
    int n_experts, top_k;
    const float *scores;     /* [T, E] */
    const int32_t *topk_idx; /* [T, K] */
    const int32_t *targets;  /* [T]; < 0: not valid */
    float loss_scale, aux_coeff, z_coeff;
    float *lse; /* [T] in: log sum exp of the logits; out: 0 where not valid. NULL: no z-loss */
    float *
        aux_density; /* [T / S, E] out: d aux / d scores of a token of s. NULL: no auxiliary loss */
    double *losses;  /* [2] aux and z are added; NULL: not wanted */
} xp_router_losses_args;

/** histogram: counts[e] (+)= number of entries equal to e; entries of -1 are skipped. */
typedef struct xp_histogram_args {
    int64_t n;
    int n_experts;
    const int32_t *ids; /* [n] */
    int64_t *counts;    /* [E] */
    bool acc;
} xp_histogram_args;

/**
 * silu_gate_prob_forward: h = silu(a) * b * p over rows, usually rows [a: F | b: F] of one GEMM.
 */
typedef struct xp_silu_gate_prob_args {
    int64_t n_rows, dim;          /* bound on the rows, F */
    const int32_t *n_rows_device; /* [1] rows, read when the work runs; NULL: all n_rows */
    const void *a, *b;            /* [rows, F], leading dimension ld */
    int64_t ld;
    const float *p; /* [rows] or NULL: 1 */
    void *h;        /* out [rows, F] contiguous */
    xp_dtype dtype;
} xp_silu_gate_prob_args;

/**
 * silu_gate_prob_backward: gradients of a, b and p; dp[r] = sum_f dh * silu(a) * b. Also recomputes
 * h when it is given.
 */
typedef struct xp_silu_gate_prob_backward_args {
    xp_silu_gate_prob_args forward; /* h: out or NULL */
    const void *dh;                 /* [rows, F] contiguous; may be forward.h */
    void *da, *db; /* [rows, F], leading dimension ldd; may be a and b with the same ld */
    int64_t ldd;
    float *dp; /* [rows] or NULL */
} xp_silu_gate_prob_backward_args;

/** Bytes of scratch of router_linear_backward. */
size_t xp_router_linear_scratch(int64_t n_tokens, int n_experts, int64_t dim);

typedef enum xp_forced_mode {
    XP_FORCED_NONE = 0,
    XP_FORCED_MODULO,
    XP_FORCED_SPREAD
} xp_forced_mode;
/**
 * Host: expert ids of forced balance, [T, K]. modulo: (t * K + k) % E. spread: see
 * docs/explanation/numerics.md.
 */
void xp_forced_balance_fill(xp_forced_mode mode, int64_t n_tokens, int top_k, int n_experts,
                            int n_ranks, int32_t *ids);

#ifdef __cplusplus
}
#endif
#endif
