/* Attention: whole rows and documents, grouped queries, head sizes that fill no vector, leading
 * dimensions. */
#include <math.h>
#include <stdlib.h>
#include "attention_slack.h"
#include "shapes.h"
#include "core/rng.h"

typedef struct attention_shape {
    int64_t n_rows, seq_len;
    int n_heads, n_kv_heads, head_dim;
    int64_t pad;      /* elements between rows */
    int64_t document; /* mean tokens of a document; 0: whole rows */
} attention_shape;

/* size: B, S, H, G, C, pad, dtype; without scratch */
static xp_attention_args arguments(const ck_call *call) {
    const int64_t *size = call->c->size;
    const int64_t q_width = size[2] * size[4] + size[5], kv_width = size[3] * size[4] + size[5];
    return (xp_attention_args){.n_rows = size[0],
                               .seq_len = size[1],
                               .n_heads = (int)size[2],
                               .n_kv_heads = (int)size[3],
                               .head_dim = (int)size[4],
                               .scale = 1.0f / sqrtf((float)size[4]),
                               .q = ck_at(call, "q"),
                               .k = ck_at(call, "k"),
                               .v = ck_at(call, "v"),
                               .ldq = q_width,
                               .ldk = kv_width,
                               .ldv = kv_width,
                               .ldo = q_width,
                               .doc_start = ck_at(call, "doc_start"),
                               .out = ck_at(call, "out"),
                               .lse = ck_at(call, "lse"),
                               .dtype = (xp_dtype)size[6]};
}
static size_t forward_scratch(const ck_call *call) {
    const xp_attention_args args = arguments(call);
    return call->ops->attention_scratch(xp_stream_device(call->stream), &args, false);
}
static size_t backward_scratch(const ck_call *call) {
    const xp_attention_args args = arguments(call);
    return call->ops->attention_scratch(xp_stream_device(call->stream), &args, true);
}
static xp_status call_forward(const ck_call *call) {
    xp_attention_args args = arguments(call);
    args.scratch = call->scratch;
    args.scratch_bytes = call->scratch == NULL ? 0 : forward_scratch(call);
    return call->ops->attention_forward(call->stream, &args);
}
static xp_status call_backward(const ck_call *call) {
    xp_attention_args forward = arguments(call);
    forward.scratch = call->scratch;
    forward.scratch_bytes = call->scratch == NULL ? 0 : backward_scratch(call);
    const xp_attention_backward_args args = {.forward = forward,
                                             .dout = ck_at(call, "dout"),
                                             .dq = ck_at(call, "dq"),
                                             .dk = ck_at(call, "dk"),
                                             .dv = ck_at(call, "dv"),
                                             .lddq = forward.ldq,
                                             .lddk = forward.ldk,
                                             .lddv = forward.ldv};
    return call->ops->attention_backward(call->stream, &args);
}

/* [B * S]: documents of random lengths. */
static int32_t *document_starts(const attention_shape *s, uint64_t seed) {
    int32_t *starts = malloc(sizeof *starts * (size_t)(s->n_rows * s->seq_len + 1));
    if (starts == NULL)
        abort();
    for (int64_t t = 0; t < s->n_rows * s->seq_len; t++) {
        const int64_t at = t % s->seq_len;
        const bool first = at == 0 || xp_rng_below(seed, xp_rng_stream("documents"), (uint64_t)t,
                                                   (uint64_t)s->document) == 0;
        starts[t] = first ? (int32_t)at : starts[t - 1];
    }
    return starts;
}

/* Pairs of a query and a key it sees, over all rows: half the square, less what documents hide. */
static double seen_pairs(const attention_shape *s, const int32_t *starts) {
    double n = 0;
    for (int64_t t = 0; t < s->n_rows * s->seq_len; t++)
        n += (double)(t % s->seq_len + (starts == NULL ? 1 : 1 - starts[t]));
    return n;
}

static void inputs(ck_case *c, const attention_shape *s, xp_dtype dtype, const int32_t *starts) {
    snprintf(c->shape, sizeof c->shape, "B=%lld S=%lld H=%d G=%d C=%d %s%s%s", (long long)s->n_rows,
             (long long)s->seq_len, s->n_heads, s->n_kv_heads, s->head_dim, xp_dtype_name(dtype),
             s->pad > 0 ? " padded" : "", s->document > 0 ? " documents" : "");
    const int64_t t = s->n_rows * s->seq_len;
    c->size[0] = s->n_rows, c->size[1] = s->seq_len, c->size[2] = s->n_heads,
    c->size[3] = s->n_kv_heads;
    c->size[4] = s->head_dim, c->size[5] = s->pad, c->size[6] = dtype;
    c->nan_spreads =
        true; /* a weight of 0 times the NaN of a key that is not seen, inside one block */
    ck_in(c, "q", dtype, t * ((int64_t)s->n_heads * s->head_dim + s->pad));
    ck_in(c, "k", dtype, t * ((int64_t)s->n_kv_heads * s->head_dim + s->pad));
    ck_in(c, "v", dtype, t * ((int64_t)s->n_kv_heads * s->head_dim + s->pad));
    if (starts != NULL)
        ck_given(c, "doc_start", XP_I32, t, starts);
}

/*
 * A result with a row for each token. bf16 GEMMs round the weights: an error of 2^-9 of each
 * p v, so of the size of the token's own sums. The first tokens see few keys and have sums near 1,
 * the last ones see many and have sums near 0: the buffer's rms is neither.
 */
static void result(ck_case *c, const char *name, xp_dtype dtype, int64_t n, int64_t row) {
    /* in and out: the space between rows must stay */
    ck_buffer *b = ck_inout(c, name, dtype, n * row, CK_CHAIN);
    b->no_nan = true;
    b->row = row;
}

static void attention(ck_context *ctx, const attention_shape *s, xp_dtype dtype) {
    const int64_t t = s->n_rows * s->seq_len, dim = s->head_dim;
    const int64_t q_row = s->n_heads * dim + s->pad, kv_row = s->n_kv_heads * dim + s->pad;
    int32_t *starts = s->document > 0 ? document_starts(s, ctx->seed) : NULL;
    ck_case forward, backward;
    ck_case_init(&forward, "attention_forward", call_forward);
    inputs(&forward, s, dtype, starts);
    result(&forward, "out", dtype, t, q_row);
    ck_out(&forward, "lse", XP_F32, t * s->n_heads, CK_SUM);
    forward.scratch_bytes = forward_scratch;
    forward.flops = 4.0 * seen_pairs(s, starts) * s->n_heads * (double)dim;
    ck_run(ctx, &forward);

    ck_case_init(&backward, "attention_backward", call_backward);
    inputs(&backward, s, dtype, starts);
    backward.forward = &forward;
    ck_saved(&backward, "out", dtype, t * q_row);
    ck_saved(&backward, "lse", XP_F32, t * s->n_heads);
    ck_in(&backward, "dout", dtype, t * q_row);
    result(&backward, "dq", dtype, t, q_row);
    result(&backward, "dk", dtype, t, kv_row);
    result(&backward, "dv", dtype, t, kv_row);
    for (int i = backward.n_buffers - 3; i < backward.n_buffers; i++)
        backward.buffers[i].typical = 1.0; /* a token alone in its document: dp - delta cancels */
    if (dtype == XP_BF16)
        backward.slack = ck_attention_slack;
    backward.scratch_bytes = backward_scratch;
    backward.flops = 2.5 * forward.flops; /* five GEMMs, forward has two */
    ck_run(ctx, &backward);
    if (dtype == XP_F32 && s->pad == 0 && t <= 40)
        ck_gradient(ctx, &forward, &backward, 3e-3);
    free(starts);
}

void ck_attention_at(ck_context *ctx, const ck_heads *heads, xp_dtype dtype) {
    const attention_shape s = {
        heads->n_rows, heads->seq_len, heads->n_heads, heads->n_kv_heads, heads->head_dim, 0, 0};
    attention(ctx, &s, dtype);
}

void ck_attention_cases(ck_context *ctx) {
    static const attention_shape timed[] = {{8, 512, 8, 4, 64, 0, 0},
                                            {8, 512, 8, 4, 64, 0, 128},
                                            {8, 256, 4, 2, 32, 0, 0},
                                            {1, 2048, 16, 8, 128, 0, 0},
                                            {2, 1024, 8, 4, 64, 512, 0}};
    static const attention_shape shapes[] = {
        {0, 8, 2, 1, 8, 0, 0},     {1, 0, 1, 1, 8, 0, 0},     {1, 1, 1, 1, 1, 0, 0},
        {2, 5, 3, 1, 7, 0, 0},     {1, 64, 1, 1, 16, 0, 0},   {2, 20, 4, 2, 32, 0, 0},
        {1, 33, 2, 1, 10, 0, 6},   {1, 65, 2, 2, 33, 3, 0},   {2, 130, 4, 2, 64, 0, 0},
        {1, 200, 6, 2, 48, 5, 40}, {2, 300, 2, 1, 20, 0, 90}, {1, 320, 2, 1, 128, 0, 0},
        {3, 70, 2, 2, 17, 0, 1},   {1, 128, 2, 1, 64, 0, 0},  {2, 256, 4, 2, 128, 0, 0},
        {1, 384, 4, 1, 64, 8, 0},  {2, 128, 2, 2, 128, 0, 0}, {1, 256, 4, 2, 128, 0, 60},
        {2, 77, 3, 3, 8, 0, 9},    {1, 129, 6, 1, 96, 16, 5}, {1, 65, 2, 1, 128, 0, 0}};
    /* tiles of 64 and 128 tokens: documents of one token, as long as the row, across tiles; one
     * token, lengths around a tile; one to 16 query heads a key head; rows of many tiles; more tiles
     * than run at once */
    static const attention_shape gpu_shapes[] = {
        {2, 384, 8, 2, 128, 0, 1},  {1, 512, 4, 1, 128, 0, 1 << 20}, {2, 640, 8, 2, 64, 8, 250},
        {1, 300, 4, 2, 40, 0, 50},  {1, 1024, 4, 4, 128, 0, 400},    {1, 161, 4, 2, 128, 0, 0},
        {3, 192, 2, 1, 128, 8, 33}, {1, 257, 5, 5, 64, 0, 1 << 20},  {1, 1, 8, 1, 128, 0, 0},
        {3, 1, 2, 2, 64, 0, 1},     {1, 127, 8, 1, 128, 0, 0},       {2, 129, 8, 1, 128, 8, 0},
        {2, 63, 4, 4, 64, 0, 0},    {1, 65, 16, 1, 128, 0, 7},       {2, 128, 16, 2, 64, 0, 1},
        {1, 700, 8, 1, 128, 0, 0},  {1, 1024, 4, 1, 128, 0, 512},    {3, 255, 12, 3, 64, 0, 20},
        {1, 1153, 2, 1, 64, 0, 0},  {1, 1500, 2, 1, 128, 8, 700},    {1, 20000, 1, 1, 64, 0, 100},
        {20, 130, 8, 1, 64, 0, 0},  {12, 257, 8, 2, 128, 0, 40},     {45, 5, 8, 8, 128, 0, 0}};
    static const attention_shape on_gpu[] = {
        {4, 4096, 32, 4, 128, 0, 0},  {4, 4096, 32, 4, 128, 0, 512}, {4, 4096, 32, 4, 128, 0, 2048},
        {4, 4096, 32, 4, 128, 0, 64}, {8, 2048, 32, 4, 128, 0, 0},   {2, 8192, 32, 4, 128, 0, 0},
        {1, 32768, 8, 1, 128, 0, 0},  {4, 4096, 32, 4, 64, 0, 0}};
    if (ctx->bench && ctx->gpu) {
        for (size_t i = 0; i < sizeof on_gpu / sizeof *on_gpu; i++)
            attention(ctx, &on_gpu[i], XP_BF16);
        attention(ctx, &(attention_shape){1, 4096, 32, 4, 128, 0, 0}, XP_F32);
        return;
    }
    if (ctx->bench) {
        for (size_t i = 0; i < sizeof timed / sizeof *timed; i++)
            attention(ctx, &timed[i], XP_F32);
        return;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        attention(ctx, &shapes[i], XP_F32);
        attention(ctx, &shapes[i], XP_BF16);
    }
    for (size_t i = 0; ctx->gpu && i < sizeof gpu_shapes / sizeof *gpu_shapes; i++)
        attention(ctx, &gpu_shapes[i], XP_BF16);
}
