/* Embedding, RMSNorm, QK-norm and RoPE. */
#include <stdlib.h>
#include "shapes.h"

#define EPS 1e-6f

static const xp_dtype row_types[] = {XP_F32, XP_BF16};

static double row_bytes(int64_t n_rows, int64_t dim, xp_dtype dtype) {
    return (double)n_rows * (double)dim * (double)xp_dtype_bytes(dtype);
}

/* ---- embedding ------------------------------------------------------------------------------- */

/* size: T, D, V */
static xp_embed_args embed_args(const ck_call *call) {
    const int64_t *size = call->c->size;
    return (xp_embed_args){.n_tokens = size[0],
                           .dim = size[1],
                           .vocab = size[2],
                           .ids = ck_at(call, "ids"),
                           .table = ck_at(call, "table"),
                           .x = ck_at(call, "x"),
                           .dx = ck_at(call, "dx"),
                           .dtable = ck_at(call, "dtable"),
                           .dtype = (xp_dtype)size[3],
                           .dtable_dtype = (xp_dtype)size[4],
                           .acc = size[5] != 0,
                           .scratch = ck_at(call, "scratch")};
}
static xp_status call_embed_forward(const ck_call *call) {
    const xp_embed_args args = embed_args(call);
    return call->ops->embed_forward(call->stream, &args);
}
static xp_status call_embed_backward(const ck_call *call) {
    xp_embed_args args = embed_args(call);
    if (call->c->size[6]) { /* in two calls */
        args.sort_only = true;
        XP_TRY(call->ops->embed_backward(call->stream, &args));
        args.sort_only = false;
        args.sorted = true;
    }
    return call->ops->embed_backward(call->stream, &args);
}

/* ids below `used` occur: 1 gives one row all tokens. */
static void embed(ck_context *ctx, int64_t t, int64_t d, int64_t v, int64_t used, xp_dtype dtype) {
    ck_case forward;
    ck_case_init(&forward, "embed_forward", call_embed_forward);
    snprintf(forward.shape, sizeof forward.shape, "T=%lld D=%lld V=%lld used=%lld %s", (long long)t,
             (long long)d, (long long)v, (long long)used, xp_dtype_name(dtype));
    forward.size[0] = t, forward.size[1] = d, forward.size[2] = v, forward.size[3] = dtype;
    ck_index(&forward, "ids", t, used);
    ck_in(&forward, "table", dtype, v * d);
    ck_out(&forward, "x", dtype, t * d, CK_EXACT);
    forward.bytes = 2 * row_bytes(t, d, dtype);
    ck_run(ctx, &forward);

    for (int variant = 0; variant < (ctx->bench ? 2 : 4); variant++) {
        const int acc = variant % 2, parts = variant / 2;
        const xp_dtype grad = dtype == XP_BF16 && acc == 0 ? XP_BF16 : XP_F32;
        ck_case backward;
        ck_case_init(&backward, "embed_backward", call_embed_backward);
        snprintf(backward.shape, sizeof backward.shape,
                 "T=%lld D=%lld V=%lld used=%lld %s -> %s%s%s", (long long)t, (long long)d,
                 (long long)v, (long long)used, xp_dtype_name(dtype), xp_dtype_name(grad),
                 acc ? " acc" : "", parts ? ", in parts" : "");
        backward.size[0] = t, backward.size[1] = d, backward.size[2] = v, backward.size[3] = dtype;
        backward.size[4] = grad, backward.size[5] = acc, backward.size[6] = parts;
        ck_index(&backward, "ids", t, used);
        ck_in(&backward, "dx", dtype, t * d);
        if (acc)
            ck_inout(&backward, "dtable", grad, v * d, CK_SUM);
        else
            ck_out(&backward, "dtable", grad, v * d, CK_SUM);
        ck_scratch(&backward, "scratch", XP_I32, t + v + 1);
        backward.bytes = row_bytes(t, d, dtype) + row_bytes(v, d, grad);
        ck_run(ctx, &backward);
        if (variant == 0 && dtype == XP_F32 && t * d <= 4096)
            ck_gradient(ctx, &forward, &backward, 1e-3);
    }
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

/* size: N, D, dtype; backward also dw_dtype, acc, d_residual where dx lies */
static xp_status call_rmsnorm_forward(const ck_call *call) {
    const int64_t *size = call->c->size;
    const xp_rmsnorm_args args = {.n_rows = size[0],
                                  .dim = size[1],
                                  .eps = EPS,
                                  .x = ck_at(call, "x"),
                                  .residual = ck_at(call, "residual"),
                                  .w = ck_at(call, "w"),
                                  .sum = ck_at(call, "s"),
                                  .y = ck_at(call, "y"),
                                  .rstd = ck_at(call, "rstd"),
                                  .dtype = (xp_dtype)size[2]};
    return call->ops->rmsnorm_forward(call->stream, &args);
}
static xp_status call_rmsnorm_apply(const ck_call *call) {
    const int64_t *size = call->c->size;
    const xp_rmsnorm_apply_args args = {.n_rows = size[0],
                                        .dim = size[1],
                                        .s = ck_at(call, "x"),
                                        .w = ck_at(call, "w"),
                                        .rstd = ck_at(call, "rstd"),
                                        .y = ck_at(call, "y"),
                                        .dtype = (xp_dtype)size[2]};
    return call->ops->rmsnorm_apply(call->stream, &args);
}
static xp_status call_rmsnorm_backward(const ck_call *call) {
    const int64_t *size = call->c->size;
    xp_rmsnorm_backward_args args = {.n_rows = size[0],
                                     .dim = size[1],
                                     .s = ck_at(call, "x"),
                                     .w = ck_at(call, "w"),
                                     .dy = ck_at(call, "dy"),
                                     .rstd = ck_at(call, "rstd"),
                                     .d_residual = ck_at(call, "d_residual"),
                                     .dx = ck_at(call, "dx"),
                                     .dw = ck_at(call, "dw"),
                                     .dtype = (xp_dtype)size[2],
                                     .dw_dtype = (xp_dtype)size[3],
                                     .acc = size[4] != 0,
                                     .scratch = ck_at(call, "scratch")};
    if (args.acc) { /* in two calls, as a pass with two streams makes them */
        args.part = XP_NORM_ROWS;
        XP_TRY(call->ops->rmsnorm_backward(call->stream, &args));
        args.part = XP_NORM_WEIGHTS;
    }
    return call->ops->rmsnorm_backward(call->stream, &args);
}

/* What forward is given and how it lies in memory. */
typedef enum norm_variant {
    PLAIN = 0,
    RESIDUAL,
    SUM_ON_X,
    SUM_ON_RESIDUAL,
    STATISTICS_ONLY,
    N_VARIANTS
} norm_variant;

static void rmsnorm_case(ck_case *c, int64_t n, int64_t d, xp_dtype dtype, norm_variant variant) {
    static const char *const names[] = {"", " residual", " sum on x", " sum on residual",
                                        " statistics only"};
    const bool residual = variant == RESIDUAL || variant == SUM_ON_X || variant == SUM_ON_RESIDUAL;
    ck_case_init(c, "rmsnorm_forward", call_rmsnorm_forward);
    snprintf(c->shape, sizeof c->shape, "N=%lld D=%lld %s%s", (long long)n, (long long)d,
             xp_dtype_name(dtype), names[variant]);
    c->size[0] = n, c->size[1] = d, c->size[2] = dtype;
    ck_in(c, "x", dtype, n * d);
    ck_in(c, "w", dtype, d);
    if (residual) {
        ck_in(c, "residual", dtype, n * d);
        ck_buffer *s = ck_out(c, "s", dtype, n * d, CK_EXACT);
        s->on = variant == SUM_ON_X ? "x" : variant == SUM_ON_RESIDUAL ? "residual" : NULL;
    }
    if (variant != STATISTICS_ONLY)
        ck_out(c, "y", dtype, n * d, CK_ROUNDED);
    ck_out(c, "rstd", XP_F32, n, CK_ROUNDED);
    c->bytes = row_bytes(n, d, dtype) * (residual ? 4 : 2);
}

static void rmsnorm_backward_case(ck_case *c, const ck_case *forward, bool acc, bool residual,
                                  const char *dx_on) {
    const int64_t n = forward->size[0], d = forward->size[1];
    const xp_dtype dtype = (xp_dtype)forward->size[2],
                   dw = dtype == XP_BF16 && !acc ? XP_BF16 : XP_F32;
    ck_case_init(c, "rmsnorm_backward", call_rmsnorm_backward);
    snprintf(c->shape, sizeof c->shape, "N=%lld D=%lld %s%s%s%s%s", (long long)n, (long long)d,
             xp_dtype_name(dtype), acc ? " acc" : "", residual ? " residual" : "",
             dx_on == NULL ? "" : " dx on ", dx_on == NULL ? "" : dx_on);
    c->size[0] = n, c->size[1] = d, c->size[2] = dtype, c->size[3] = dw, c->size[4] = acc;
    c->forward = forward;
    ck_in(c, "x", dtype, n * d);
    ck_in(c, "w", dtype, d);
    ck_in(c, "dy", dtype, n * d);
    ck_saved(c, "rstd", XP_F32, n);
    if (residual)
        ck_in(c, "d_residual", dtype, n * d);
    ck_buffer *dx = ck_out(c, "dx", dtype, n * d, CK_SUM);
    dx->on = dx_on;
    dx->typical = 1.0; /* g - n mean(g n): nothing is left of it at D = 1 */
    if (acc)
        ck_inout(c, "dw", dw, d, CK_SUM);
    else
        ck_out(c, "dw", dw, d, CK_SUM);
    ck_scratch(c, "scratch", XP_F32, xp_rmsnorm_scratch(n, d));
    c->bytes = row_bytes(n, d, dtype) * (residual ? 4 : 3);
}

static void rmsnorm(ck_context *ctx, int64_t n, int64_t d, xp_dtype dtype) {
    ck_case forward, backward, apply;
    for (int variant = 0; variant < N_VARIANTS; variant++) {
        if (ctx->bench && variant > RESIDUAL)
            break;
        rmsnorm_case(&forward, n, d, dtype, (norm_variant)variant);
        ck_run(ctx, &forward);
    }
    rmsnorm_case(&forward, n, d, dtype, PLAIN);
    ck_case_init(&apply, "rmsnorm_apply", call_rmsnorm_apply);
    snprintf(apply.shape, sizeof apply.shape, "N=%lld D=%lld %s", (long long)n, (long long)d,
             xp_dtype_name(dtype));
    apply.size[0] = n, apply.size[1] = d, apply.size[2] = dtype;
    apply.forward = &forward;
    ck_in(&apply, "x", dtype, n * d);
    ck_in(&apply, "w", dtype, d);
    ck_saved(&apply, "rstd", XP_F32, n);
    ck_out(&apply, "y", dtype, n * d, CK_ROUNDED);
    apply.bytes = 2 * row_bytes(n, d, dtype);
    ck_run(ctx, &apply);

    static const char *const places[] = {NULL, "dy", "d_residual"};
    for (int place = 0; place < 3; place++) {
        for (int residual = place == 2; residual < 2; residual++) {
            if (ctx->bench && place > 0)
                continue;
            rmsnorm_backward_case(&backward, &forward, place == 1, residual != 0, places[place]);
            ck_run(ctx, &backward);
        }
    }
    rmsnorm_backward_case(&backward, &forward, false, false, NULL);
    if (dtype == XP_F32 && d > 1 && n * d <= 4096)
        ck_gradient(ctx, &forward, &backward, 2e-3);
}

/* ---- QK-norm and RoPE ------------------------------------------------------------------------ */

typedef struct rope_shape {
    int64_t n_tokens;
    int n_heads, n_kv_heads, head_dim;
    bool norm;
} rope_shape;

#define N_POSITIONS 64

/* size: T, H, G, C, dtype, dw_dtype, acc */
static xp_qknorm_rope_args rope_args(const ck_call *call) {
    const int64_t *size = call->c->size;
    return (xp_qknorm_rope_args){.n_tokens = size[0],
                                 .n_heads = (int)size[1],
                                 .n_kv_heads = (int)size[2],
                                 .head_dim = (int)size[3],
                                 .eps = EPS,
                                 .qkv = ck_at(call, "qkv"),
                                 .q_norm = ck_at(call, "q_norm"),
                                 .k_norm = ck_at(call, "k_norm"),
                                 .positions = ck_at(call, "positions"),
                                 .rope = ck_at(call, "rope"),
                                 .q = ck_at(call, "q"),
                                 .k = ck_at(call, "k"),
                                 .dtype = (xp_dtype)size[4]};
}
static xp_status call_rope_forward(const ck_call *call) {
    const xp_qknorm_rope_args args = rope_args(call);
    return call->ops->qknorm_rope_forward(call->stream, &args);
}
static xp_status call_rope_backward(const ck_call *call) {
    const int64_t *size = call->c->size;
    xp_qknorm_rope_backward_args args = {.forward = rope_args(call),
                                         .dq = ck_at(call, "dq"),
                                         .dk = ck_at(call, "dk"),
                                         .dqkv = ck_at(call, "dqkv"),
                                         .dq_norm = ck_at(call, "dq_norm"),
                                         .dk_norm = ck_at(call, "dk_norm"),
                                         .dw_dtype = (xp_dtype)size[5],
                                         .acc = size[6] != 0,
                                         .scratch = ck_at(call, "scratch")};
    if (args.acc) {
        args.part = XP_NORM_ROWS;
        XP_TRY(call->ops->qknorm_rope_backward(call->stream, &args));
        args.part = XP_NORM_WEIGHTS;
    }
    return call->ops->qknorm_rope_backward(call->stream, &args);
}

/* The inputs that both directions have. rope: [N_POSITIONS, C] */
static void rope_inputs(ck_case *c, const rope_shape *s, xp_dtype dtype, const float *rope,
                        const char *what) {
    snprintf(c->shape, sizeof c->shape, "T=%lld H=%d G=%d C=%d %s%s%s", (long long)s->n_tokens,
             s->n_heads, s->n_kv_heads, s->head_dim, xp_dtype_name(dtype),
             s->norm ? "" : " no norm", what);
    c->size[0] = s->n_tokens, c->size[1] = s->n_heads, c->size[2] = s->n_kv_heads,
    c->size[3] = s->head_dim;
    c->size[4] = dtype;
    const int64_t width = (int64_t)(s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    ck_in(c, "qkv", dtype, s->n_tokens * width);
    if (s->norm) {
        ck_in(c, "q_norm", dtype, s->head_dim);
        ck_in(c, "k_norm", dtype, s->head_dim);
    }
    ck_index(c, "positions", s->n_tokens, N_POSITIONS);
    ck_given(c, "rope", XP_F32, (int64_t)N_POSITIONS * s->head_dim, rope);
    c->bytes =
        2 * row_bytes(s->n_tokens, (int64_t)(s->n_heads + s->n_kv_heads) * s->head_dim, dtype);
}

static void rope(ck_context *ctx, const rope_shape *s, xp_dtype dtype) {
    const int64_t n_q = s->n_tokens * s->n_heads * s->head_dim,
                  n_k = s->n_tokens * s->n_kv_heads * s->head_dim;
    float *table = malloc(sizeof *table * (size_t)(N_POSITIONS * s->head_dim));
    if (table == NULL)
        abort();
    xp_rope_fill(1e4f, s->head_dim, N_POSITIONS, table);
    ck_case forward;
    ck_case_init(&forward, "qknorm_rope_forward", call_rope_forward);
    rope_inputs(&forward, s, dtype, table, "");
    ck_out(&forward, "q", dtype, n_q, CK_ROUNDED);
    ck_out(&forward, "k", dtype, n_k, CK_ROUNDED);
    ck_run(ctx, &forward);
    for (int acc = 0; acc < 2; acc++) {
        const xp_dtype dw = dtype == XP_BF16 && acc == 0 ? XP_BF16 : XP_F32;
        ck_case backward;
        ck_case_init(&backward, "qknorm_rope_backward", call_rope_backward);
        rope_inputs(&backward, s, dtype, table, acc ? " acc" : "");
        backward.size[5] = dw, backward.size[6] = acc;
        backward.bytes *= 1.5;
        ck_in(&backward, "dq", dtype, n_q);
        ck_in(&backward, "dk", dtype, n_k);
        /* v's part stays as it is: in and out */
        ck_inout(&backward, "dqkv", dtype, n_q + 2 * n_k, CK_SUM)->no_nan = true;
        ck_buffer *w[2] = {0};
        if (s->norm) {
            w[0] = ck_out(&backward, "dq_norm", dw, s->head_dim, CK_SUM);
            w[1] = ck_out(&backward, "dk_norm", dw, s->head_dim, CK_SUM);
        }
        for (int i = 0; s->norm && acc && i < 2; i++)
            w[i]->role = CK_INOUT;
        ck_scratch(&backward, "scratch", XP_F32, xp_qknorm_scratch(s->n_tokens, s->head_dim));
        ck_run(ctx, &backward);
        if (acc == 0 && dtype == XP_F32 && s->norm && s->n_tokens <= 16) {
            backward.buffers[ck_find(&backward, "dqkv")].limit = 0; /* v's part: no gradient here */
            ck_gradient(ctx, &forward, &backward, 3e-3);
        }
    }
    free(table);
}

void ck_rope_at(ck_context *ctx, const ck_heads *heads, xp_dtype dtype) {
    const rope_shape s = {heads->n_rows * heads->seq_len, heads->n_heads, heads->n_kv_heads,
                          heads->head_dim, true};
    rope(ctx, &s, dtype);
}

void ck_embed_at(ck_context *ctx, int64_t n_tokens, int64_t dim, int64_t vocab, xp_dtype dtype) {
    embed(ctx, n_tokens, dim, vocab, vocab, dtype);
}

/* As in a layer: with the residual's sum forward, and its gradient backward. */
void ck_rmsnorm_at(ck_context *ctx, int64_t n_tokens, int64_t dim, xp_dtype dtype) {
    ck_case forward, plain, backward;
    rmsnorm_case(&forward, n_tokens, dim, dtype, RESIDUAL);
    ck_run(ctx, &forward);
    rmsnorm_case(&plain, n_tokens, dim, dtype, PLAIN);
    rmsnorm_backward_case(&backward, &plain, false, true, NULL);
    ck_run(ctx, &backward);
}

void ck_norm_cases(ck_context *ctx) {
    static const rope_shape shapes[] = {
        {0, 2, 1, 8, true},   {1, 1, 1, 2, true},     {5, 3, 1, 6, true},   {7, 4, 2, 32, true},
        {33, 8, 4, 64, true}, {100, 4, 4, 128, true}, {9, 2, 2, 34, false}, {131, 2, 1, 50, true},
        {16, 4, 2, 16, true}, {5, 3, 1, 96, true},    {6, 2, 1, 256, true}};
    if (ctx->bench && ctx->gpu) {
        embed(ctx, 16384, 2048, 151936, 151936, XP_BF16);
        embed(ctx, 16384, 2048, 151936, 500, XP_BF16);
        rmsnorm(ctx, 16384, 2048, XP_BF16);
        rmsnorm(ctx, 16384, 4096, XP_BF16);
        rope(ctx, &(rope_shape){16384, 32, 4, 128, true}, XP_BF16);
        return;
    }
    if (ctx->bench) {
        embed(ctx, 4096, 512, 8192, 8192, XP_F32);
        rmsnorm(ctx, 4096, 512, XP_F32);
        rmsnorm(ctx, 4096, 2048, XP_F32);
        rope(ctx, &(rope_shape){4096, 8, 4, 64, true}, XP_F32);
        rope(ctx, &(rope_shape){4096, 16, 8, 128, true}, XP_F32);
        return;
    }
    for (size_t k = 0; k < sizeof row_types / sizeof *row_types; k++) {
        const xp_dtype dtype = row_types[k];
        embed(ctx, 0, 8, 5, 5, dtype);
        embed(ctx, 1, 1, 1, 1, dtype);
        embed(ctx, 37, 19, 11, 11, dtype);
        embed(ctx, 200, 64, 300, 1, dtype);
        embed(ctx, 500, 130, 1000, 900, dtype);
        embed(ctx, 2100, 8, 70, 50, dtype);
        embed(ctx, 1100, 8, 20000, 20000, dtype);
        static const int64_t sizes[][2] = {{0, 8},   {1, 1},     {3, 5},     {7, 16},    {33, 63},
                                           {65, 64}, {130, 257}, {2100, 20}, {40, 2048}, {9, 4096}};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            rmsnorm(ctx, sizes[i][0], sizes[i][1], dtype);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            rope(ctx, &shapes[i], dtype);
    }
    /* several tokens a warp of the GPU's kernel, whose heads it takes at once and in turns */
    if (ctx->gpu) {
        rope(ctx, &(rope_shape){4200, 2, 1, 64, true}, XP_BF16);
        rope(ctx, &(rope_shape){4200, 8, 1, 128, true}, XP_BF16);
        /* several rows a block of RMSNorm backward */
        rmsnorm(ctx, 1100, 128, XP_BF16);
        rmsnorm(ctx, 530, 768, XP_BF16);
    }
}
