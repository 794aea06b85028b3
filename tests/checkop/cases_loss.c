/* Cross-entropy, its gradient in place of the logits. */
#include <stdlib.h>
#include "shapes.h"

enum { LOSS_ROWS, LOSS_VOCAB, LOSS_DTYPE };

static xp_cross_entropy_args loss_args(const ck_call *call) {
    return (xp_cross_entropy_args){.n_rows = call->c->size[LOSS_ROWS],
                                   .vocab = call->c->size[LOSS_VOCAB],
                                   .targets = ck_at(call, "targets"),
                                   .loss = ck_at(call, "loss"),
                                   .grad_scale = ck_at(call, "scale"),
                                   .dtype = (xp_dtype)call->c->size[LOSS_DTYPE]};
}

static xp_status call_loss(const ck_call *call) {
    xp_cross_entropy_args args = loss_args(call);
    args.logits = ck_at(call, "logits");
    return call->ops->cross_entropy(call->stream, &args);
}

static xp_status call_gradient(const ck_call *call) {
    xp_cross_entropy_args args = loss_args(call);
    args.logits = ck_at(call, "dlogits");
    args.write_grad = true;
    if (args.logits != ck_at(call, "logits")) {
        const size_t n = (size_t)(args.n_rows * args.vocab) * xp_dtype_bytes(args.dtype);
        XP_TRY(xp_copy(call->stream, args.logits, ck_at(call, "logits"), n));
    }
    return call->ops->cross_entropy(call->stream, &args);
}

static void begin(ck_case *c, xp_status (*call)(const ck_call *), const int64_t *size,
                  const int32_t *targets, const char *what, double bytes_an_element) {
    ck_case_init(c, "cross_entropy", call);
    for (int i = 0; i <= LOSS_DTYPE; i++)
        c->size[i] = size[i];
    const xp_dtype dtype = (xp_dtype)size[LOSS_DTYPE];
    const int64_t n = size[LOSS_ROWS] * size[LOSS_VOCAB];
    c->bytes = bytes_an_element * (double)n * (double)xp_dtype_bytes(dtype);
    snprintf(c->shape, sizeof c->shape, "%lldx%lld %s%s", (long long)size[LOSS_ROWS],
             (long long)size[LOSS_VOCAB], xp_dtype_name(dtype), what);
    ck_in(c, "logits", dtype, n)->limit = 3;
    ck_given(c, "targets", XP_I32, size[LOSS_ROWS], targets);
    ck_out(c, "loss", XP_F32, size[LOSS_ROWS], CK_SUM);
}

static void loss_cases(ck_context *ctx, int64_t n_rows, int64_t vocab, xp_dtype dtype) {
    static const float scale = 0.125F;
    int32_t *targets = calloc((size_t)(n_rows + 1), sizeof *targets);
    float *dloss = calloc((size_t)(n_rows + 1), sizeof *dloss);
    if (targets == NULL || dloss == NULL) {
        free(targets);
        free(dloss);
        return;
    }
    for (int64_t r = 0; r < n_rows; r++) {
        /* every sixth is masked */
        targets[r] = r % 12 == 5 ? -1 : r % 6 == 5 ? -100 : (int32_t)(r * 7919 % vocab);
        dloss[r] = scale;
    }
    const int64_t size[] = {n_rows, vocab, (int64_t)dtype};
    ck_case forward, backward;
    begin(&forward, call_loss, size, targets, "", 1);
    ck_run(ctx, &forward);
    begin(&backward, call_gradient, size, targets, " gradient", 2);
    ck_given(&backward, "scale", XP_F32, 1, &scale);
    ck_out(&backward, "dlogits", dtype, n_rows * vocab, CK_CHAIN)->on = "logits";
    ck_run(ctx, &backward);
    if (dtype == XP_F32 && n_rows > 0 && vocab > 1) {
        ck_given(&backward, "dloss", XP_F32, n_rows,
                 dloss); /* says which gradient the harness compares with */
        ck_gradient(ctx, &forward, &backward, 2e-3);
    }
    free(targets);
    free(dloss);
}

void ck_loss_at(ck_context *ctx, int64_t n_rows, int64_t vocab, xp_dtype dtype) {
    loss_cases(ctx, n_rows, vocab, dtype);
}

void ck_loss_cases(ck_context *ctx) {
    if (ctx->bench && ctx->gpu) {
        loss_cases(ctx, 1766, 151936, XP_BF16);
        loss_cases(ctx, 1024, 50304, XP_BF16);
        return;
    }
    if (ctx->bench) {
        loss_cases(ctx, 1024, 8192, XP_F32);
        return;
    }
    static const int64_t shapes[][2] = {
        {0, 8},     {1, 1},     {7, 2},     {13, 45},    {30, 1100},  {9, 3000},  {12, 8192},
        {25, 8200}, {1, 50304}, {3, 50306}, {7, 151936}, {2, 151937}, {3, 262144}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        loss_cases(ctx, shapes[i][0], shapes[i][1], XP_F32);
        loss_cases(ctx, shapes[i][0], shapes[i][1], XP_BF16);
    }
    /* several rows a cluster of one CTA, more than it has buffers a cluster of four */
    static const int64_t many[][2] = {{140, 32768}, {134, 80000}};
    for (size_t i = 0; ctx->gpu && i < sizeof many / sizeof many[0]; i++)
        loss_cases(ctx, many[i][0], many[i][1], XP_BF16);
}
