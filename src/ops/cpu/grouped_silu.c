/* Grouped GEMM with the experts' activation: the plain entries of both, one after the other. */
#include "ops/cpu/cpu_ops.h"

/* The activation over all assignment rows there are. */
static xp_silu_gate_prob_args activation(const xp_grouped_silu_args *args, int64_t width) {
    char *gate_up = args->gate_up;
    return (xp_silu_gate_prob_args){.n_rows = args->gemm.max_rows,
                                    .dim = width,
                                    .n_rows_device = args->gemm.offsets + args->gemm.n_experts,
                                    .a = gate_up,
                                    .b =
                                        gate_up + width * (int64_t)xp_dtype_bytes(args->gemm.dtype),
                                    .ld = 2 * width,
                                    .p = args->p,
                                    .h = args->h,
                                    .dtype = args->gemm.dtype};
}

static xp_ops plain_entries(void) {
    xp_ops plain = {0};
    xp_cpu_gemm_reference(&plain);
    xp_cpu_moe_reference(&plain);
    return plain;
}

static bool is_empty(const xp_grouped_args *gemm) {
    return gemm->n_experts == 0 || gemm->max_rows == 0 || gemm->n == 0 || gemm->k == 0;
}

static xp_status grouped_silu_forward(xp_stream *stream, const xp_grouped_silu_args *args) {
    const xp_ops plain = plain_entries();
    xp_grouped_args gemm = args->gemm;
    if (is_empty(&gemm))
        return XP_OK;
    gemm.y = args->gate_up;
    XP_TRY(plain.grouped_forward(stream, &gemm));
    const xp_silu_gate_prob_args silu = activation(args, gemm.n / 2);
    return plain.silu_gate_prob_forward(stream, &silu);
}

static xp_status grouped_silu_backward(xp_stream *stream, const xp_grouped_silu_args *args) {
    const xp_ops plain = plain_entries();
    xp_grouped_args gemm = args->gemm;
    if (is_empty(&gemm))
        return XP_OK;
    gemm.y = args->h;
    XP_TRY(plain.grouped_dgrad(stream, &gemm));
    const xp_silu_gate_prob_args silu = activation(args, gemm.k);
    const xp_silu_gate_prob_backward_args backward = {.forward = silu,
                                                      .dh = args->h,
                                                      .da = (void *)silu.a,
                                                      .db = (void *)silu.b,
                                                      .ldd = silu.ld,
                                                      .dp = args->dp};
    return plain.silu_gate_prob_backward(stream, &backward);
}

void xp_cpu_grouped_silu(xp_ops *ops) {
    ops->grouped_silu_forward = grouped_silu_forward;
    ops->grouped_silu_backward = grouped_silu_backward;
}
