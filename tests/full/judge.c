/* How far results may be from sums in double, and inputs that are known on both sides. */
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/rng.h"
#include "full.h"

/*
 * A row of results: the norm of its error relative to its own norm, or to that of its terms where
 * they cancel; each element relative to itself plus the row's root mean square. Rounding to bf16 is
 * off by half a unit, 2^-8, at most, and by 2^-8 / sqrt(3) in norm at most.
 */
typedef struct tolerance_row {
    double norm, relative, rms;
    const char *reason;
} tolerance_row;

static const tolerance_row rows[FULL_N_TOLERANCES] = {
    [FULL_PRODUCT] = {0x1.8p-9, 0x1p-8, 0x1p-12,
                      "fp32 sums of exact products, rounded to bf16 once"},
    [FULL_LONG_PRODUCT] = {0x1.8p-9, 0x1p-8, 0x1p-9,
                           "the same over the vocabulary: what 150,000 additions to an fp32 sum "
                           "lose shows beside the rounding"},
    [FULL_PRODUCT_F32] = {0x1p-13, 0, 0x1p-11,
                          "fp32 sums of some thousand exact products; tensor cores cut what lies "
                          "below the accumulator"},
    [FULL_ATTENTION] = {0x1p-8, 0x1p-7, 0x1p-6,
                        "weights are rounded to bf16 before the second GEMM, then the result"},
    [FULL_ATTENTION_GRADIENT] = {0x1p-7, 0x1p-6, 0x1p-5,
                                 "weights, their gradients and results are rounded to bf16; dp may "
                                 "be kept in it"},
    [FULL_LSE] = {1e-5, 0, 1e-4, "fp32, with the GPU's fast exp and log"},
    [FULL_LOSS] = {1e-5, 0, 1e-4, "fp32 sums over the vocabulary of bf16 logits"},
    [FULL_SOFTMAX] = {0x1p-8, 0x1p-7, 0x1p-9, "a bf16 rounding of a quotient in fp32"},
};

/* Worst figures over the rows: error in norm, and that of an element as a share of what is allowed.
 */
typedef struct worst {
    double norm, element;
    int64_t n_bad, first_bad;
} worst;

static void judge_row(const full_results *r, int64_t row, worst *w) {
    const tolerance_row *t = &rows[r->tolerance];
    const double *want = r->want + row * r->n_columns, *got = r->got + row * r->n_columns;
    double error = 0, norm = 0;
    for (int64_t c = 0; c < r->n_columns; c++) {
        error += (got[c] - want[c]) * (got[c] - want[c]);
        norm += want[c] * want[c];
    }
    norm = fmax(sqrt(norm), r->sizes != NULL ? r->sizes[row] : 0.0);
    bool bad = !(sqrt(error) <= t->norm * norm);
    if (norm > 0)
        w->norm = fmax(w->norm, sqrt(error) / norm);
    for (int64_t c = 0; c < r->n_columns; c++) {
        const double distance = fabs(got[c] - want[c]);
        const double allowed =
            t->relative * fabs(want[c]) + t->rms * norm / sqrt((double)r->n_columns);
        bad = bad || !(distance <= allowed);
        if (allowed > 0)
            w->element = fmax(w->element, distance / allowed);
    }
    if (bad && w->n_bad++ == 0)
        w->first_bad = row;
}

void full_judge(full_context *ctx, const full_results *r) {
    worst w = {0};
    for (int64_t row = 0; row < r->n_rows; row++)
        judge_row(r, row, &w);
    ctx->n_checks++;
    ctx->n_failed += w.n_bad > 0;
    printf("%-4s %-22s %-36s %3lld x %-4lld error in norm %.1e (allowed %.1e), of an element %.2f "
           "of allowed\n",
           w.n_bad > 0 ? "FAIL" : "ok", r->op, r->what, (long long)r->n_rows,
           (long long)r->n_columns, w.norm, rows[r->tolerance].norm, w.element);
    if (w.n_bad > 0)
        printf("     %lld of %lld rows are too far, first sampled row %lld: %.6g..., should be "
               "%.6g... (%s)\n",
               (long long)w.n_bad, (long long)r->n_rows, (long long)w.first_bad,
               r->got[w.first_bad * r->n_columns], r->want[w.first_bad * r->n_columns],
               rows[r->tolerance].reason);
}

bool full_wants(const full_context *ctx, const char *op) {
    return fnmatch(ctx->glob, op, 0) == 0;
}

xp_status full_tensor_create(const full_context *ctx, const char *name, double scale, int64_t n,
                             full_tensor *t) {
    *t = (full_tensor){.pattern = calloc(FULL_PERIOD + FULL_RUN, sizeof *t->pattern)};
    if (t->pattern == NULL)
        return xp_error(XP_ENOMEM, "check_full: no memory for random numbers");
    const int64_t first = n < FULL_PERIOD ? n : FULL_PERIOD;
    for (int64_t i = 0; i < first; i++)
        t->pattern[i] = xp_bf16_from_f32(
            (float)(scale * (double)xp_rng_normal(ctx->seed, xp_rng_stream(name), (uint64_t)i)));
    memcpy(t->pattern + FULL_PERIOD, t->pattern, FULL_RUN * sizeof *t->pattern);
    XP_TRY(xp_device_alloc(ctx->device, (size_t)n * 2, "check_full", &t->data));
    XP_TRY(xp_copy(ctx->stream, t->data, t->pattern, (size_t)first * 2));
    for (int64_t done = first; done < n;) {
        const int64_t more = done < n - done ? done : n - done;
        XP_TRY(xp_copy(ctx->stream, (char *)t->data + done * 2, t->data, (size_t)more * 2));
        done += more;
    }
    return xp_stream_sync(ctx->stream);
}

double full_dot(const full_tensor *x, int64_t i, const full_tensor *y, int64_t j, int64_t n) {
    const uint16_t *a = x->pattern + i % FULL_PERIOD, *b = y->pattern + j % FULL_PERIOD;
    double sum = 0;
    for (int64_t c = 0; c < n; c++)
        sum += (double)xp_bf16_to_f32(a[c]) * (double)xp_bf16_to_f32(b[c]);
    return sum;
}

void full_tensor_destroy(const full_context *ctx, full_tensor *t) {
    free(t->pattern);
    xp_device_free(ctx->device, t->data);
}

xp_status full_output_create(const full_context *ctx, size_t n_bytes, void **data) {
    enum { BLOCK = 1 << 20 };
    static char nan[BLOCK]; /* 0xff... is a NaN in bf16 and in fp32 */
    memset(nan, 0xff, sizeof nan);
    XP_TRY(xp_device_alloc(ctx->device, n_bytes, "check_full", data));
    const size_t first = n_bytes < BLOCK ? n_bytes : BLOCK;
    XP_TRY(xp_copy(ctx->stream, *data, nan, first));
    for (size_t done = first; done < n_bytes;) {
        const size_t more = done < n_bytes - done ? done : n_bytes - done;
        XP_TRY(xp_copy(ctx->stream, (char *)*data + done, *data, more));
        done += more;
    }
    return xp_stream_sync(ctx->stream);
}

xp_status full_read(const full_context *ctx, const void *data, xp_dtype dtype, int64_t first,
                    int64_t n, double *out) {
    const size_t size = xp_dtype_bytes(dtype);
    char *raw = malloc((size_t)n * size + 1);
    if (raw == NULL)
        return xp_error(XP_ENOMEM, "check_full: no memory for results");
    xp_status status =
        xp_copy(ctx->stream, raw, (const char *)data + (size_t)first * size, (size_t)n * size);
    if (status == XP_OK)
        status = xp_stream_sync(ctx->stream);
    for (int64_t i = 0; status == XP_OK && i < n; i++)
        out[i] = dtype == XP_BF16 ? (double)xp_bf16_to_f32(((uint16_t *)(void *)raw)[i])
                                  : (double)((float *)(void *)raw)[i];
    free(raw);
    return status;
}

static int ascending(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int full_sample(const full_context *ctx, const char *name, int n, int64_t below, int64_t *out) {
    if (n >= below) {
        for (int64_t i = 0; i < below; i++)
            out[i] = i;
        return (int)below;
    }
    for (int i = 0; i < n; i++) {
        out[i] =
            (int64_t)xp_rng_permute(ctx->seed, xp_rng_stream(name), (uint64_t)below, (uint64_t)i);
        if (out[i] == 0 || out[i] == below - 1)
            out[i] = below / 2; /* twice at worst */
    }
    out[0] = 0;
    if (n > 1)
        out[n - 1] = below - 1;
    qsort(out, (size_t)n, sizeof *out, ascending);
    return n;
}
