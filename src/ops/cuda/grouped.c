/* Grouped GEMM: the entries, which choose a kernel. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/tile_gemm.h"

xp_tile_args xp_cuda_grouped_problem(const xp_grouped_args *args, xp_grouped_kind kind) {
    xp_tile_args p = {.n_experts = (int)args->n_experts,
                      .offsets = args->offsets,
                      .c = args->y,
                      .ab_f32 = args->dtype == XP_F32,
                      .c_f32 = args->dtype == XP_F32,
                      .alpha = 1.0F};
    const int64_t n = args->n, k = args->k;
    switch (kind) {
    case XP_GROUPED_FORWARD: /* [rows, k] times [n, k]^T */
        p.a = args->x, p.lda = k, p.gather_a = args->gather;
        p.b = args->w, p.ldb = k, p.b_expert = n * k, p.trans_b = true;
        p.m = args->max_rows, p.n = n, p.k = k, p.ldc = n, p.rows_are_m = true;
        break;
    case XP_GROUPED_DGRAD: /* [rows, n] times [n, k] */
        p.a = args->dy, p.lda = n, p.gather_a = args->gather_dy;
        p.b = args->w, p.ldb = k, p.b_expert = n * k;
        p.m = args->max_rows, p.n = k, p.k = n, p.ldc = k, p.rows_are_m = true;
        break;
    default: /* wgrad: [rows, n]^T times [rows, k] */
        p.a = args->dy, p.lda = n, p.gather_a = args->gather_dy, p.trans_a = true;
        p.b = args->x, p.ldb = k, p.gather_b = args->gather;
        p.m = n, p.n = k, p.k = args->max_rows, p.ldc = k, p.c_expert = n * k;
        p.c_f32 = args->dw_dtype == XP_F32, p.acc = args->acc;
        break;
    }
    return p;
}

bool xp_cuda_tile_is_empty(const xp_tile_args *p) {
    return p->m == 0 || p->n == 0 || (p->offsets != NULL && p->n_experts == 0);
}

int64_t xp_cuda_tile_blocks(const xp_tile_args *p, int tile_m, int tile_n) {
    const int64_t columns = xp_ceil_div(p->n, tile_n), rows = xp_ceil_div(p->m, tile_m);
    if (p->offsets == NULL)
        return rows * columns;
    /* Every expert's last tile may be a part of one. */
    return (p->rows_are_m ? rows + p->n_experts : rows * p->n_experts) * columns;
}

xp_status xp_cuda_tile_gemm(cudaStream_t stream, const xp_gemm_args *args) {
    const xp_tile_args p = {.a = args->a,
                            .b = args->b,
                            .c = args->c,
                            .m = args->m,
                            .n = args->n,
                            .k = args->k,
                            .lda = args->lda,
                            .ldb = args->ldb,
                            .ldc = args->ldc,
                            .trans_a = args->trans_a,
                            .trans_b = args->trans_b,
                            .ab_f32 = args->ab_dtype == XP_F32,
                            .c_f32 = args->c_dtype == XP_F32,
                            .alpha = args->alpha,
                            .acc = args->acc};
    return xp_cuda_tile_run(stream, &p);
}

static xp_status grouped(xp_stream *stream, const xp_grouped_args *args, xp_grouped_kind kind) {
    cudaStream_t s;
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    const xp_tile_args p = xp_cuda_grouped_problem(args, kind);
    if (xp_cuda_tile_is_empty(&p))
        return XP_OK;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (p.ab_f32)
        return xp_cuda_tile_run(s, &p);
    return xp_cuda_hopper_fits(device, &p) ? xp_cuda_grouped_hopper(device, s, &p)
                                           : xp_cuda_grouped_mma(s, &p);
}

xp_status xp_cuda_grouped_forward(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_FORWARD);
}

xp_status xp_cuda_grouped_dgrad(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_DGRAD);
}

xp_status xp_cuda_grouped_wgrad(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_WGRAD);
}
