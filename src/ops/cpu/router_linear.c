/** Gradients of a bf16 router's logits, plain: fp64 sums, one rounding per output. */
#include <string.h>
#include "ops/cpu/cpu_ops.h"

/* sums[e, :] += dlogits[t, e] x[t, :]. */
static void add_gate(const xp_router_linear_args *args, int64_t t, double *sums) {
    for (int e = 0; e < args->n_experts; e++) {
        const double g = (double)args->dlogits[t * args->n_experts + e];
        for (int64_t d = 0; d < args->dim; d++)
            sums[e * args->dim + d] += g * (double)xp_cpu_load(args->x, XP_BF16, t * args->dim + d);
    }
}

static void add_row(const xp_router_linear_args *args, int64_t t) {
    const float *g = args->dlogits + t * args->n_experts;
    for (int64_t d = 0; d < args->dim; d++) {
        double sum = (double)xp_cpu_load(args->dx, XP_BF16, t * args->dim + d);
        for (int e = 0; e < args->n_experts; e++)
            sum += (double)g[e] * (double)xp_cpu_load(args->gate, XP_BF16, e * args->dim + d);
        xp_cpu_store(args->dx, XP_BF16, t * args->dim + d, (float)sum);
    }
}

xp_status xp_cpu_router_linear_backward(xp_stream *stream, const xp_router_linear_args *args) {
    (void)stream;
    const int64_t n = args->n_experts * args->dim;
    double *sums = args->scratch; /* [E, D]: less than the three parts of a GPU */
    const bool gate = args->part != XP_ROUTER_ROWS, rows = args->part != XP_ROUTER_GATE;
    if (n > 0 && gate)
        memset(sums, 0, (size_t)n * sizeof *sums);
    for (int64_t t = 0; t < args->n_tokens; t++) {
        if (gate)
            add_gate(args, t, sums);
        if (rows)
            add_row(args, t);
    }
    for (int64_t i = 0; i < n && gate; i++) {
        const double before =
            args->acc ? (double)xp_cpu_load(args->d_gate, args->grad_dtype, i) : 0;
        xp_cpu_store(args->d_gate, args->grad_dtype, i, (float)(before + sums[i]));
    }
    return XP_OK;
}
