/* Attention over a cache: empty and filled caches, one and several new tokens, grouped queries, odd head sizes. */
#include <math.h>
#include "checkop.h"

typedef struct decode_shape {
    int64_t n_tokens, n_cached;
    int n_heads, n_kv_heads, head_dim;
    int64_t pad;    /* elements between rows of v */
    int64_t unused; /* rows of the caches behind the last one */
} decode_shape;

static xp_status call_decode(const ck_call *call) {
    const int64_t *size = call->c->size;
    const xp_attention_decode_args args = {.n_tokens = size[0],
                                           .n_cached = size[1],
                                           .n_heads = (int)size[2],
                                           .n_kv_heads = (int)size[3],
                                           .head_dim = (int)size[4],
                                           .scale = 1.0f / sqrtf((float)size[4]),
                                           .q = ck_at(call, "q"),
                                           .k = ck_at(call, "k"),
                                           .v = ck_at(call, "v"),
                                           .ldv = size[3] * size[4] + size[5],
                                           .k_cache = ck_at(call, "k_cache"),
                                           .v_cache = ck_at(call, "v_cache"),
                                           .out = ck_at(call, "out"),
                                           .dtype = (xp_dtype)size[6],
                                           .scores = ck_at(call, "scores")};
    return call->ops->attention_decode(call->stream, &args);
}

static void decode(ck_context *ctx, const decode_shape *s, xp_dtype dtype) {
    const int64_t q_width = (int64_t)s->n_heads * s->head_dim,
                  kv_width = (int64_t)s->n_kv_heads * s->head_dim,
                  n_rows = s->n_cached + s->n_tokens + s->unused;
    ck_case c;
    ck_case_init(&c, "attention_decode", call_decode);
    snprintf(c.shape, sizeof c.shape, "T=%lld after %lld, H=%d G=%d C=%d %s%s",
             (long long)s->n_tokens, (long long)s->n_cached, s->n_heads, s->n_kv_heads, s->head_dim,
             xp_dtype_name(dtype), s->pad > 0 ? " padded" : "");
    c.size[0] = s->n_tokens, c.size[1] = s->n_cached, c.size[2] = s->n_heads,
    c.size[3] = s->n_kv_heads, c.size[4] = s->head_dim, c.size[5] = s->pad, c.size[6] = dtype;
    c.nan_spreads = true; /* keys are loaded in groups, also behind the last one */
    ck_in(&c, "q", dtype, s->n_tokens * q_width);
    ck_in(&c, "k", dtype, s->n_tokens * kv_width);
    ck_in(&c, "v", dtype, s->n_tokens * (kv_width + s->pad));
    ck_inout(&c, "k_cache", dtype, n_rows * kv_width, CK_EXACT);
    ck_inout(&c, "v_cache", dtype, n_rows * kv_width, CK_EXACT);
    ck_out(&c, "out", dtype, s->n_tokens * q_width, CK_CHAIN)->row = q_width;
    ck_scratch(&c, "scores", XP_F32, s->n_cached + s->n_tokens);
    c.flops =
        4.0 * (double)(q_width * s->n_tokens) * ((double)s->n_cached + (double)s->n_tokens / 2);
    c.bytes =
        2.0 * (double)((s->n_cached + s->n_tokens) * kv_width) * (double)xp_dtype_bytes(dtype);
    ck_run(ctx, &c);
}

void ck_attention_decode_cases(ck_context *ctx) {
    static const decode_shape timed[] = {{1, 511, 8, 4, 64, 0, 0}, {1, 2047, 16, 8, 128, 0, 0}};
    static const decode_shape timed_on_gpu[] = {
        {1, 1023, 32, 4, 128, 0, 0}, {1, 8191, 32, 4, 128, 0, 0}, {512, 0, 32, 4, 128, 0, 0}};
    static const decode_shape shapes[] = {
        {0, 4, 2, 1, 8, 0, 0},     {1, 0, 1, 1, 2, 0, 0},    {1, 0, 4, 2, 16, 0, 3},
        {1, 7, 4, 2, 16, 5, 1},    {3, 0, 2, 2, 10, 0, 0},   {5, 31, 6, 2, 33, 7, 2},
        {1, 33, 8, 1, 64, 0, 0},   {2, 64, 4, 4, 96, 0, 1},  {17, 130, 4, 1, 128, 16, 0},
        {1, 257, 2, 1, 200, 0, 0}, {40, 3, 2, 1, 256, 0, 5}, {1, 1000, 8, 2, 128, 0, 24}};
    if (ctx->bench) {
        const decode_shape *list = ctx->gpu ? timed_on_gpu : timed;
        for (int i = 0; i < (ctx->gpu ? 3 : 2); i++)
            decode(ctx, &list[i], ctx->gpu ? XP_BF16 : XP_F32);
        return;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        decode(ctx, &shapes[i], XP_F32);
        decode(ctx, &shapes[i], XP_BF16);
    }
}
