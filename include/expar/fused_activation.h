/**
 * The activation of a mixture-of-experts layer in one pass over memory: out = silu(x1) * x2 * prob,
 * and its backward.
 *
 * x1 and x2 are the gate and up projections of the rows that an expert reads, prob the routing
 * weight of each row. Scaling here equals scaling the expert's output (its last projection has no
 * bias) and gives the router its gradient at no extra pass: dprob[r] = sum over f of dout[r, f] *
 * silu(x1[r, f]) * x2[r, f].
 *
 * Three entries with the same arguments:
 *
 *   xp_fused_silu_gate_prob*       the fused code, or XP_ENOTSUP where it cannot run
 *   xp_silu_gate_prob_reference*   the plain code (fp64 inside), which the fused code is tested against
 *   xp_silu_gate_prob*             the fused code where it can run, else the plain code; reports which
 *
 * All are queued on the stream: outputs are valid after xp_stream_sync() or behind an event.
 * Pointers are memory of the stream's device, 16-byte aligned, borrowed until the work is done; the
 * argument structs are copied. Rows that are not valid are neither read nor written. Nothing is
 * allocated. Arithmetic is fp32 or better whatever the row type, with one rounding when a bf16
 * result is stored; results do not depend on the number of threads.
 */
#ifndef EXPAR_FUSED_ACTIVATION_H
#define EXPAR_FUSED_ACTIVATION_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Letters: N rows, F expert width. */
typedef struct xp_silu_gate_prob_call {
    int64_t n_rows;      /* N, or a bound on it with n_rows_device; 0 is legal and does nothing */
    int64_t dim;         /* F */
    xp_dtype dtype;      /* XP_F32 or XP_BF16: of x1, x2, out and all their gradients */
    const void *x1, *x2; /* [N, F], rows contiguous, ld apart */
    int64_t ld; /* elements between rows of x1, and of x2: >= F; 2 F for halves of one matrix */
    const float *prob;            /* [N] fp32, or NULL: 1 */
    const int32_t *n_rows_device; /* [1] valid rows, read when the work runs; NULL: all n_rows */
    void *out; /* [N, F] contiguous; must not overlap x1, x2. backward: recomputed when not NULL */
} xp_silu_gate_prob_call;

typedef struct xp_silu_gate_prob_backward_call {
    xp_silu_gate_prob_call forward; /* as in forward; out: NULL, or where to recompute the output */
    const void *dout; /* [N, F] contiguous; may be forward.out, which then ends as the output */
    void *dx1, *dx2;  /* [N, F]; dx1 may be x1 and dx2 may be x2 when ld_grad equals ld */
    int64_t ld_grad;  /* elements between rows of dx1, and of dx2: >= F */
    float *dprob;     /* [N] fp32, or NULL: not wanted */
} xp_silu_gate_prob_backward_call;

typedef enum xp_activation_path {
    XP_ACTIVATION_REFERENCE = 0, /* plain code */
    XP_ACTIVATION_FUSED,
} xp_activation_path;

/** "reference" or "fused". Static storage. */
XP_API const char *xp_activation_path_name(xp_activation_path path);

/**
 * Which code xp_silu_gate_prob() runs on this device: fused on a GPU, and on a CPU with AVX2 (unless
 * xp_device_args.caps leaves it out).
 */
XP_API xp_activation_path xp_silu_gate_prob_path(const xp_device *device);

/**
 * The fused code only.
 * @return XP_OK once queued; XP_EINVAL when an argument is wrong, XP_ENOTSUP when this device has
 * no fused code (the error says why): then nothing is written
 */
XP_API XP_NODISCARD xp_status xp_fused_silu_gate_prob(const xp_silu_gate_prob_call *call,
                                                      xp_stream *stream);
XP_API XP_NODISCARD xp_status
xp_fused_silu_gate_prob_backward(const xp_silu_gate_prob_backward_call *call, xp_stream *stream);

/**
 * The plain code: one thread on the CPU, one element per thread on a GPU.
 * @return XP_OK once queued; XP_EINVAL; XP_ENOTSUP on a device that has none
 */
XP_API XP_NODISCARD xp_status xp_silu_gate_prob_reference(const xp_silu_gate_prob_call *call,
                                                          xp_stream *stream);
XP_API XP_NODISCARD xp_status xp_silu_gate_prob_reference_backward(
    const xp_silu_gate_prob_backward_call *call, xp_stream *stream);

/**
 * The fused code where it can run, else the plain code.
 * @param[out] path  which one was queued; may be NULL
 * @return XP_OK once queued; XP_EINVAL: nothing is written, *path unchanged
 */
XP_API XP_NODISCARD xp_status xp_silu_gate_prob(const xp_silu_gate_prob_call *call,
                                                xp_stream *stream, xp_activation_path *path);
XP_API XP_NODISCARD xp_status xp_silu_gate_prob_backward(
    const xp_silu_gate_prob_backward_call *call, xp_stream *stream, xp_activation_path *path);

#ifdef __cplusplus
}
#endif
#endif
