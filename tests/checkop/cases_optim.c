/* AdamW and the reductions. */
#include <math.h>
#include <string.h>
#include "shapes.h"

enum { OPTIM_N, OPTIM_X, OPTIM_Y, OPTIM_ACC, MOST_PARTS = 300 };

static xp_status call_adamw(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_adamw_args args = {.n = s[OPTIM_N],
                                .param = ck_at(call, "param"),
                                .param_dtype = (xp_dtype)s[OPTIM_Y],
                                .remainder = ck_at(call, "remainder"),
                                .grad = ck_at(call, "grad"),
                                .grad_dtype = (xp_dtype)s[OPTIM_X],
                                .m = ck_at(call, "m"),
                                .v = ck_at(call, "v"),
                                .lr = 1e-2F,
                                .beta1 = 0.9F,
                                .beta2 = 0.95F,
                                .eps = 1e-8F,
                                .weight_decay = 0.1F,
                                .step = 3,
                                .grad_scale = ck_at(call, "scale")};
    return call->ops->adamw(call->stream, &args);
}

static xp_remainder_args remainder_args(const ck_call *call) {
    return (xp_remainder_args){.n = call->c->size[OPTIM_N],
                               .master = ck_at(call, "master"),
                               .param = ck_at(call, "param"),
                               .remainder = ck_at(call, "remainder"),
                               .v = ck_at(call, "v")};
}

static xp_status call_split(const ck_call *call) {
    const xp_remainder_args args = remainder_args(call);
    return call->ops->remainder_split(call->stream, &args);
}

static xp_status call_join(const ck_call *call) {
    const xp_remainder_args args = remainder_args(call);
    return call->ops->remainder_join(call->stream, &args);
}

/* Weights that are split before and joined again after: what is compared is fp32. */
static xp_status call_adamw_on_masters(const ck_call *call) {
    XP_TRY(call_split(call));
    XP_TRY(call_adamw(call));
    return call_join(call);
}

static xp_status call_clip_scale(const ck_call *call) {
    const xp_clip_scale_args args = {.n = call->c->size[OPTIM_N],
                                     .squares = ck_at(call, "squares"),
                                     .max_norm = (double)call->c->value[0],
                                     .stop = {ck_at(call, "first"), ck_at(call, "second")},
                                     .scale = ck_at(call, "scale")};
    return call->ops->clip_scale(call->stream, &args);
}

static xp_status call_sum_squares(const ck_call *call) {
    const xp_sum_squares_args args = {.n = call->c->size[OPTIM_N],
                                      .x = ck_at(call, "x"),
                                      .dtype = (xp_dtype)call->c->size[OPTIM_X],
                                      .out = ck_at(call, "out"),
                                      .acc = call->c->size[OPTIM_ACC] != 0,
                                      .scratch = ck_at(call, "scratch")};
    return call->ops->sum_squares(call->stream, &args);
}

/* n elements in `n_parts` parts of various lengths, every third one empty, with one element between two: so
 * that they start anywhere, or (`aligned`) gaps that leave them on multiples of 16 bytes. */
static const xp_ops_part *parts_of(int64_t n, int n_parts, bool aligned) {
    static xp_ops_part parts[MOST_PARTS]; /* kept until the op has run */
    int64_t at = 0;
    for (int i = 0; i < n_parts; i++) {
        const int64_t left = n - at, each = 2 * (n / n_parts);
        int64_t take = i % 3 == 2 ? 0 : each / (1 + i % 2) + i;
        take = take < left ? take : left;
        parts[i] = (xp_ops_part){.first = at, .n = i == n_parts - 1 ? left : take};
        at += parts[i].n + 1;
        at = aligned ? (at + 15) / 16 * 16 : at;
        at = at < n ? at : n;
        at = aligned ? at / 16 * 16 : at;
    }
    return parts;
}

static xp_status call_sum_squares_parts(const ck_call *call) {
    const int n_parts = (int)call->c->size[OPTIM_ACC];
    const xp_sum_squares_parts_args args = {
        .n_parts = n_parts,
        .parts = parts_of(call->c->size[OPTIM_N], n_parts, call->c->size[OPTIM_Y] != 0),
        .x = ck_at(call, "x"),
        .dtype = (xp_dtype)call->c->size[OPTIM_X],
        .out = ck_at(call, "out"),
        .scratch = ck_at(call, "scratch")};
    return call->ops->sum_squares_parts(call->stream, &args);
}

static xp_status call_axpy(const ck_call *call) {
    const xp_axpy_args args = {.n = call->c->size[OPTIM_N],
                               .alpha = -1.5F,
                               .x = ck_at(call, "x"),
                               .y = ck_at(call, "y"),
                               .x_dtype = (xp_dtype)call->c->size[OPTIM_X],
                               .y_dtype = (xp_dtype)call->c->size[OPTIM_Y],
                               .acc = call->c->size[OPTIM_ACC] != 0};
    return call->ops->axpy(call->stream, &args);
}

static xp_status call_sum(const ck_call *call) {
    const xp_sum_args args = {
        .n = call->c->size[OPTIM_N], .x = ck_at(call, "x"), .out = ck_at(call, "out")};
    return call->ops->sum(call->stream, &args);
}

static xp_status call_draw(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_draw_args args = {.seed = 7,
                               .stream = 0x123456789abcdefU,
                               .first = (uint64_t)s[1],
                               .n = s[OPTIM_N],
                               .std = s[2] == 0 ? 0.0F : 0.02F,
                               .out = ck_at(call, "out")};
    return call->ops->draw(call->stream, &args);
}

static void begin(ck_case *c, const char *op, xp_status (*call)(const ck_call *), int64_t n,
                  xp_dtype x, xp_dtype y, bool acc) {
    ck_case_init(c, op, call);
    const int64_t size[] = {n, (int64_t)x, (int64_t)y, acc};
    for (int i = 0; i <= OPTIM_ACC; i++)
        c->size[i] = size[i];
    snprintf(c->shape, sizeof c->shape, "%lld %s > %s%s", (long long)n, xp_dtype_name(x),
             xp_dtype_name(y), acc ? " acc" : "");
}

/* Two in an element: checkop has no type of 16 bits that takes any. */
static int64_t remainder_words(int64_t n) {
    return (n + 1) / 2;
}

static void adamw_case(ck_context *ctx, int64_t n, xp_dtype grad, xp_dtype param, float scale) {
    const bool splits = param == XP_BF16;
    const ck_tolerance chain = isnan(scale) ? CK_EXACT : CK_CHAIN;
    ck_case c;
    begin(&c, "adamw", splits && !ctx->bench ? call_adamw_on_masters : call_adamw, n, grad, param,
          false);
    if (isnan(scale))
        snprintf(c.shape + strlen(c.shape), sizeof c.shape - strlen(c.shape), " skipped");
    c.bytes = (double)n * (24.0 + (double)xp_dtype_bytes(grad));
    ck_in(&c, "grad", grad, n);
    ck_given(&c, "scale", XP_F32, 1, &scale);
    ck_inout(&c, "m", XP_F32, n, CK_ROUNDED);
    ck_inout(&c, "v", XP_F32, n, CK_ROUNDED)->fill = CK_POSITIVE;
    if (splits && !ctx->bench) {
        ck_inout(&c, "master", XP_F32, n, chain);
        ck_out(&c, "param", XP_BF16, n, chain);
    } else { /* in and out: a skipped update must leave it alone */
        ck_inout(&c, "param", param, n, chain);
    }
    if (splits)
        ck_scratch(&c, "remainder", XP_I32, remainder_words(n));
    ck_run(ctx, &c);
}

/* Both ways, exact. n is even: the remainder is compared, and words have no half. */
static void remainder_cases(ck_context *ctx, int64_t n) {
    const double most = 2147483648.0;
    ck_case c;
    begin(&c, "remainder_split", call_split, n, XP_F32, XP_BF16, false);
    c.bytes = 16.0 * (double)n;
    ck_in(&c, "master", XP_F32, n);
    ck_inout(&c, "v", XP_F32, n, CK_EXACT);
    ck_out(&c, "param", XP_BF16, n, CK_EXACT);
    ck_out(&c, "remainder", XP_I32, remainder_words(n), CK_EXACT);
    ck_run(ctx, &c);
    begin(&c, "remainder_join", call_join, n, XP_BF16, XP_F32, false);
    c.bytes = 16.0 * (double)n;
    ck_in(&c, "param", XP_BF16, n);
    ck_index(&c, "remainder", remainder_words(n), 0)->limit = most;
    ck_inout(&c, "v", XP_F32, n, CK_EXACT);
    ck_out(&c, "master", XP_F32, n, CK_EXACT);
    ck_run(ctx, &c);
}

/* Sums of squares of a norm well below and above max_norm; 0: not clipped. */
static void clip_case(ck_context *ctx, int64_t n, float max_norm, int32_t second) {
    static const int32_t first = 0;
    ck_case c;
    begin(&c, "clip_scale", call_clip_scale, n, XP_F64, XP_F32, false);
    snprintf(c.shape, sizeof c.shape, "%lld parts, max_norm %g", (long long)n, (double)max_norm);
    c.value[0] = max_norm;
    ck_in(&c, "squares", XP_F64, n)->fill = CK_POSITIVE;
    if (n > 1) { /* else none */
        ck_given(&c, "first", XP_I32, 1, &first);
        ck_given(&c, "second", XP_I32, 1, &second);
    }
    ck_out(&c, "scale", XP_F32, 1, CK_EXACT);
    ck_run(ctx, &c);
}

static void sum_parts_case(ck_context *ctx, int64_t n, int n_parts, xp_dtype dtype, bool aligned) {
    ck_case c;
    begin(&c, "sum_squares_parts", call_sum_squares_parts, n, dtype, XP_F64, false);
    c.size[OPTIM_ACC] = n_parts;
    c.size[OPTIM_Y] = aligned;
    snprintf(c.shape, sizeof c.shape, "%lld %s in %d %sparts", (long long)n, xp_dtype_name(dtype),
             n_parts, aligned ? "aligned " : "");
    c.bytes = (double)n * (double)xp_dtype_bytes(dtype);
    ck_in(&c, "x", dtype, n);
    ck_out(&c, "out", XP_F64, n_parts, CK_F64_SUM);
    ck_scratch(&c, "scratch", XP_F64,
               xp_sum_squares_parts_scratch(parts_of(n, n_parts, aligned), n_parts));
    ck_run(ctx, &c);
}

static void sum_cases(ck_context *ctx, int64_t n, xp_dtype dtype) {
    ck_case c;
    for (int acc = 0; acc < 2; acc++) {
        begin(&c, "sum_squares", call_sum_squares, n, dtype, XP_F64, acc);
        c.bytes = (double)n * (double)xp_dtype_bytes(dtype);
        ck_in(&c, "x", dtype, n);
        if (acc)
            ck_inout(&c, "out", XP_F64, 1, CK_F64_SUM);
        else
            ck_out(&c, "out", XP_F64, 1, CK_F64_SUM);
        ck_scratch(&c, "scratch", XP_F64, xp_sum_squares_scratch(n));
        ck_run(ctx, &c);
    }
    if (dtype != XP_F32)
        return;
    begin(&c, "sum", call_sum, n, dtype, XP_F64, false);
    c.bytes = 4.0 * (double)n;
    ck_in(&c, "x", dtype, n)->fill = CK_POSITIVE; /* no cancellation: the tolerance is of the sum */
    ck_out(&c, "out", XP_F64, 1, CK_F64_SUM);
    ck_run(ctx, &c);
}

static void axpy_case(ck_context *ctx, int64_t n, xp_dtype x, xp_dtype y, bool acc, bool in_place) {
    ck_case c;
    begin(&c, "axpy", call_axpy, n, x, y, acc);
    c.bytes = (double)n * (double)(xp_dtype_bytes(x) + xp_dtype_bytes(y) * (acc ? 2 : 1));
    ck_in(&c, "x", x, n);
    if (acc)
        ck_inout(&c, "y", y, n, CK_ROUNDED);
    else
        ck_out(&c, "y", y, n, CK_ROUNDED)->on = in_place ? "x" : NULL;
    ck_run(ctx, &c);
}

/* Exact: every device draws the same bits. */
static void draw_case(ck_context *ctx, int64_t n, int64_t first, bool ones) {
    ck_case c;
    ck_case_init(&c, "draw", call_draw);
    c.size[OPTIM_N] = n, c.size[1] = first, c.size[2] = !ones;
    snprintf(c.shape, sizeof c.shape, "%lld from %lld%s", (long long)n, (long long)first,
             ones ? " ones" : "");
    c.bytes = 4.0 * (double)n;
    ck_out(&c, "out", XP_F32, n, CK_EXACT);
    ck_run(ctx, &c);
}

void ck_optimizer_at(ck_context *ctx, int64_t n, xp_dtype dtype) {
    adamw_case(ctx, n, dtype, XP_BF16, 0.5F);
    sum_cases(ctx, n, dtype);
}

void ck_optim_cases(ck_context *ctx) {
    if (ctx->bench && ctx->gpu) {
        const int64_t n = 64 << 20;
        adamw_case(ctx, n, XP_BF16, XP_BF16, 0.5F);
        adamw_case(ctx, n, XP_F32, XP_BF16, 0.5F);
        remainder_cases(ctx, n);
        sum_cases(ctx, n, XP_BF16);
        sum_cases(ctx, n, XP_F32);
        sum_parts_case(ctx, n, 18, XP_BF16, true);
        axpy_case(ctx, n, XP_F32, XP_BF16, false, false);
        axpy_case(ctx, n, XP_BF16, XP_F32, true, false);
        draw_case(ctx, n, 0, false);
        return;
    }
    if (ctx->bench) {
        const int64_t n = 16 << 20;
        adamw_case(ctx, n, XP_F32, XP_F32, 0.5F);
        adamw_case(ctx, n, XP_F32, XP_BF16, 0.5F);
        sum_cases(ctx, n, XP_F32);
        axpy_case(ctx, n, XP_F32, XP_F32, true, false);
        draw_case(ctx, n, 0, false);
        return;
    }
    static const int64_t sizes[] = {0, 1, 15, 1000, 1025, 16384, 50001};
    static const xp_dtype types[] = {XP_F32, XP_BF16};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int t = 0; t < 4; t++) {
            const xp_dtype x = types[t & 1], y = types[t >> 1];
            adamw_case(ctx, sizes[i], x, y, 0.5F);
            axpy_case(ctx, sizes[i], x, y, true, false);
            axpy_case(ctx, sizes[i], x, y, false, false);
            if (x == y)
                axpy_case(ctx, sizes[i], x, y, false, true);
        }
        remainder_cases(ctx, sizes[i] / 2 * 2);
        sum_cases(ctx, sizes[i], XP_F32);
        sum_cases(ctx, sizes[i], XP_BF16);
        for (int aligned = 0; aligned < 2; aligned++) {
            sum_parts_case(ctx, sizes[i], 1, XP_BF16, aligned);
            sum_parts_case(ctx, sizes[i], 7, XP_F32, aligned);
            sum_parts_case(ctx, sizes[i], MOST_PARTS, XP_BF16, aligned);
        }
        adamw_case(ctx, sizes[i], XP_BF16, XP_BF16, NAN);
        adamw_case(ctx, sizes[i], XP_F32, XP_F32, NAN);
        draw_case(ctx, sizes[i], 0, false);
        draw_case(ctx, sizes[i], (int64_t)1 << 33, false);
        draw_case(ctx, sizes[i], 5, true);
    }
    for (int64_t n = 1; n <= 300; n += 23)
        for (int i = 0; i < 3; i++)
            clip_case(ctx, n, (float[]){0, 0.5F, 1000}[i], 0);
    clip_case(ctx, 24, 1, 3);          /* stopped */
    draw_case(ctx, 4000000, 1, false); /* many draws: also the rare ones of the tails */
}
