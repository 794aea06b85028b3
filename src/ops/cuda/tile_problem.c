/* From a call's arguments to the GEMM that the tile kernels compute, and how many tiles it has. */
#include "ops/cuda/launch.h"
#include "ops/cuda/tile_gemm.h"

xp_tile_args xp_cuda_grouped_problem(const xp_grouped_args *args, xp_grouped_kind kind) {
    xp_tile_args p = {.n_experts = (int)args->n_experts,
                      .offsets = args->offsets,
                      .c = args->y,
                      .ab_f32 = args->dtype == XP_F32,
                      .c_f32 = args->dtype == XP_F32,
                      .alpha = 1.0F,
                      .row_range = args->rows != XP_ROWS_ALL ? args->row_range : NULL,
                      .rows = args->rows,
                      .spare_sms = args->spare_sms};
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
    if (!p->rows_are_m)
        return rows * p->n_experts * columns;
    /* The last tile of each segment may be a part of one. */
    return (rows + (p->rows == XP_ROWS_OUT_OF_RANGE ? 2 : 1) * p->n_experts) * columns;
}
