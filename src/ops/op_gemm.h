/** Dense GEMM and grouped GEMM. The rules for all ops stand in ops.h. */
#ifndef XP_OPS_OP_GEMM_H
#define XP_OPS_OP_GEMM_H

#include <stdbool.h>
#include "expar/device.h"

/**
 * gemm: c[m, n] = alpha * op(a) @ op(b) + (acc ? c : 0). Row-major.
 * op(a) is [m, k], op(b) is [k, n].
 */
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

/** A GEMM shape, and which of the library's deterministic algorithms computes it. */
typedef struct xp_gemm_choice {
    int64_t m, n, k;
    bool trans_a, trans_b;
    xp_dtype ab_dtype, c_dtype;
    bool acc;
    int index;         /* in the library's own order; 0: its first choice */
    double first_s, s; /* measured: of algorithm 0, and of the chosen one */
} xp_gemm_choice;

/**
 * Which rows forward and dgrad compute: all of them, those inside each expert's range (row_range),
 * or those outside. All other rows of y are left alone, and the gather list is not read for them.
 *
 * On a GPU the bits of a row do not depend on which rows are computed with it. On a CPU they may:
 * tiles have other heights, and sgemm may sum in another order.
 *
 * The rows of an expert are then one segment, or two around its range, with tiles of their own: the
 * last tile of a segment is half empty on average.
 */
typedef enum xp_grouped_rows {
    XP_ROWS_ALL = 0,
    XP_ROWS_IN_RANGE,
    XP_ROWS_OUT_OF_RANGE
} xp_grouped_rows;

/**
 * Grouped GEMM: one GEMM per local expert e over its assignment rows,
 * r in [offsets[e], offsets[e + 1]).
 *
 *   grouped_forward   y[r, :]  = x[gather[r], :] @ w[e]^T
 *   grouped_dgrad     y[r, :]  = dy[gather_dy[r], :] @ w[e]
 *   grouped_wgrad     y[e] (+)= sum over e's rows r of dy[gather_dy[r], :]^T x[gather[r], :]
 *
 * A NULL gather list means the rows in order: x[r], dy[r]. Then x (forward) and dy (dgrad) have
 * max_rows rows in memory, and an implementation may read the rows past offsets[L], though they
 * reach no result.
 *
 * An expert without rows: forward and dgrad write nothing for it; wgrad writes zeros (nothing with
 * acc).
 */
typedef struct xp_grouped_args {
    int64_t n_experts;        /* local experts L */
    int64_t max_rows;         /* bound on offsets[L]; known to the host */
    int64_t n, k;             /* weight w is [L, n, k] */
    const int32_t *offsets;   /* [L + 1] */
    const int32_t *gather;    /* [max_rows] rows of x (forward, wgrad), or NULL */
    const void *x;            /* [*, k] (forward, wgrad) */
    const void *w;            /* [L, n, k] (forward, dgrad) */
    const void *dy;           /* [*, n] (dgrad, wgrad) */
    const int32_t *gather_dy; /* [max_rows] rows of dy (dgrad, wgrad), or NULL */
    void *y; /* forward: [max_rows, n]; dgrad: [max_rows, k]; wgrad: dw [L, n, k] of dw_dtype */
    xp_dtype dtype, dw_dtype;
    bool acc;      /* wgrad only: dw += */
    int spare_sms; /* SMs of a GPU that a persistent kernel (forward, dgrad, wgrad) leaves to
                                 other kernels; 0: none */
    const int32_t *row_range; /* [L, 2] first and one-past-last row of each expert, within its
                                 offsets, or NULL; read only with rows other than XP_ROWS_ALL */
    xp_grouped_rows rows;     /* which rows forward and dgrad compute; wgrad: XP_ROWS_ALL */
} xp_grouped_args;

/** Sums over columns of which a row's dp is made (grouped_silu_backward): of 256 each. */
#define XP_SILU_PART_COLUMNS 256
#define XP_SILU_PARTS(width) (((width) + XP_SILU_PART_COLUMNS - 1) / XP_SILU_PART_COLUMNS)

/**
 * Grouped GEMM and the experts' activation (silu_gate_prob_*) in one op, F the experts' width:
 *
 *   grouped_silu_forward   gate_up[r] = x[gather[r]] @ w[e]^T, w [L, 2F, D]; h[r] from it
 *   grouped_silu_backward  dh[r] = dy[gather_dy[r]] @ w[e], w [L, D, F], in place of h; from it and
 *                          gate_up: the gradients of gate and up in their place, h again, and dp
 *
 * The results have the bits of the two ops one after the other. With forward of a part of the rows h
 * of the experts' other rows may be overwritten with what gate_up gives at that moment, so that h is
 * right once all rows are computed. backward: all rows.
 */
typedef struct xp_grouped_silu_args {
    xp_grouped_args gemm; /* forward: n = 2F, k = D; backward: n = D, k = F; y is not used */
    const float *p;       /* [max_rows] or NULL: 1 */
    void *gate_up;        /* [max_rows, 2F] */
    void *h;              /* out [max_rows, F] */
    float *dp;            /* backward: [max_rows] or NULL */
    float *scratch;       /* backward: [XP_SILU_PARTS(F), max_rows] */
} xp_grouped_silu_args;

/** What xp_ops.fuses_silu is asked about. */
typedef struct xp_silu_sizes {
    int64_t n_experts, dim, width; /* L, D, F */
    xp_dtype dtype;
} xp_silu_sizes;

/** Which of the three, for code that serves them all. */
typedef enum xp_grouped_kind {
    XP_GROUPED_FORWARD = 0,
    XP_GROUPED_DGRAD,
    XP_GROUPED_WGRAD
} xp_grouped_kind;

/** How many of a library's algorithms a choice is made among. */
#define XP_GEMM_CANDIDATES 32

/** Workspace that cuBLASLt gets on each of so many streams of a GPU. */
#define XP_OPS_BLAS_WORKSPACE_BYTES (32 << 20)
#define XP_OPS_BLAS_STREAMS         2

#endif
