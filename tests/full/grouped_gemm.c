/* Grouped GEMM: forward, dgrad, wgrad, with uneven routing as a router gives it. */
#include <stdio.h>
#include <stdlib.h>
#include "core/rng.h"
#include "full.h"

#define N_ROWS    64 /* sampled rows of a result, and columns of each */
#define N_COLUMNS 64
#define N_EXPERTS 6  /* of which wgrad is sampled */
#define N_WGRAD   16 /* rows and columns of each of those */

typedef struct shape {
    const char *name;
    int n_experts;
    int64_t n_rows, n_tokens, n, k; /* weights [n_experts, n, k] */
} shape;

static const shape shapes[] = {
    {"30B gate+up, 16 experts", 16, 65536, 32768, 1536, 2048},
    {"30B down, 16 experts", 16, 65536, 65536, 2048, 768},
    {"30B gate+up, 128 experts", 128, 16384, 2048, 1536, 2048},
    {"30B down, 128 experts", 128, 16384, 16384, 2048, 768},
    {"235B gate+up, 16 experts", 16, 32768, 16384, 3072, 4096},
    {"235B down, 16 experts", 16, 32768, 32768, 4096, 1536},
    {"235B gate+up, 128 experts", 128, 16384, 2048, 3072, 4096},
    {"235B down, 128 experts", 128, 16384, 16384, 4096, 1536},
};
static const shape small_shapes[] = {{"small gate+up", 5, 700, 200, 48, 40},
                                     {"small down", 5, 700, 700, 40, 24}};

typedef struct grouped_case {
    full_context *ctx;
    const shape *s;
    int32_t *offsets, *gather;                  /* host: [L + 1], [rows] */
    void *device_offsets, *device_gather, *out; /* device */
    full_tensor x, w, dy;                       /* [tokens, k]; [L, n, k]; [tokens or rows, n] */
} grouped_case;

/* Groups of 0.5 to 1.5 times the mean, the second empty, the third of one row. */
static void route(grouped_case *p) {
    const shape *s = p->s;
    int64_t at = 0;
    for (int e = 0; e < s->n_experts; e++) {
        const int64_t mean = (s->n_rows - at) / (s->n_experts - e);
        int64_t rows = mean / 2 + (int64_t)xp_rng_below(p->ctx->seed, xp_rng_stream("groups"),
                                                        (uint64_t)e, (uint64_t)mean + 1);
        rows = e == 1 ? 0 : e == 2 ? 1 : rows;
        p->offsets[e] = (int32_t)at;
        at += rows < s->n_rows - at ? rows : s->n_rows - at;
    }
    p->offsets[s->n_experts] = (int32_t)at;
    for (int64_t r = 0; r < s->n_rows; r++)
        p->gather[r] = (int32_t)xp_rng_below(p->ctx->seed, xp_rng_stream("gather"), (uint64_t)r,
                                             (uint64_t)s->n_tokens);
}

static int expert_of(const grouped_case *p, int64_t row) {
    int e = 0;
    while (p->offsets[e + 1] <= row)
        e++;
    return e;
}

static xp_status upload(grouped_case *p) {
    const full_context *ctx = p->ctx;
    const shape *s = p->s;
    const size_t n_offsets = (size_t)(s->n_experts + 1) * 4, n_gather = (size_t)s->n_rows * 4;
    XP_TRY(xp_device_alloc(ctx->device, n_offsets, "check_full", &p->device_offsets));
    XP_TRY(xp_device_alloc(ctx->device, n_gather, "check_full", &p->device_gather));
    XP_TRY(xp_copy(ctx->stream, p->device_offsets, p->offsets, n_offsets));
    XP_TRY(xp_copy(ctx->stream, p->device_gather, p->gather, n_gather));
    XP_TRY(full_tensor_create(ctx, "x", 1.0, s->n_tokens * s->k, &p->x));
    XP_TRY(full_tensor_create(ctx, "w", 0.02, (int64_t)s->n_experts * s->n * s->k, &p->w));
    return full_tensor_create(ctx, "dy", 1.0, s->n_rows * s->n, &p->dy);
}

static xp_grouped_args args_of(const grouped_case *p) {
    return (xp_grouped_args){.n_experts = p->s->n_experts,
                             .max_rows = p->s->n_rows,
                             .n = p->s->n,
                             .k = p->s->k,
                             .offsets = p->device_offsets,
                             .w = p->w.data,
                             .y = p->out,
                             .dtype = XP_BF16,
                             .dw_dtype = XP_BF16};
}

/* y[r, c] = x[gather[r], :] . w[e, c, :], or dx[r, c] = dy[gather[r], :] . w[e, :, c] */
static double exact(const grouped_case *p, bool forward, int64_t row, int64_t column) {
    const int64_t n = p->s->n, k = p->s->k, base = expert_of(p, row) * n * k;
    const int64_t from = p->gather[row];
    if (forward)
        return full_dot(&p->x, from * k, &p->w, base + column * k, k);
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += full_at(&p->dy, from * n + i) * full_at(&p->w, base + i * k + column);
    return sum;
}

static xp_status check_rows(grouped_case *p, bool forward) {
    full_context *ctx = p->ctx;
    const int64_t width = forward ? p->s->n : p->s->k;
    xp_grouped_args args = args_of(p);
    args.x = p->x.data;
    args.gather = forward ? p->device_gather : NULL;
    args.dy = p->dy.data;
    args.gather_dy = p->device_gather;
    XP_TRY(forward ? ctx->ops->grouped_forward(ctx->stream, &args)
                   : ctx->ops->grouped_dgrad(ctx->stream, &args));
    int64_t rows[N_ROWS], columns[N_COLUMNS];
    const int n_rows = full_sample(ctx, "rows", N_ROWS, p->offsets[p->s->n_experts], rows);
    const int n_columns = full_sample(ctx, "columns", N_COLUMNS, width, columns);
    double *want = calloc(N_ROWS * N_COLUMNS, sizeof *want);
    double *got = calloc(N_ROWS * N_COLUMNS, sizeof *got);
    double *whole = calloc((size_t)width, sizeof *whole);
    xp_status status = want && got && whole ? XP_OK : xp_error(XP_ENOMEM, "check_full: no memory");
    for (int r = 0; status == XP_OK && r < n_rows; r++) {
        status = full_read(ctx, p->out, XP_BF16, rows[r] * width, width, whole);
        for (int c = 0; c < n_columns; c++) {
            want[r * n_columns + c] = exact(p, forward, rows[r], columns[c]);
            got[r * n_columns + c] = whole[columns[c]];
        }
    }
    if (status == XP_OK)
        full_judge(ctx, &(full_results){.op = forward ? "grouped_forward" : "grouped_dgrad",
                                        .what = p->s->name,
                                        .tolerance = FULL_PRODUCT,
                                        .n_rows = n_rows,
                                        .n_columns = n_columns,
                                        .want = want,
                                        .got = got});
    free(want);
    free(got);
    free(whole);
    return status;
}

/* dw[e, a, b] = sum over e's rows of dy[r, a] x[gather[r], b] */
static double exact_wgrad(const grouped_case *p, int64_t e, int64_t a, int64_t b) {
    double sum = 0;
    for (int64_t r = p->offsets[e]; r < p->offsets[e + 1]; r++)
        sum += full_at(&p->dy, r * p->s->n + a) * full_at(&p->x, p->gather[r] * p->s->k + b);
    return sum;
}

static xp_status sample_wgrad(grouped_case *p, xp_dtype dtype, double *want, double *got,
                              double *whole) {
    const int64_t n = p->s->n, k = p->s->k;
    int64_t experts[N_EXPERTS], a[N_WGRAD], b[N_WGRAD], at = 0;
    const int n_experts = full_sample(p->ctx, "experts", N_EXPERTS, p->s->n_experts, experts);
    const int n_a = full_sample(p->ctx, "a", N_WGRAD, n, a);
    const int n_b = full_sample(p->ctx, "b", N_WGRAD, k, b);
    experts[1] = 1; /* the one without rows: exact zeros */
    for (int e = 0; e < n_experts; e++)
        for (int i = 0; i < n_a; i++) {
            const int64_t row = (experts[e] * n + a[i]) * k;
            XP_TRY(full_read(p->ctx, p->out, dtype, row, k, whole));
            for (int j = 0; j < n_b; j++, at++) {
                want[at] = exact_wgrad(p, experts[e], a[i], b[j]);
                got[at] = whole[b[j]];
            }
        }
    char what[96];
    snprintf(what, sizeof what, "%s%s", p->s->name, dtype == XP_F32 ? ", fp32 +=" : "");
    full_judge(p->ctx,
               &(full_results){.op = "grouped_wgrad",
                               .what = what,
                               .tolerance = dtype == XP_F32 ? FULL_PRODUCT_F32 : FULL_PRODUCT,
                               .n_rows = n_experts,
                               .n_columns = (int64_t)n_a * n_b,
                               .want = want,
                               .got = got});
    return XP_OK;
}

static xp_status check_wgrad(grouped_case *p, xp_dtype dtype) {
    full_context *ctx = p->ctx;
    xp_grouped_args args = args_of(p);
    args.x = p->x.data;
    args.gather = p->device_gather;
    args.dy = p->dy.data;
    args.dw_dtype = dtype;
    args.acc = dtype == XP_F32;
    if (args.acc)
        XP_TRY(xp_zero(ctx->stream, p->out, (size_t)(p->s->n_experts * p->s->n * p->s->k) * 4));
    XP_TRY(ctx->ops->grouped_wgrad(ctx->stream, &args));
    const size_t n = N_EXPERTS * N_WGRAD * N_WGRAD;
    double *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    double *whole = calloc((size_t)p->s->k, sizeof *whole);
    xp_status status = want && got && whole ? sample_wgrad(p, dtype, want, got, whole)
                                            : xp_error(XP_ENOMEM, "check_full: no memory");
    free(want);
    free(got);
    free(whole);
    return status;
}

/* Outputs are made anew for each op, so that nothing of the last one passes for a result. */
static xp_status check_op(grouped_case *p, int which) {
    static const char *const ops[] = {"grouped_forward", "grouped_dgrad", "grouped_wgrad",
                                      "grouped_wgrad"};
    const shape *s = p->s;
    const size_t elements = which == 0   ? (size_t)(s->n_rows * s->n)
                            : which == 1 ? (size_t)(s->n_rows * s->k)
                                         : (size_t)(s->n_experts * s->n * s->k);
    if (!full_wants(p->ctx, ops[which]))
        return XP_OK;
    XP_TRY(full_output_create(p->ctx, elements * (which == 3 ? 4 : 2), &p->out));
    const xp_status status =
        which < 2 ? check_rows(p, which == 0) : check_wgrad(p, which == 3 ? XP_F32 : XP_BF16);
    xp_device_free(p->ctx->device, p->out);
    p->out = NULL;
    return status;
}

static xp_status check_shape(full_context *ctx, const shape *s) {
    grouped_case p = {.ctx = ctx, .s = s};
    p.offsets = calloc((size_t)s->n_experts + 1, sizeof *p.offsets);
    p.gather = calloc((size_t)s->n_rows, sizeof *p.gather);
    xp_status status = p.offsets && p.gather ? XP_OK : xp_error(XP_ENOMEM, "check_full: no memory");
    if (status == XP_OK) {
        route(&p);
        status = upload(&p);
    }
    for (int which = 0; status == XP_OK && which < 4; which++)
        status = check_op(&p, which);
    free(p.offsets);
    free(p.gather);
    full_tensor_destroy(ctx, &p.x);
    full_tensor_destroy(ctx, &p.w);
    full_tensor_destroy(ctx, &p.dy);
    xp_device_free(ctx->device, p.device_offsets);
    xp_device_free(ctx->device, p.device_gather);
    xp_device_free(ctx->device, p.out);
    return status;
}

xp_status full_products(full_context *ctx) {
    const shape *list = ctx->small ? small_shapes : shapes;
    const size_t n = ctx->small ? sizeof small_shapes / sizeof *list : sizeof shapes / sizeof *list;
    if (!full_wants(ctx, "grouped_forward") && !full_wants(ctx, "grouped_dgrad") &&
        !full_wants(ctx, "grouped_wgrad"))
        return XP_OK;
    for (size_t i = 0; i < n; i++)
        XP_TRY(check_shape(ctx, &list[i]));
    return XP_OK;
}
