/**
 * Grouped GEMM with gather: one GEMM per local expert over its assignment rows, which need not lie
 * together in memory. The gather lists are those of xp_ep_plan_view(): the experts read the
 * received rows in place, and no permuted copy is made.
 *
 * Letters
 *   L  experts of this rank               N  outputs of a weight
 *   A  assignment rows in use, offsets[L] K  inputs of a weight
 *   P  rows reserved for them (max_rows)
 *
 * For every expert e and its rows r in [offsets[e], offsets[e + 1]):
 *
 *   xp_grouped_gemm_forward   out[r, :]  = x[x_gather[r], :] @ w[e]^T                       out [P, N]
 *   xp_grouped_gemm_dgrad     out[r, :]  = dy[dy_gather[r], :] @ w[e]                       out [P, K]
 *   xp_grouped_gemm_wgrad     out[e]   (+)= sum over r of dy[dy_gather[r], :]^T x[x_gather[r], :]
 *                                                                                        out [L, N, K]
 *
 * All are queued on the stream: outputs are valid after xp_stream_sync() or behind an event.
 * Pointers are memory of the stream's device, 16-byte aligned, borrowed until the work is done; the
 * argument struct is copied. Nothing is allocated and nothing waits: the counts are read where the
 * work runs. Sums are fp32 in a fixed order, with one rounding when a bf16 result is stored. On GPUs
 * bf16 with N and K multiples of 8 runs on the tensor cores.
 */
#ifndef EXPAR_GROUPED_GEMM_H
#define EXPAR_GROUPED_GEMM_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Zero every field first. A size of 0 is legal; pointers may then be NULL. */
typedef struct xp_grouped_gemm_call {
    int64_t n_experts; /* L */
    int64_t max_rows;  /* P, a bound on offsets[L] that the host knows */
    int64_t n, k;      /* N, K */
    xp_dtype dtype;    /* XP_F32 or XP_BF16: of x, w, dy, and of out in forward and dgrad */
    /* [L + 1], ascending from 0: expert e's first row, and the number of rows in use */
    const int32_t *offsets;
    const void *x;            /* forward, wgrad: [any, K], or [P, K] without x_gather */
    const int32_t *x_gather;  /* [P] row of x for each assignment row; NULL: the rows in order */
    const void *w;            /* forward, dgrad: [L, N, K] */
    const void *dy;           /* dgrad, wgrad: [any, N], or [P, N] without dy_gather */
    const int32_t *dy_gather; /* [P] row of dy for each assignment row; NULL: the rows in order */
    /* Rows from offsets[L] on are left alone. wgrad: all of it is written, zeros for an expert
     * without rows. Must not overlap an input. */
    void *out;
    xp_dtype out_dtype; /* wgrad only: XP_F32 or XP_BF16 */
    bool accumulate;    /* wgrad only: add to what out holds */
} xp_grouped_gemm_call;

/**
 * @return XP_OK once queued; XP_EINVAL: an argument is wrong (the error names it), XP_ENOTSUP: this
 * build has no ops for the device; then nothing is written
 */
XP_API XP_NODISCARD xp_status xp_grouped_gemm_forward(const xp_grouped_gemm_call *call,
                                                      xp_stream *stream);
/** Gradient of x, one row per assignment. As xp_grouped_gemm_forward(). */
XP_API XP_NODISCARD xp_status xp_grouped_gemm_dgrad(const xp_grouped_gemm_call *call,
                                                    xp_stream *stream);
/** Gradient of w. As xp_grouped_gemm_forward(). */
XP_API XP_NODISCARD xp_status xp_grouped_gemm_wgrad(const xp_grouped_gemm_call *call,
                                                    xp_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
