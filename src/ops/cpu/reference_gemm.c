/**
 * Dense and grouped GEMM, plain: one blocked triple loop over views of the operands, sums in fp64, one
 * rounding at the end. Dense and grouped GEMM are the same loop; they differ in how a view
 * finds its rows.
 */
#include "ops/cpu/cpu_ops.h"

/** Borders of the blocks that sit on the stack; they bound memory, not results. */
enum { BLOCK_M = 16, BLOCK_N = 64, BLOCK_K = 64 };

/** A matrix as the GEMM reads it: element (i, j) is at stored row i, column j, or the other way
 * round. */
typedef struct view {
    const void *data;
    xp_dtype dtype;
    int64_t first; /* element at the start of row 0 */
    int64_t ld;
    const int32_t *gather; /* stored row r is gather[r]; NULL: r */
    bool transposed;       /* stored rows run along j */
} view;

typedef struct gemm_problem {
    int64_t m, n, k;
    view a, b; /* [m, k], [k, n] */
    void *c;
    xp_dtype c_dtype;
    int64_t c_first, ldc;
    float alpha;
    bool acc;
} gemm_problem;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/** out[i * stride + j] = element (i0 + i, j0 + j). */
static void load_block(const view *v, int64_t i0, int64_t n_i, int64_t j0, int64_t n_j, float *out,
                       int64_t stride) {
    int64_t n_stored = v->transposed ? n_j : n_i;
    int64_t n_along = v->transposed ? n_i : n_j;
    int64_t row0 = v->transposed ? j0 : i0;
    int64_t col0 = v->transposed ? i0 : j0;
    for (int64_t r = 0; r < n_stored; r++) {
        int64_t stored = v->gather ? v->gather[row0 + r] : row0 + r;
        int64_t first = v->first + stored * v->ld + col0;
        for (int64_t i = 0; i < n_along; i++) {
            int64_t at = v->transposed ? i * stride + r : r * stride + i;
            out[at] = xp_cpu_load(v->data, v->dtype, first + i);
        }
    }
}

static void multiply_block(const gemm_problem *p, int64_t i0, int64_t n_i, int64_t j0,
                           int64_t n_j) {
    double sum[BLOCK_M][BLOCK_N] = {{0}};
    float a[BLOCK_M][BLOCK_K];
    float b[BLOCK_K][BLOCK_N] = {{0}};
    for (int64_t k0 = 0; k0 < p->k; k0 += BLOCK_K) {
        int64_t n_k = smaller(BLOCK_K, p->k - k0);
        load_block(&p->a, i0, n_i, k0, n_k, &a[0][0], BLOCK_K);
        load_block(&p->b, k0, n_k, j0, n_j, &b[0][0], BLOCK_N);
        for (int64_t i = 0; i < n_i; i++)
            for (int64_t k = 0; k < n_k; k++)
                for (int64_t j = 0; j < BLOCK_N; j++)
                    sum[i][j] += (double)a[i][k] * (double)b[k][j];
    }
    for (int64_t i = 0; i < n_i; i++) {
        for (int64_t j = 0; j < n_j; j++) {
            int64_t at = p->c_first + (i0 + i) * p->ldc + j0 + j;
            double value = (double)p->alpha * sum[i][j];
            if (p->acc)
                value += (double)xp_cpu_load(p->c, p->c_dtype, at);
            xp_cpu_store(p->c, p->c_dtype, at, (float)value);
        }
    }
}

static void multiply(const gemm_problem *p) {
    for (int64_t i0 = 0; i0 < p->m; i0 += BLOCK_M)
        for (int64_t j0 = 0; j0 < p->n; j0 += BLOCK_N)
            multiply_block(p, i0, smaller(BLOCK_M, p->m - i0), j0, smaller(BLOCK_N, p->n - j0));
}

static xp_status gemm(xp_stream *stream, const xp_gemm_args *args) {
    (void)stream;
    gemm_problem p = {
        .m = args->m,
        .n = args->n,
        .k = args->k,
        .a = {.data = args->a,
              .dtype = args->ab_dtype,
              .ld = args->lda,
              .transposed = args->trans_a},
        .b = {.data = args->b,
              .dtype = args->ab_dtype,
              .ld = args->ldb,
              .transposed = args->trans_b},
        .c = args->c,
        .c_dtype = args->c_dtype,
        .ldc = args->ldc,
        .alpha = args->alpha,
        .acc = args->acc,
    };
    multiply(&p);
    return XP_OK;
}

static const int32_t *from_row(const int32_t *gather, int64_t row) {
    return gather ? gather + row : NULL;
}

/** Stored row 0 of a view that starts at assignment row `row`: with a gather list the list moves, without
 * one the matrix does. */
static view rows_from(const void *data, xp_dtype dtype, int64_t ld, const int32_t *gather,
                      int64_t row) {
    return (view){
        .data = data,
        .dtype = dtype,
        .first = gather ? 0 : row * ld,
        .ld = ld,
        .gather = from_row(gather, row),
    };
}

/** Experts to visit: none when their weights are empty (offsets may be NULL then). */
static int64_t n_weights(const xp_grouped_args *args) {
    return args->n > 0 && args->k > 0 ? args->n_experts : 0;
}

/* y rows [row, end) of expert e. */
static void forward_rows(const xp_grouped_args *args, int64_t e, int64_t row, int64_t end) {
    gemm_problem p = {
        .m = end - row,
        .n = args->n,
        .k = args->k,
        .a = rows_from(args->x, args->dtype, args->k, args->gather, row),
        .b = {.data = args->w,
              .dtype = args->dtype,
              .first = e * args->n * args->k,
              .ld = args->k,
              .transposed = true},
        .c = args->y,
        .c_dtype = args->dtype,
        .c_first = row * args->n,
        .ldc = args->n,
        .alpha = 1,
    };
    multiply(&p);
}

static void dgrad_rows(const xp_grouped_args *args, int64_t e, int64_t row, int64_t end) {
    gemm_problem p = {
        .m = end - row,
        .n = args->k,
        .k = args->n,
        .a = rows_from(args->dy, args->dtype, args->n, args->gather_dy, row),
        .b = {.data = args->w, .dtype = args->dtype, .first = e * args->n * args->k, .ld = args->k},
        .c = args->y,
        .c_dtype = args->dtype,
        .c_first = row * args->k,
        .ldc = args->k,
        .alpha = 1,
    };
    multiply(&p);
}

static void each_expert(const xp_grouped_args *args,
                        void (*rows)(const xp_grouped_args *args, int64_t e, int64_t row,
                                     int64_t end)) {
    for (int64_t e = 0; e < n_weights(args); e++) {
        const int64_t first = args->offsets[e], end = args->offsets[e + 1];
        if (args->rows == XP_ROWS_ALL) {
            rows(args, e, first, end);
        } else if (args->rows == XP_ROWS_IN_RANGE) {
            rows(args, e, args->row_range[2 * e], args->row_range[2 * e + 1]);
        } else {
            rows(args, e, first, args->row_range[2 * e]);
            rows(args, e, args->row_range[2 * e + 1], end);
        }
    }
}

static xp_status grouped_forward(xp_stream *stream, const xp_grouped_args *args) {
    (void)stream;
    each_expert(args, forward_rows);
    return XP_OK;
}

static xp_status grouped_dgrad(xp_stream *stream, const xp_grouped_args *args) {
    (void)stream;
    each_expert(args, dgrad_rows);
    return XP_OK;
}

static xp_status grouped_wgrad(xp_stream *stream, const xp_grouped_args *args) {
    (void)stream;
    for (int64_t e = 0; e < n_weights(args); e++) {
        int64_t row = args->offsets[e];
        gemm_problem p = {
            .m = args->n,
            .n = args->k,
            .k = args->offsets[e + 1] - row,
            .a = rows_from(args->dy, args->dtype, args->n, args->gather_dy, row),
            .b = rows_from(args->x, args->dtype, args->k, args->gather, row),
            .c = args->y,
            .c_dtype = args->dw_dtype,
            .c_first = e * args->n * args->k,
            .ldc = args->k,
            .alpha = 1,
            .acc = args->acc,
        };
        p.a.transposed = true;
        /* An expert without rows sums nothing: zeros, or with acc what is there already. */
        if (p.k == 0 && p.acc)
            continue;
        multiply(&p);
    }
    return XP_OK;
}

void xp_cpu_gemm_reference(xp_ops *ops) {
    ops->gemm = gemm;
    ops->grouped_forward = grouped_forward;
    ops->grouped_dgrad = grouped_dgrad;
    ops->grouped_wgrad = grouped_wgrad;
}
