/* The shapes: models of 10 to 700 billion parameters, few and many tokens, 8 to 256 experts, top-1 to top-16. */
#include "shapes.h"

#define FEW_TOKENS  512
#define MANY_TOKENS 16384
#define VOCAB       151936

typedef struct model {
    int64_t dim, moe_dim;
    int n_heads, n_kv_heads;
} model;

/* As Qwen3-MoE of 10, 30 and 235 billion parameters and DeepSeek-V3 have them. */
static const model models[] = {
    {1536, 512, 24, 4}, {2048, 768, 32, 4}, {4096, 1536, 64, 4}, {7168, 2048, 56, 8}};
enum { N_MODELS = sizeof models / sizeof models[0], HEAD_DIM = 128 };
static const int64_t token_counts[] = {FEW_TOKENS, MANY_TOKENS};

/* A width divided by the scale, in multiples of 16; a number of rows or heads. */
static int64_t width(const ck_context *ctx, int64_t n) {
    const int64_t scaled = n / ctx->shapes->scale / 16 * 16;
    return scaled > 16 ? scaled : 16;
}
static int64_t count(const ck_context *ctx, int64_t n) {
    const int64_t scaled = n / ctx->shapes->scale;
    return scaled > 1 ? scaled : 1;
}

static xp_dtype row_type(const ck_context *ctx) {
    return ctx->gpu ? XP_BF16 : XP_F32;
}

static void projections(ck_context *ctx, const model *m, int64_t t) {
    const int64_t d = width(ctx, m->dim), q = width(ctx, (int64_t)m->n_heads * HEAD_DIM),
                  qkv = width(ctx, (int64_t)(m->n_heads + 2 * m->n_kv_heads) * HEAD_DIM);
    const xp_dtype dtype = row_type(ctx);
    const ck_gemm_shape gemms[] = {{"qkv ", t, qkv, d, false, true, dtype},
                                   {"qkv dgrad ", t, d, qkv, false, false, dtype},
                                   {"qkv wgrad ", qkv, d, t, true, false, dtype},
                                   {"out ", t, d, q, false, true, dtype}};
    for (int i = 0; i < 4; i++)
        ck_gemm_at(ctx, &gemms[i]);
}

static void attention(ck_context *ctx, const model *m) {
    const int64_t lengths[][2] = {{1, FEW_TOKENS}, {4, 4096}};
    for (int i = 0; i < 2; i++) {
        const ck_heads heads = {.n_rows = lengths[i][0],
                                .seq_len = count(ctx, lengths[i][1]),
                                .n_heads = m->n_heads,
                                .n_kv_heads = m->n_kv_heads,
                                .head_dim = HEAD_DIM};
        ck_attention_at(ctx, &heads, row_type(ctx));
        ck_rope_at(ctx, &heads, row_type(ctx));
    }
}

static void rows(ck_context *ctx, const model *m) {
    for (int i = 0; i < 2; i++) {
        const int64_t t = count(ctx, token_counts[i]);
        projections(ctx, m, t);
        ck_rmsnorm_at(ctx, t, width(ctx, m->dim), row_type(ctx));
        ck_silu_at(ctx, 8 * t, width(ctx, m->moe_dim), row_type(ctx));
        ck_embed_at(ctx, t, width(ctx, m->dim), count(ctx, VOCAB), row_type(ctx));
    }
}

/* Experts with few and with many rows each. */
static void experts(ck_context *ctx, int64_t dim, int64_t moe_dim, bool forward_only) {
    static const int64_t each[][2] = {{8, 256},   {8, 16384}, {64, 64},
                                      {64, 2048}, {256, 16},  {256, 512}};
    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
        ck_grouped_shape shape = {.n_experts = each[i][0],
                                  .rows = count(ctx, each[i][1]),
                                  .n = width(ctx, 2 * moe_dim),
                                  .k = width(ctx, dim),
                                  .dtype = row_type(ctx),
                                  .forward_only = forward_only};
        if (shape.n_experts > 8) /* all of a scaled model's experts would be most of the time */
            shape.n_experts = count(ctx, shape.n_experts);
        shape.n_tokens = (shape.n_experts * shape.rows + 7) / 8;
        ck_grouped_at(ctx, &shape);
        shape.forward_only = true;
        shape.n = width(ctx, dim);
        shape.k = width(ctx, moe_dim);
        shape.n_tokens = 0;
        ck_grouped_at(ctx, &shape);
    }
}

static void routing(ck_context *ctx) {
    static const int64_t choices[][2] = {{8, 1},   {8, 2},   {64, 4},  {64, 8},
                                         {128, 8}, {256, 8}, {256, 16}};
    for (int i = 0; i < 2; i++) {
        const int64_t t = count(ctx, token_counts[i]);
        for (size_t k = 0; k < sizeof choices / sizeof choices[0]; k++)
            ck_router_at(ctx, t, choices[k][0], choices[k][1]);
        for (int64_t e = 8; e <= 256; e = e == 8 ? 64 : 2 * e) {
            ck_router_linear_at(ctx, t, e, width(ctx, 2048));
            ck_router_linear_at(ctx, t, e, width(ctx, 7168));
            ck_histogram_at(ctx, 8 * t, e);
        }
    }
}

void ck_shapes_users(ck_context *ctx) {
    for (int i = 0; i < N_MODELS; i++) {
        rows(ctx, &models[i]);
        attention(ctx, &models[i]);
        experts(ctx, models[i].dim, models[i].moe_dim, false);
    }
    experts(ctx, 1536, 2048, true); /* wide experts of a narrow model, and the other way round */
    experts(ctx, 7168, 512, true);
    routing(ctx);
    for (int64_t n = 1024; n <= 4096; n *= 4) {
        ck_loss_at(ctx, count(ctx, n), count(ctx, 32000), row_type(ctx));
        ck_loss_at(ctx, count(ctx, n), count(ctx, VOCAB), row_type(ctx));
    }
    ck_optimizer_at(ctx, count(ctx, 1 << 20), row_type(ctx));
    ck_optimizer_at(ctx, count(ctx, 1 << 27), row_type(ctx));
}
