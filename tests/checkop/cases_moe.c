/* Router and its extra losses, histogram, silu * gate * prob. The gradient of the losses is checked
 * in tests/unit/fused/test_router_gradient.c. */
#include <stdlib.h>
#include "shapes.h"

/* ---- router ---------------------------------------------------------------------------------- */

enum { ROUTER_T, ROUTER_E, ROUTER_K, ROUTER_FUNC, ROUTER_NORM, ROUTER_SEQ };

static xp_status call_router(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_router_args args = {.n_tokens = s[ROUTER_T],
                                 .n_experts = (int)s[ROUTER_E],
                                 .top_k = (int)s[ROUTER_K],
                                 .score_func = (xp_score_func)s[ROUTER_FUNC],
                                 .route_norm = s[ROUTER_NORM] != 0,
                                 .route_scale = 1.5F,
                                 .logits = ck_at(call, "logits"),
                                 .bias = ck_at(call, "bias"),
                                 .forced = ck_at(call, "forced"),
                                 .scores = ck_at(call, "scores"),
                                 .topk_idx = ck_at(call, "topk_idx"),
                                 .topk_weight = ck_at(call, "weight"),
                                 .lse = ck_at(call, "lse")};
    return call->ops->router_forward(call->stream, &args);
}

static xp_status call_router_backward(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_router_backward_args args = {.n_tokens = s[ROUTER_T],
                                          .n_experts = (int)s[ROUTER_E],
                                          .top_k = (int)s[ROUTER_K],
                                          .score_func = (xp_score_func)s[ROUTER_FUNC],
                                          .route_norm = s[ROUTER_NORM] != 0,
                                          .route_scale = 1.5F,
                                          .scores = ck_at(call, "scores"),
                                          .topk_idx = ck_at(call, "topk_idx"),
                                          .d_topk_weight = ck_at(call, "dweight"),
                                          .seq_len = s[ROUTER_SEQ],
                                          .aux_density = ck_at(call, "density"),
                                          .lse = ck_at(call, "lse"),
                                          .z_scale = 0.2F,
                                          .dlogits = ck_at(call, "dlogits")};
    return call->ops->router_backward(call->stream, &args);
}

/* ids of a forced run: different ones in a row, in no order. */
static int32_t *forced_ids(int64_t n_tokens, int64_t n_experts, int64_t top_k) {
    int32_t *ids = calloc((size_t)(n_tokens * top_k + 1), sizeof *ids);
    for (int64_t i = 0; ids != NULL && i < n_tokens * top_k; i++)
        ids[i] = (int32_t)((i / top_k * 7 + n_experts * 4 - i % top_k) % n_experts);
    return ids;
}

static void begin_router(ck_case *c, const char *op, xp_status (*call)(const ck_call *),
                         const int64_t *size, const char *what) {
    ck_case_init(c, op, call);
    for (int i = 0; i <= ROUTER_SEQ; i++)
        c->size[i] = size[i];
    c->bytes = 8.0 * (double)(size[ROUTER_T] * (size[ROUTER_E] + size[ROUTER_K]));
    snprintf(c->shape, sizeof c->shape, "%lld tokens, %lld of %lld experts, %s%s%s",
             (long long)size[ROUTER_T], (long long)size[ROUTER_K], (long long)size[ROUTER_E],
             size[ROUTER_FUNC] ? "sigmoid" : "softmax", size[ROUTER_NORM] ? " norm" : "", what);
}

/* kind: 0 plain, 1 bias and lse, 2 forced */
static void router_cases(ck_context *ctx, const int64_t *size, int kind) {
    static const char *const whats[] = {"", " bias lse", " forced"};
    const int64_t t = size[ROUTER_T], e = size[ROUTER_E], k = size[ROUTER_K];
    int32_t *ids = forced_ids(t, e, k);
    if (ids == NULL)
        return;
    ck_case forward, backward;
    begin_router(&forward, "router_forward", call_router, size, whats[kind]);
    ck_in(&forward, "logits", XP_F32, t * e)->limit = 2;
    if (kind == 1) {
        ck_in(&forward, "bias", XP_F32, e)->limit = 0.1;
        ck_out(&forward, "lse", XP_F32, t, CK_CHAIN);
    }
    if (kind == 2)
        ck_given(&forward, "forced", XP_I32, t * k, ids);
    ck_buffer *scores = ck_out(&forward, "scores", XP_F32, t * e, CK_CHAIN);
    scores->on = kind == 0 ? "logits" : NULL;
    ck_out(&forward, "topk_idx", XP_I32, t * k, CK_EXACT);
    ck_out(&forward, "weight", XP_F32, t * k, CK_CHAIN);
    ck_run(ctx, &forward);

    begin_router(&backward, "router_backward", call_router_backward, size, whats[kind]);
    backward.forward = &forward;
    ck_saved(&backward, "scores", XP_F32, t * e);
    ck_saved(&backward, "topk_idx", XP_I32, t * k);
    ck_in(&backward, "dweight", XP_F32, t * k);
    if (kind == 1) {
        ck_saved(&backward, "lse", XP_F32, t);
        ck_in(&backward, "density", XP_F32, t / size[ROUTER_SEQ] * e);
    }
    ck_buffer *dlogits = ck_out(&backward, "dlogits", XP_F32, t * e, CK_CHAIN);
    dlogits->on = kind == 0 ? "scores" : NULL;
    ck_run(ctx, &backward);
    if (kind == 2 && t > 0)
        ck_gradient(ctx, &forward, &backward, 2e-3);
    free(ids);
}

static void check_router(ck_context *ctx) {
    static const int64_t shapes[][4] = {{0, 8, 2, 1},     {1, 1, 1, 1},   {3, 7, 7, 3},
                                        {130, 33, 5, 13}, {65, 64, 8, 5}, {12, 5, 1, 4},
                                        {20, 128, 8, 10}, {6, 300, 9, 3}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int v = 0; v < 12; v++) {
            const int64_t size[] = {shapes[i][0], shapes[i][1], shapes[i][2],
                                    v & 1,        (v >> 1) & 1, shapes[i][3]};
            router_cases(ctx, size, v >> 2);
        }
}

static xp_status call_router_losses(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_router_losses_args args = {.n_tokens = s[ROUTER_T],
                                        .seq_len = s[ROUTER_SEQ],
                                        .n_experts = (int)s[ROUTER_E],
                                        .top_k = (int)s[ROUTER_K],
                                        .scores = ck_at(call, "scores"),
                                        .topk_idx = ck_at(call, "topk_idx"),
                                        .targets = ck_at(call, "targets"),
                                        .loss_scale = 0.01F,
                                        .aux_coeff = 0.5F,
                                        .z_coeff = 0.25F,
                                        .lse = ck_at(call, "lse"),
                                        .aux_density = ck_at(call, "density"),
                                        .losses = ck_at(call, "losses")};
    return call->ops->router_losses(call->stream, &args);
}

/* Every fifth target is not valid. */
static void router_losses_case(ck_context *ctx, const int64_t *size, bool aux, bool z) {
    const int64_t t = size[ROUTER_T], e = size[ROUTER_E], k = size[ROUTER_K];
    int32_t *targets = calloc((size_t)(t + 1), sizeof *targets);
    if (targets == NULL)
        return;
    for (int64_t i = 0; i < t; i++)
        targets[i] = i % 5 == 3 ? -1 : (int32_t)i;
    ck_case c;
    ck_case_init(&c, "router_losses", call_router_losses);
    for (int i = 0; i <= ROUTER_SEQ; i++)
        c.size[i] = size[i];
    c.bytes = 4.0 * (double)(t * (e + k));
    snprintf(c.shape, sizeof c.shape, "%lld tokens in rows of %lld, %lld of %lld experts%s%s",
             (long long)t, (long long)size[ROUTER_SEQ], (long long)k, (long long)e,
             aux ? " aux" : "", z ? " z" : "");
    ck_given(&c, "targets", XP_I32, t, targets);
    if (aux) {
        ck_in(&c, "scores", XP_F32, t * e)->fill = CK_POSITIVE;
        ck_index(&c, "topk_idx", t * k, e);
        ck_out(&c, "density", XP_F32, t / size[ROUTER_SEQ] * e, CK_ROUNDED);
    }
    if (z)
        ck_inout(&c, "lse", XP_F32, t, CK_EXACT);
    ck_inout(&c, "losses", XP_F64, 2, CK_SUM)->fill = CK_POSITIVE;
    ck_run(ctx, &c);
    free(targets);
}

static void check_router_losses(ck_context *ctx) {
    static const int64_t shapes[][4] = {
        {0, 8, 2, 1}, {1, 1, 1, 1}, {12, 7, 7, 3}, {130, 33, 5, 13}, {40, 128, 8, 20}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int v = 1; v < 4; v++) {
            const int64_t size[] = {shapes[i][0], shapes[i][1], shapes[i][2], 0, 0, shapes[i][3]};
            router_losses_case(ctx, size, (v & 1) != 0, (v & 2) != 0);
        }
}

/* ---- gradients of a bf16 router's logits ------------------------------------------------------ */

enum { LINEAR_T, LINEAR_E, LINEAR_D, LINEAR_GRAD, LINEAR_ACC, LINEAR_PARTS };

static xp_status call_router_linear(const ck_call *call) {
    const int64_t *s = call->c->size;
    xp_router_linear_args args = {.n_tokens = s[LINEAR_T],
                                  .dim = s[LINEAR_D],
                                  .n_experts = (int)s[LINEAR_E],
                                  .dlogits = ck_at(call, "dlogits"),
                                  .x = ck_at(call, "x"),
                                  .gate = ck_at(call, "gate"),
                                  .dx = ck_at(call, "dx"),
                                  .d_gate = ck_at(call, "dgate"),
                                  .grad_dtype = (xp_dtype)s[LINEAR_GRAD],
                                  .acc = s[LINEAR_ACC] != 0,
                                  .scratch = ck_at(call, "scratch")};
    if (s[LINEAR_PARTS]) {
        args.part = XP_ROUTER_ROWS;
        XP_TRY(call->ops->router_linear_backward(call->stream, &args));
        args.part = XP_ROUTER_GATE;
    }
    return call->ops->router_linear_backward(call->stream, &args);
}

static void router_linear_case(ck_context *ctx, const int64_t *size) {
    const int64_t t = size[LINEAR_T], e = size[LINEAR_E], d = size[LINEAR_D];
    const xp_dtype grad = (xp_dtype)size[LINEAR_GRAD];
    ck_case c;
    ck_case_init(&c, "router_linear_backward", call_router_linear);
    for (int i = 0; i <= LINEAR_PARTS; i++)
        c.size[i] = size[i];
    c.bytes = (double)t * (6.0 * (double)d + 4.0 * (double)e);
    snprintf(c.shape, sizeof c.shape, "%lld tokens of %lld, %lld experts, %s%s%s", (long long)t,
             (long long)d, (long long)e, xp_dtype_name(grad), size[LINEAR_ACC] ? " acc" : "",
             size[LINEAR_PARTS] ? ", in parts" : "");
    ck_in(&c, "dlogits", XP_F32, t * e);
    ck_in(&c, "x", XP_BF16, t * d);
    ck_in(&c, "gate", XP_BF16, e * d);
    ck_inout(&c, "dx", XP_BF16, t * d, CK_SUM);
    if (size[LINEAR_ACC])
        ck_inout(&c, "dgate", grad, e * d, CK_SUM);
    else
        ck_out(&c, "dgate", grad, e * d, CK_SUM);
    ck_scratch(&c, "scratch", XP_F32,
               (int64_t)(xp_router_linear_scratch(t, (int)e, d) / sizeof(float)) + 1);
    ck_run(ctx, &c);
}

static void check_router_linear(ck_context *ctx) {
    static const int64_t shapes[][3] = {{0, 3, 8},    {1, 1, 1},     {3, 7, 5},     {130, 16, 64},
                                        {65, 64, 40}, {200, 33, 24}, {257, 128, 96}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int v = 0; v < 8; v++) {
            const int64_t size[] = {shapes[i][0], shapes[i][1],
                                    shapes[i][2], v & 1 ? XP_BF16 : XP_F32,
                                    v >> 1 & 1,   v >> 2};
            router_linear_case(ctx, size);
        }
}

/* ---- histogram ------------------------------------------------------------------------------- */

static xp_status call_histogram(const ck_call *call) {
    const xp_histogram_args args = {.n = call->c->size[0],
                                    .n_experts = (int)call->c->size[1],
                                    .ids = ck_at(call, "ids"),
                                    .counts = ck_at(call, "counts"),
                                    .acc = call->c->size[2] != 0};
    return call->ops->histogram(call->stream, &args);
}

static void histogram_case(ck_context *ctx, int64_t n, int64_t n_experts, bool acc) {
    int32_t *ids = calloc((size_t)(n + 1), sizeof *ids);
    if (ids == NULL)
        return;
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i * 2654435761LL % (n_experts + 1)) - 1; /* -1: no assignment */
    ck_case c;
    ck_case_init(&c, "histogram", call_histogram);
    c.size[0] = n;
    c.size[1] = n_experts;
    c.size[2] = acc;
    c.bytes = 4.0 * (double)n;
    ck_given(&c, "ids", XP_I32, n, ids);
    if (acc) {
        ck_buffer *counts = ck_inout(&c, "counts", XP_I64, n_experts, CK_EXACT);
        counts->fill = CK_INDEX;
        counts->limit = 1000;
    } else {
        ck_out(&c, "counts", XP_I64, n_experts, CK_EXACT);
    }
    snprintf(c.shape, sizeof c.shape, "%lld ids of %lld%s", (long long)n, (long long)n_experts,
             acc ? " acc" : "");
    ck_run(ctx, &c);
    free(ids);
}

/* ---- silu * gate * prob ---------------------------------------------------------------------- */

enum { SILU_ROWS, SILU_DIM, SILU_DTYPE, SILU_HALVES };

static xp_silu_gate_prob_args silu_args(const ck_call *call, const char *a, const char *b) {
    const int64_t *s = call->c->size;
    const size_t half = (size_t)s[SILU_DIM] * xp_dtype_bytes((xp_dtype)s[SILU_DTYPE]);
    char *first = ck_at(call, a);
    return (xp_silu_gate_prob_args){.n_rows = s[SILU_ROWS],
                                    .dim = s[SILU_DIM],
                                    .n_rows_device = ck_at(call, "n_rows"),
                                    .a = first,
                                    .b = s[SILU_HALVES] ? first + half : ck_at(call, b),
                                    .ld = s[SILU_DIM] * (s[SILU_HALVES] ? 2 : 1),
                                    .p = ck_at(call, "p"),
                                    .h = ck_at(call, "h"),
                                    .dtype = (xp_dtype)s[SILU_DTYPE]};
}

static xp_status call_silu(const ck_call *call) {
    const xp_silu_gate_prob_args args = silu_args(call, "a", "b");
    return call->ops->silu_gate_prob_forward(call->stream, &args);
}

static xp_status call_silu_backward(const ck_call *call) {
    const int64_t *s = call->c->size;
    const size_t half = (size_t)s[SILU_DIM] * xp_dtype_bytes((xp_dtype)s[SILU_DTYPE]);
    char *da = ck_at(call, "da");
    const xp_silu_gate_prob_backward_args args = {.forward = silu_args(call, "a", "b"),
                                                  .dh = ck_at(call, "dh"),
                                                  .da = da,
                                                  .db = s[SILU_HALVES] ? da + half
                                                                       : ck_at(call, "db"),
                                                  .ldd = s[SILU_DIM] * (s[SILU_HALVES] ? 2 : 1),
                                                  .dp = ck_at(call, "dp")};
    return call->ops->silu_gate_prob_backward(call->stream, &args);
}

static void begin_silu(ck_case *c, const char *op, xp_status (*call)(const ck_call *),
                       const int64_t *size, double bytes_an_element) {
    ck_case_init(c, op, call);
    for (int i = 0; i <= SILU_HALVES; i++)
        c->size[i] = size[i];
    const xp_dtype dtype = (xp_dtype)size[SILU_DTYPE];
    const int64_t n = size[SILU_ROWS] * size[SILU_DIM];
    c->bytes = bytes_an_element * (double)n * (double)xp_dtype_bytes(dtype);
    snprintf(c->shape, sizeof c->shape, "%lldx%lld %s%s", (long long)size[SILU_ROWS],
             (long long)size[SILU_DIM], xp_dtype_name(dtype), size[SILU_HALVES] ? " halves" : "");
    ck_in(c, "a", dtype, size[SILU_HALVES] ? 2 * n : n)->limit = 3;
    if (!size[SILU_HALVES])
        ck_in(c, "b", dtype, n);
}

static ck_case silu_forward(ck_context *ctx, const int64_t *size) {
    const int64_t rows = size[SILU_ROWS];
    const int32_t valid = (int32_t)(rows - rows / 4);
    ck_case forward;
    begin_silu(&forward, "silu_gate_prob_forward", call_silu, size, 3);
    if (size[SILU_HALVES] != 0)
        ck_in(&forward, "p", XP_F32, rows);
    else {
        ck_given(&forward, "n_rows", XP_I32, 1, &valid);
        forward.bytes *= 0.75;
    }
    ck_inout(&forward, "h", (xp_dtype)size[SILU_DTYPE], rows * size[SILU_DIM], CK_ROUNDED);
    ck_run(ctx, &forward);
    return forward;
}

/* halves: a and b in one matrix, gradients and h in place, no rows on the device; else everything
 * apart. */
static void silu_cases(ck_context *ctx, const int64_t *size) {
    const xp_dtype dtype = (xp_dtype)size[SILU_DTYPE];
    const int64_t rows = size[SILU_ROWS], n = rows * size[SILU_DIM];
    const int32_t valid = (int32_t)(rows - rows / 4);
    const bool halves = size[SILU_HALVES] != 0;
    ck_case backward;
    const ck_case forward = silu_forward(ctx, size);

    begin_silu(&backward, "silu_gate_prob_backward", call_silu_backward, size, halves ? 6 : 5);
    if (halves)
        ck_in(&backward, "p", XP_F32, rows);
    else {
        ck_given(&backward, "n_rows", XP_I32, 1, &valid);
        backward.bytes *= 0.75;
    }
    ck_in(&backward, "dh", dtype, n);
    if (halves) {
        ck_out(&backward, "da", dtype, 2 * n, CK_CHAIN)->on = "a";
        ck_out(&backward, "h", dtype, n, CK_ROUNDED)->on = "dh";
        ck_out(&backward, "dp", XP_F32, rows, CK_SUM);
    } else {
        ck_inout(&backward, "da", dtype, n, CK_CHAIN);
        ck_inout(&backward, "db", dtype, n, CK_CHAIN);
    }
    ck_run(ctx, &backward);
    if (halves && dtype == XP_F32 && n > 0) {
        ck_case apart = forward; /* h is an output there */
        apart.buffers[ck_find(&apart, "h")].role = CK_OUT;
        backward.buffers[ck_find(&backward, "h")].name = "h_again";
        ck_gradient(ctx, &apart, &backward, 2e-3);
    }
}

static void check_silu(ck_context *ctx) {
    /* from 264 on: 33, 512 and 513 vectors of bf16, at the ends of what a block of a GPU owns */
    static const int64_t shapes[][2] = {{0, 8},    {1, 1},   {5, 16},  {3, 45},   {130, 384},
                                        {9, 2100}, {5, 256}, {7, 264}, {6, 4096}, {3, 4104}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int v = 0; v < 4; v++) {
            const int64_t size[] = {shapes[i][0], shapes[i][1], v & 1 ? XP_BF16 : XP_F32, v >> 1};
            silu_cases(ctx, size);
        }
    /* more vectors than a GPU's grid has threads, of a number of rows that the device knows */
    const int64_t many[] = {31000, 768, XP_F32, 0};
    if (ctx->gpu)
        (void)silu_forward(ctx, many);
}

void ck_silu_at(ck_context *ctx, int64_t n_rows, int64_t dim, xp_dtype dtype) {
    const int64_t size[] = {n_rows, dim, (int64_t)dtype, 1};
    silu_cases(ctx, size);
}

void ck_router_at(ck_context *ctx, int64_t n_tokens, int64_t n_experts, int64_t top_k) {
    const int64_t size[] = {n_tokens, n_experts, top_k, XP_SCORE_SOFTMAX, 1, n_tokens};
    router_cases(ctx, size, 0);
}

void ck_router_linear_at(ck_context *ctx, int64_t n_tokens, int64_t n_experts, int64_t dim) {
    const int64_t size[] = {n_tokens, n_experts, dim, XP_BF16, 0};
    router_linear_case(ctx, size);
}

void ck_histogram_at(ck_context *ctx, int64_t n, int64_t n_experts) {
    histogram_case(ctx, n, n_experts, true);
}

void ck_moe_cases(ck_context *ctx) {
    if (ctx->bench && ctx->gpu) {
        const int64_t router[] = {16384, 128, 8, XP_SCORE_SOFTMAX, 1, 4096};
        const int64_t silu[][4] = {
            {16384, 768, XP_BF16, 1}, {262144, 768, XP_BF16, 1}, {262144, 768, XP_BF16, 0}};
        const int64_t linear[][6] = {{16384, 16, 2048, XP_BF16}, {16384, 128, 2048, XP_BF16}};
        router_cases(ctx, router, 0);
        router_linear_case(ctx, linear[0]);
        router_linear_case(ctx, linear[1]);
        histogram_case(ctx, 131072, 128, true);
        silu_cases(ctx, silu[0]);
        silu_cases(ctx, silu[1]);
        silu_cases(ctx, silu[2]);
        return;
    }
    if (ctx->bench) {
        const int64_t router[] = {4096, 32, 4, XP_SCORE_SOFTMAX, 1, 512};
        const int64_t linear[] = {256, 32, 512, XP_BF16, 0};
        router_cases(ctx, router, 0);
        router_linear_case(ctx, linear);
        histogram_case(ctx, 16384, 32, true);
        const int64_t silu[] = {16384, 384, XP_F32, 1};
        silu_cases(ctx, silu);
        return;
    }
    check_router(ctx);
    check_router_losses(ctx);
    check_router_linear(ctx);
    histogram_case(ctx, 0, 3, false);
    histogram_case(ctx, 1, 1, true);
    histogram_case(ctx, 1000, 33, false);
    histogram_case(ctx, 1000, 33, true);
    check_silu(ctx);
}
