/* The head over Qwen3's vocabulary for one chunk of rows: logits, loss and its gradient, both
 * products backward. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "core/rng.h"
#include "full.h"

#define N_ROWS    32 /* sampled rows of a head_gemm, and columns of each */
#define N_COLUMNS 32
#define N_LOSSES  12 /* sampled rows of the loss, over the whole vocabulary */

typedef struct shape {
    const char *name;
    int64_t n_rows, vocab, dim;
} shape;

static const shape shapes[] = {{"30B head", 1728, 151936, 2048}, {"235B head", 1728, 151936, 4096}};
static const shape small_shapes[] = {{"small head", 70, 500, 40}};

typedef struct head {
    full_context *ctx;
    const shape *s;
    full_tensor x, w, dlogits; /* [N, D]; [V, D]; [N, V] */
    void *out;
    int32_t *targets; /* host [N] */
} head;

typedef enum head_gemm { LOGITS, DGRAD, WGRAD } head_gemm;
static const char *const names[] = {"logits", "dx", "dw"};

/* An element of what the head_gemm should be. */
static double exact(const head *h, head_gemm which, int64_t row, int64_t column) {
    const int64_t v = h->s->vocab, d = h->s->dim;
    double sum = 0;
    if (which == LOGITS)
        return full_dot(&h->x, row * d, &h->w, column * d, d);
    if (which == DGRAD)
        for (int64_t i = 0; i < v; i++)
            sum += full_at(&h->dlogits, row * v + i) * full_at(&h->w, i * d + column);
    else
        for (int64_t i = 0; i < h->s->n_rows; i++)
            sum += full_at(&h->dlogits, i * v + row) * full_at(&h->x, i * d + column);
    return sum;
}

static xp_gemm_args args_of(const head *h, head_gemm which) {
    const int64_t n = h->s->n_rows, v = h->s->vocab, d = h->s->dim;
    xp_gemm_args a = {.alpha = 1.0F, .ab_dtype = XP_BF16, .c_dtype = XP_BF16, .c = h->out};
    if (which == LOGITS) {
        a.m = n, a.n = v, a.k = d, a.trans_b = true;
        a.a = h->x.data, a.lda = d, a.b = h->w.data, a.ldb = d, a.ldc = v;
    } else if (which == DGRAD) {
        a.m = n, a.n = d, a.k = v;
        a.a = h->dlogits.data, a.lda = v, a.b = h->w.data, a.ldb = d, a.ldc = d;
    } else {
        a.m = v, a.n = d, a.k = n, a.trans_a = true;
        a.a = h->dlogits.data, a.lda = v, a.b = h->x.data, a.ldb = d, a.ldc = d;
    }
    return a;
}

static xp_status sample_gemm(head *h, head_gemm which, double *want, double *got, double *whole) {
    const xp_gemm_args args = args_of(h, which);
    int64_t rows[N_ROWS], columns[N_COLUMNS];
    const int n_rows = full_sample(h->ctx, "head rows", N_ROWS, args.m, rows);
    const int n_columns = full_sample(h->ctx, "head columns", N_COLUMNS, args.n, columns);
    for (int r = 0; r < n_rows; r++) {
        XP_TRY(full_read(h->ctx, h->out, XP_BF16, rows[r] * args.n, args.n, whole));
        for (int c = 0; c < n_columns; c++) {
            want[r * n_columns + c] = exact(h, which, rows[r], columns[c]);
            got[r * n_columns + c] = whole[columns[c]];
        }
    }
    char what[64];
    snprintf(what, sizeof what, "%s, %s", h->s->name, names[which]);
    full_judge(h->ctx,
               &(full_results){.op = "head_product",
                               .what = what,
                               .tolerance = which == DGRAD ? FULL_LONG_PRODUCT : FULL_PRODUCT,
                               .n_rows = n_rows,
                               .n_columns = n_columns,
                               .want = want,
                               .got = got});
    return XP_OK;
}

/* Leaves the result in h->out, for the loss. */
static xp_status check_gemm(head *h, head_gemm which) {
    const xp_gemm_args args = args_of(h, which);
    XP_TRY(h->ctx->ops->gemm(h->ctx->stream, &args));
    double *want = calloc(N_ROWS * N_COLUMNS, sizeof *want);
    double *got = calloc(N_ROWS * N_COLUMNS, sizeof *got);
    double *whole = calloc((size_t)args.n, sizeof *whole);
    const xp_status status = want && got && whole ? sample_gemm(h, which, want, got, whole)
                                                  : xp_error(XP_ENOMEM, "check_full: no memory");
    free(want);
    free(got);
    free(whole);
    return status;
}

typedef struct losses { /* of the sampled rows */
    int64_t rows[N_LOSSES];
    int n;
    double *logits, *grads;                                        /* [n, V] before and after */
    double loss[N_LOSSES], want_loss[N_LOSSES];                    /* and what they should be */
    double target_grad[N_LOSSES], want_target_grad[N_LOSSES];      /* at the target */
    double grad[N_LOSSES * N_COLUMNS], want[N_LOSSES * N_COLUMNS]; /* elsewhere */
} losses;

static void judge_losses(head *h, losses *l) {
    const int64_t v = h->s->vocab;
    int64_t columns[N_COLUMNS];
    const double scale = (double)(float)(1.0 / (double)h->s->n_rows);
    const int n_columns = full_sample(h->ctx, "loss columns", N_COLUMNS, v, columns);
    for (int r = 0; r < l->n; r++) {
        const double *z = l->logits + r * v, *g = l->grads + r * v;
        const int64_t target = h->targets[l->rows[r]];
        double most = z[0], sum = 0;
        for (int64_t i = 0; i < v; i++)
            most = fmax(most, z[i]);
        for (int64_t i = 0; i < v; i++)
            sum += exp(z[i] - most);
        l->want_loss[r] = log(sum) + most - z[target];
        l->want_target_grad[r] = (exp(z[target] - most) / sum - 1.0) * scale;
        l->target_grad[r] = g[target];
        for (int c = 0; c < n_columns; c++) {
            const int64_t i = columns[c] == target ? (target + 1) % v : columns[c];
            l->want[r * n_columns + c] = exp(z[i] - most) / sum * scale;
            l->grad[r * n_columns + c] = g[i];
        }
    }
    full_judge(h->ctx, &(full_results){.op = "cross_entropy",
                                       .what = h->s->name,
                                       .tolerance = FULL_LOSS,
                                       .n_rows = l->n,
                                       .n_columns = 1,
                                       .want = l->want_loss,
                                       .got = l->loss});
    full_judge(h->ctx, &(full_results){.op = "cross_entropy gradient",
                                       .what = h->s->name,
                                       .tolerance = FULL_SOFTMAX,
                                       .n_rows = l->n,
                                       .n_columns = n_columns,
                                       .want = l->want,
                                       .got = l->grad});
    full_judge(h->ctx, &(full_results){.op = "cross_entropy gradient",
                                       .what = "at the target",
                                       .tolerance = FULL_SOFTMAX,
                                       .n_rows = l->n,
                                       .n_columns = 1,
                                       .want = l->want_target_grad,
                                       .got = l->target_grad});
}

static xp_status run_loss(head *h, losses *l, void *device_targets, float *device_loss,
                          float *scale) {
    const int64_t v = h->s->vocab;
    const float one_row = (float)(1.0 / (double)h->s->n_rows);
    l->n = full_sample(h->ctx, "loss rows", N_LOSSES, h->s->n_rows, l->rows);
    XP_TRY(xp_copy(h->ctx->stream, device_targets, h->targets, (size_t)h->s->n_rows * 4));
    XP_TRY(xp_copy(h->ctx->stream, scale, &one_row, 4));
    for (int r = 0; r < l->n; r++)
        XP_TRY(full_read(h->ctx, h->out, XP_BF16, l->rows[r] * v, v, l->logits + r * v));
    const xp_cross_entropy_args args = {.n_rows = h->s->n_rows,
                                        .vocab = v,
                                        .logits = h->out,
                                        .targets = device_targets,
                                        .loss = device_loss,
                                        .grad_scale = scale,
                                        .write_grad = true,
                                        .dtype = XP_BF16};
    XP_TRY(h->ctx->ops->cross_entropy(h->ctx->stream, &args));
    for (int r = 0; r < l->n; r++) {
        XP_TRY(full_read(h->ctx, h->out, XP_BF16, l->rows[r] * v, v, l->grads + r * v));
        XP_TRY(full_read(h->ctx, device_loss, XP_F32, l->rows[r], 1, &l->loss[r]));
    }
    judge_losses(h, l);
    return XP_OK;
}

/* On the logits that are in h->out; the targets are drawn. */
static xp_status check_loss(head *h) {
    const size_t n = (size_t)h->s->n_rows;
    losses *l = calloc(1, sizeof *l);
    void *memory[3] = {NULL};
    xp_status status = XP_OK;
    if (l != NULL) {
        l->logits = calloc((size_t)(N_LOSSES * h->s->vocab), sizeof *l->logits);
        l->grads = calloc((size_t)(N_LOSSES * h->s->vocab), sizeof *l->grads);
    }
    if (l == NULL || l->logits == NULL || l->grads == NULL)
        status = xp_error(XP_ENOMEM, "check_full: no memory");
    for (int i = 0; status == XP_OK && i < 3; i++)
        status = xp_device_alloc(h->ctx->device, n * 4, "check_full", &memory[i]);
    for (size_t i = 0; i < n; i++)
        h->targets[i] = (int32_t)xp_rng_below(h->ctx->seed, xp_rng_stream("targets"), (uint64_t)i,
                                              (uint64_t)h->s->vocab);
    if (status == XP_OK)
        status = run_loss(h, l, memory[0], memory[1], memory[2]);
    for (int i = 0; i < 3; i++)
        xp_device_free(h->ctx->device, memory[i]);
    if (l != NULL) {
        free(l->logits);
        free(l->grads);
    }
    free(l);
    return status;
}

static xp_status check_products(head *h) {
    const int64_t n = h->s->n_rows, v = h->s->vocab, d = h->s->dim;
    const int64_t n_out[] = {n * v, n * d, v * d};
    XP_TRY(full_tensor_create(h->ctx, "head x", 1.0, n * d, &h->x));
    XP_TRY(full_tensor_create(h->ctx, "head", 0.02, v * d, &h->w));
    XP_TRY(full_tensor_create(h->ctx, "dlogits", 1e-3, n * v, &h->dlogits));
    for (int which = 0; which < 3; which++) {
        XP_TRY(full_output_create(h->ctx, (size_t)n_out[which] * 2, &h->out));
        XP_TRY(check_gemm(h, (head_gemm)which));
        if (which == LOGITS)
            XP_TRY(check_loss(h));
        xp_device_free(h->ctx->device, h->out);
        h->out = NULL;
    }
    return XP_OK;
}

xp_status full_head(full_context *ctx) {
    const shape *list = ctx->small ? small_shapes : shapes;
    const size_t n = ctx->small ? sizeof small_shapes / sizeof *list : sizeof shapes / sizeof *list;
    if (!full_wants(ctx, "head_product"))
        return XP_OK;
    for (size_t i = 0; i < n; i++) {
        head h = {.ctx = ctx, .s = &list[i]};
        h.targets = calloc((size_t)h.s->n_rows, sizeof *h.targets);
        const xp_status status =
            h.targets != NULL ? check_products(&h) : xp_error(XP_ENOMEM, "check_full: no memory");
        full_tensor_destroy(ctx, &h.x);
        full_tensor_destroy(ctx, &h.w);
        full_tensor_destroy(ctx, &h.dlogits);
        xp_device_free(ctx->device, h.out);
        free(h.targets);
        XP_TRY(status);
    }
    return XP_OK;
}
