/**
 * Op tables: every computation of the model as a function pointer with its contract beside it.
 *
 * xp_ops_get() gives the complete table of a device: the plain reference entries, with faster ones
 * put in where the machine can run them. All ops: pointers are device memory of the stream's
 * device, 16-byte aligned, rows contiguous unless a leading dimension is given; outputs do not
 * overlap inputs unless the contract allows it; a size of 0 is legal and does nothing; arguments
 * are checked by the xp_* wrappers in ops.c (XP_EINVAL), which callers use instead of the raw
 * pointers. All results are deterministic. "acc" flags add to what the output holds instead of
 * replacing it.
 *
 * Letters: T tokens (rows), D width, H query heads, G key/value heads, C head_dim, E experts, K
 * assignments, F expert width, V vocabulary, S row length.
 *
 * Accumulation is in fp32 (or better) whatever the row type.
 */
#ifndef XP_OPS_OPS_H
#define XP_OPS_OPS_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- dense matrix products
 * -------------------------------------------------------------------------------------- */

/** c[m, n] = alpha * op(a) @ op(b) + (acc ? c : 0). Row-major; op(a) is [m, k], op(b) is [k, n]. */
typedef struct xp_gemm_args {
    int64_t m, n, k;
    bool trans_a, trans_b; /* a stored as [k, m]; b stored as [n, k] */
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc;      /* elements between stored rows */
    xp_dtype ab_dtype, c_dtype; /* F32/F32, BF16/BF16, BF16/F32 */
    float alpha;
    bool acc;
} xp_gemm_args;

/**
 * Expert products over assignment rows, expert-major; expert e owns assignment rows [offsets[e], offsets[e +
 * 1]). Row r of the gathered operand is x[gather[r]], or x[r] when gather is NULL: then x (forward)
 * and dy (dgrad) are [max_rows, ...] in memory, and rows past offsets[L] may be read, though they
 * reach no result. An expert without rows: forward and dgrad write nothing for it; wgrad writes
 * zeros (nothing when acc).
 */
typedef struct xp_grouped_args {
    int64_t n_experts;      /* local experts L */
    int64_t max_rows;       /* bound on offsets[L]; host-known */
    int64_t n, k;           /* weight w is [L, n, k] */
    const int32_t *offsets; /* [L + 1] */
    const int32_t *gather;  /* [max_rows] or NULL */
    const void *x;          /* forward: [*, k] rows read; wgrad: the same rows */
    const void *w;          /* [L, n, k] */
    const void
        *dy; /* dgrad: [*, n] rows, gathered; wgrad: [max_rows, n], or gathered with gather_dy */
    const int32_t
        *gather_dy; /* wgrad and dgrad: row r of dy is dy[gather_dy[r]], or dy[r] when NULL */
    void *y; /* forward: [max_rows, n]; dgrad: [max_rows, k]; wgrad: dw [L, n, k] of dw_dtype */
    xp_dtype dtype, dw_dtype;
    bool acc; /* wgrad only: dw += */
} xp_grouped_args;

typedef struct xp_gemm_ops {
    xp_status (*gemm)(xp_stream *stream, const xp_gemm_args *args);
    /** y[r, :] = x[gather[r], :] @ w[e]^T */
    xp_status (*grouped_forward)(xp_stream *stream, const xp_grouped_args *args);
    /** y[r, :] = dy[gather_dy[r], :] @ w[e] */
    xp_status (*grouped_dgrad)(xp_stream *stream, const xp_grouped_args *args);
    /** y[e] (+)= sum over e's rows of dy[gather_dy[r], :]^T x[gather[r], :] */
    xp_status (*grouped_wgrad)(xp_stream *stream, const xp_grouped_args *args);
} xp_gemm_ops;

/* ---- embedding, norms, rope
 * -------------------------------------------------------------------------------------- */

typedef struct xp_embed_args {
    int64_t n_tokens, dim, vocab;
    const int32_t *ids; /* [T], each in [0, vocab) */
    const void *table;  /* [V, D] */
    void *x;            /* forward out [T, D] */
    const void *dx;     /* backward in [T, D] */
    void *dtable;       /* backward: [V, D] of dtable_dtype; rows of ids that occur are added to in
                           ascending token order;       without acc the whole table is zeroed first */
    xp_dtype dtype, dtable_dtype;
    bool acc;
    int32_t *scratch; /* backward: [T + V + 1] int32 */
} xp_embed_args;

/**
 * RMSNorm over rows of D, statistics in fp32, with the residual sum before it:
 *   s = x + residual (residual NULL: s = x);  rstd = 1 / sqrt(mean(s^2) + eps);  y = s * rstd * w
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
/** Given s, rstd and dy: dx = d_residual_in + gradient through the norm; dw (+)= sum over rows. */
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
} xp_rmsnorm_backward_args;

/** y = s * rstd * w from saved statistics: what forward wrote, bit for bit. */
typedef struct xp_rmsnorm_apply_args {
    int64_t n_rows, dim;
    const void *s, *w;
    const float *rstd;
    void *y;
    xp_dtype dtype;
} xp_rmsnorm_apply_args;

/**
 * Per-head RMSNorm of q and k, then RoPE in the rotate-half form (Su et al., "RoFormer", 2021):
 *   out[i] = n[i] cos - n[i + C/2] sin;  out[i + C/2] = n[i + C/2] cos + n[i] sin;  angle =
 * position * theta^(-2i/C) qkv rows are [q: H*C | k: G*C | v: G*C]. v is not touched.
 */
typedef struct xp_qknorm_rope_args {
    int64_t n_tokens;
    int n_heads, n_kv_heads, head_dim;
    float eps;
    const void *qkv;             /* [T, (H + 2G) * C] raw projections */
    const void *q_norm, *k_norm; /* [C] each; both NULL: no norm */
    const int32_t *positions;    /* [T] */
    const float *rope;           /* [n_positions, C]: cos of C/2 angles, then sin (xp_rope_fill) */
    void *q, *k;                 /* out [T, H*C], [T, G*C] */
    xp_dtype dtype;
} xp_qknorm_rope_args;
/** Recomputes the statistics from qkv. dqkv's q and k parts are written (v's left alone). dq_norm,
 * dk_norm: [C]. */
typedef struct xp_qknorm_rope_backward_args {
    xp_qknorm_rope_args forward; /* q and k unused */
    const void *dq, *dk;         /* [T, H*C], [T, G*C] */
    void *dqkv;                  /* [T, (H + 2G) * C] */
    void *dq_norm, *dk_norm;     /* [C] of dw_dtype */
    xp_dtype dw_dtype;
    bool acc;       /* dq_norm, dk_norm += */
    float *scratch; /* [xp_qknorm_scratch(n_tokens, head_dim)] */
} xp_qknorm_rope_backward_args;

typedef struct xp_norm_ops {
    xp_status (*embed_forward)(xp_stream *stream, const xp_embed_args *args);
    xp_status (*embed_backward)(xp_stream *stream, const xp_embed_args *args);
    xp_status (*rmsnorm_forward)(xp_stream *stream, const xp_rmsnorm_args *args);
    xp_status (*rmsnorm_apply)(xp_stream *stream, const xp_rmsnorm_apply_args *args);
    xp_status (*rmsnorm_backward)(xp_stream *stream, const xp_rmsnorm_backward_args *args);
    xp_status (*qknorm_rope_forward)(xp_stream *stream, const xp_qknorm_rope_args *args);
    xp_status (*qknorm_rope_backward)(xp_stream *stream, const xp_qknorm_rope_backward_args *args);
} xp_norm_ops;

/* ---- attention
 * ----------------------------------------------------------------------------------------------------
 */

/**
 * Causal attention with grouped queries over B rows of S tokens (T = B * S); token t of a row sees
 * [doc_start, t]. out = softmax(q k^T * scale) v;  lse = log sum exp of the scaled scores
 */
typedef struct xp_attention_args {
    int64_t n_rows, seq_len; /* B, S */
    int n_heads, n_kv_heads, head_dim;
    float scale;
    const void *q, *k, *v; /* [T, H*C], [T, G*C], [T, G*C] with the leading dimensions below */
    int64_t ldq, ldk, ldv, ldo;
    const int32_t
        *doc_start; /* [T] first position of the token's document in its row, or NULL: 0 */
    void *out;      /* [T, H*C], leading dimension ldo */
    float *lse;     /* [B, H, S] */
    xp_dtype dtype;
    void *scratch;        /* 256-byte aligned; NULL when scratch_bytes is 0 */
    size_t scratch_bytes; /* with less than xp_attention_ops.scratch() a slower kernel runs */
} xp_attention_args;
typedef struct xp_attention_backward_args {
    xp_attention_args forward; /* out and lse are inputs here */
    const void *dout;          /* [T, H*C], leading dimension ldo */
    void *dq, *dk, *dv;        /* [T, H*C], [T, G*C], [T, G*C] */
    int64_t lddq, lddk, lddv;
} xp_attention_backward_args;

typedef struct xp_attention_ops {
    xp_status (*forward)(xp_stream *stream, const xp_attention_args *args);
    xp_status (*backward)(xp_stream *stream, const xp_attention_backward_args *args);
    /** Bytes of scratch that forward (backward) needs for these sizes on this device. Of the
     * pointers only this counts: whether doc_start is NULL. */
    size_t (*scratch)(const xp_device *device, const xp_attention_args *args, bool backward);
} xp_attention_ops;

/* ---- mixture of experts
 * ------------------------------------------------------------------------------------------- */

typedef enum xp_score_func { XP_SCORE_SOFTMAX = 0, XP_SCORE_SIGMOID } xp_score_func;

/** numerics: scores = softmax or sigmoid of fp32 logits; the K largest of scores + bias (ties:
 * lower id); weights from scores. */
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

/** dlogits from the weights' gradients, the auxiliary loss and the z-loss. Formulas:
 * docs/explanation/numerics.md. */
typedef struct xp_router_backward_args {
    int64_t n_tokens;
    int n_experts, top_k;
    xp_score_func score_func;
    bool route_norm;
    float route_scale;
    const float *scores;        /* [T, E] */
    const int32_t *topk_idx;    /* [T, K] */
    const float *d_topk_weight; /* [T, K] */
    int64_t seq_len;            /* tokens of a sequence (auxiliary loss is per sequence) */
    const float *aux_density;   /* [T / seq_len, E] d aux_loss / d scores, equal for all tokens of a
                                   sequence, or NULL */
    const float *lse;           /* [T] or NULL: no z-loss */
    float z_scale;              /* d z_loss / d lse = z_scale * lse */
    float *dlogits;             /* out [T, E]; may be scores */
} xp_router_backward_args;

/**
 * The router's two extra losses over T tokens in sequences of S; a sequence weighs by its valid
 * tokens, w_s = n_valid(s) * loss_scale, so that the sum over all ranks is the mean over the global
 * batch: aux = aux_coeff * sum_s w_s * E * sum_e f_e P_e    f_e = assignments of e in s / (S K), P_e =
 * mean of scores over s z   = z_coeff * loss_scale * sum over valid tokens of lse^2
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

/** counts[e] (+)= number of entries equal to e; -1 entries are skipped. */
typedef struct xp_histogram_args {
    int64_t n;
    int n_experts;
    const int32_t *ids; /* [n] */
    int64_t *counts;    /* [E] */
    bool acc;
} xp_histogram_args;

/** h = silu(a) * b * p over assignment rows; gate_up rows are [a: F | b: F]; row count is *n_rows_device
 * when that is not NULL. */
typedef struct xp_silu_gate_prob_args {
    int64_t n_rows, dim;          /* rows bound, F */
    const int32_t *n_rows_device; /* [1] or NULL: all n_rows */
    const void *a, *b;            /* [rows, F], leading dimension ld */
    int64_t ld;
    const float *p; /* [rows] or NULL: 1 */
    void *h;        /* out [rows, F] contiguous */
    xp_dtype dtype;
} xp_silu_gate_prob_args;
/** Also recomputes h when `h` is given. da and db may be a and b (same ld). dp[r] = sum_f dh *
 * silu(a) * b. */
typedef struct xp_silu_gate_prob_backward_args {
    xp_silu_gate_prob_args forward; /* h: out or NULL */
    const void *dh;                 /* [rows, F] contiguous; may be forward.h */
    void *da, *db;                  /* [rows, F], leading dimension ldd */
    int64_t ldd;
    float *dp; /* [rows] or NULL */
} xp_silu_gate_prob_backward_args;

typedef struct xp_moe_ops {
    xp_status (*router_forward)(xp_stream *stream, const xp_router_args *args);
    xp_status (*router_backward)(xp_stream *stream, const xp_router_backward_args *args);
    xp_status (*router_losses)(xp_stream *stream, const xp_router_losses_args *args);
    xp_status (*histogram)(xp_stream *stream, const xp_histogram_args *args);
    xp_status (*silu_gate_prob_forward)(xp_stream *stream, const xp_silu_gate_prob_args *args);
    xp_status (*silu_gate_prob_backward)(xp_stream *stream,
                                         const xp_silu_gate_prob_backward_args *args);
} xp_moe_ops;

/* ---- loss
 * ---------------------------------------------------------------------------------------------------------
 */

/** Cross-entropy over rows of logits; the gradient replaces the logits. Rows with target < 0 have
 * loss 0 and gradient 0. */
typedef struct xp_cross_entropy_args {
    int64_t n_rows, vocab;
    void *logits;            /* [N, V] in; out: (softmax - onehot) * grad_scale when write_grad */
    const int32_t *targets;  /* [N] */
    float *loss;             /* out [N] */
    const float *grad_scale; /* [1] device memory; usually 1 / valid tokens of the global batch */
    bool write_grad;
    xp_dtype dtype;
} xp_cross_entropy_args;

typedef struct xp_loss_ops {
    xp_status (*cross_entropy)(xp_stream *stream, const xp_cross_entropy_args *args);
} xp_loss_ops;

/* ---- optimizer and reductions
 * ------------------------------------------------------------------------------------- */

/** AdamW (Loshchilov and Hutter, 2019) over n elements, decoupled weight decay, gradient scaled by
 * *grad_scale first. Nothing is written when *grad_scale is NaN. */
typedef struct xp_adamw_args {
    int64_t n;
    float *master; /* [n] fp32, updated */
    void *param;   /* [n] of param_dtype: rounded copy of master; NULL or == master when fp32 */
    xp_dtype param_dtype;
    const void *grad;
    xp_dtype grad_dtype;
    float *m, *v; /* [n] */
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step;            /* 1-based, for the bias correction */
    const float *grad_scale; /* [1] device memory: the clip factor */
} xp_adamw_args;

/**
 * What a gradient is multiplied by, from the sums of squares of its parts: norm = sqrt(sum of the n
 * squares in order); *scale = min(1, max_norm / (norm + 1e-6)) (torch.nn.utils.clip_grad_norm_), 1
 * when max_norm is 0, and NaN when the norm is not finite or a stop word is not 0: no update.
 */
typedef struct xp_clip_scale_args {
    int64_t n;             /* >= 1 */
    const double *squares; /* [n] */
    double max_norm;
    const int32_t *stop[2]; /* words that the device can read, set by work queued before; or NULL */
    float *scale;           /* [1] */
} xp_clip_scale_args;

/** out[0] (+)= sum of squares of n elements in fp64, fixed order. */
typedef struct xp_sum_squares_args {
    int64_t n;
    const void *x;
    xp_dtype dtype;
    double *out;
    bool acc;
    double *scratch; /* [xp_sum_squares_scratch(n)] */
} xp_sum_squares_args;

/** y = alpha * x (+ y when acc), casting from x_dtype to y_dtype. x may be y when the types agree.
 */
typedef struct xp_axpy_args {
    int64_t n;
    float alpha;
    const void *x;
    void *y;
    xp_dtype x_dtype, y_dtype;
    bool acc;
} xp_axpy_args;

/** out[i] = std * xp_rng_normal(seed, stream, first + i), or 1 when std is 0 (norms). */
typedef struct xp_draw_args {
    uint64_t seed, stream, first; /* see core/rng.h: the same bits on every device */
    int64_t n;
    float std;
    float *out; /* [n]; 4-byte aligned */
} xp_draw_args;

typedef struct xp_optim_ops {
    xp_status (*adamw)(xp_stream *stream, const xp_adamw_args *args);
    xp_status (*clip_scale)(xp_stream *stream, const xp_clip_scale_args *args);
    xp_status (*sum_squares)(xp_stream *stream, const xp_sum_squares_args *args);
    xp_status (*axpy)(xp_stream *stream, const xp_axpy_args *args);
    /** out[0] = sum of n fp32 values in fp64, fixed order. */
    xp_status (*sum)(xp_stream *stream, const float *x, int64_t n, double *out);
    /** Initial values. */
    xp_status (*draw)(xp_stream *stream, const xp_draw_args *args);
} xp_optim_ops;

/* ---- the table
 * ----------------------------------------------------------------------------------------------------
 */

typedef struct xp_ops {
    const char *name; /* "cpu avx512", "cpu reference", "cuda sm_90a" */
    xp_gemm_ops gemm;
    xp_norm_ops norm;
    xp_attention_ops attention;
    xp_moe_ops moe;
    xp_loss_ops loss;
    xp_optim_ops optim;
} xp_ops;

/**
 * The device's table. The null device gets one whose entries do nothing.
 * Static storage; capabilities are those of the device (xp_device_args.caps).
 */
XP_NODISCARD xp_status xp_ops_get(const xp_device *device, const xp_ops **ops);
/** Bytes that libraries behind the table keep on a device of this kind (null devices: of the kind
 * they stand for) whatever the sizes; accounted under "workspace". */
size_t xp_ops_library_bytes(const xp_device *device);
/** Open what the table's entries open at first use, so that no step allocates. Nothing on a CPU. */
XP_NODISCARD xp_status xp_ops_prepare(xp_device *device);
/** The plain CPU entries only: what every other table is tested against. */
const xp_ops *xp_ops_reference(void);

/** Floats of scratch. */
int64_t xp_rmsnorm_scratch(int64_t n_rows, int64_t dim);
int64_t xp_qknorm_scratch(int64_t n_tokens, int64_t head_dim);
int64_t xp_sum_squares_scratch(int64_t n);
/** Bytes of scratch that attention takes on a GPU with cuDNN: what the null device counts. */
size_t xp_attention_scratch_gpu(const xp_attention_args *args, bool backward);
/** Bytes of one fp32 sum for each query and head, in whole 256: what attention's backward keeps. */
size_t xp_attention_sums_bytes(int64_t n_rows, int64_t n_heads, int64_t seq_len);
/** Workspace of the GPU's matrix products on each of so many streams. */
#define XP_OPS_BLAS_WORKSPACE_BYTES (32 << 20)
#define XP_OPS_BLAS_STREAMS         2

/** Host: fill rope[n_positions, C] for xp_qknorm_rope_args; angles computed in fp32 as transformers
 * does (inv_freq fp32). */
void xp_rope_fill(float theta, int head_dim, int64_t n_positions, float *rope);
/** Host or device-independent: ids of forced balance, [T, K]. modulo: (t * K + k) % E. spread: see
 * docs/explanation/numerics.md. */
typedef enum xp_forced_mode {
    XP_FORCED_NONE = 0,
    XP_FORCED_MODULO,
    XP_FORCED_SPREAD
} xp_forced_mode;
void xp_forced_balance_fill(xp_forced_mode mode, int64_t n_tokens, int top_k, int n_experts,
                            int n_ranks, int32_t *ids);

#ifdef __cplusplus
}
#endif
#endif
