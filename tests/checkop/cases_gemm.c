/* Dense GEMM. */
#include "shapes.h"

enum { GEMM_M, GEMM_N, GEMM_K, GEMM_TRANS_A, GEMM_TRANS_B, GEMM_ACC, GEMM_AB, GEMM_C, GEMM_PAD };

static xp_status call_gemm(const ck_call *call) {
    const int64_t *s = call->c->size;
    const xp_gemm_args args = {.m = s[GEMM_M],
                               .n = s[GEMM_N],
                               .k = s[GEMM_K],
                               .trans_a = s[GEMM_TRANS_A] != 0,
                               .trans_b = s[GEMM_TRANS_B] != 0,
                               .a = ck_at(call, "a"),
                               .b = ck_at(call, "b"),
                               .c = ck_at(call, "c"),
                               .lda = (s[GEMM_TRANS_A] ? s[GEMM_M] : s[GEMM_K]) + s[GEMM_PAD],
                               .ldb = (s[GEMM_TRANS_B] ? s[GEMM_K] : s[GEMM_N]) + s[GEMM_PAD],
                               .ldc = s[GEMM_N] + s[GEMM_PAD],
                               .ab_dtype = (xp_dtype)s[GEMM_AB],
                               .c_dtype = (xp_dtype)s[GEMM_C],
                               .alpha = call->c->value[0],
                               .acc = s[GEMM_ACC] != 0};
    return call->ops->gemm(call->stream, &args);
}

/* size: as the enum above. */
static void gemm_case(ck_context *ctx, const int64_t *size, const char *what) {
    ck_case c;
    ck_case_init(&c, "gemm", call_gemm);
    for (int i = 0; i <= GEMM_PAD; i++)
        c.size[i] = size[i];
    c.value[0] = size[GEMM_ACC] ? 0.5F : 1.0F;
    const int64_t m = size[GEMM_M], n = size[GEMM_N], k = size[GEMM_K], pad = size[GEMM_PAD];
    const xp_dtype ab = (xp_dtype)size[GEMM_AB], c_dtype = (xp_dtype)size[GEMM_C];
    ck_in(&c, "a", ab, size[GEMM_TRANS_A] ? k * (m + pad) : m * (k + pad));
    ck_in(&c, "b", ab, size[GEMM_TRANS_B] ? n * (k + pad) : k * (n + pad));
    if (size[GEMM_ACC] || pad > 0) /* what lies between the rows must stay */
        ck_inout(&c, "c", c_dtype, m * (n + pad), CK_SUM);
    else
        ck_out(&c, "c", c_dtype, m * n, CK_SUM);
    c.flops = 2.0 * (double)m * (double)n * (double)k;
    ck_few_tiles(&c, ck_tiles(m) * ck_tiles(n));
    snprintf(c.shape, sizeof c.shape, "%s%lldx%lldx%lld %c%c %s>%s%s%s", what, (long long)m,
             (long long)n, (long long)k, size[GEMM_TRANS_A] ? 'T' : 'N',
             size[GEMM_TRANS_B] ? 'T' : 'N', xp_dtype_name(ab), xp_dtype_name(c_dtype),
             size[GEMM_ACC] ? " acc" : "", pad ? " padded" : "");
    ck_run(ctx, &c);
}

static void check_gemm(ck_context *ctx) {
    static const int64_t shapes[][3] = {{1, 1, 1},      {0, 5, 3},     {5, 0, 3},   {5, 3, 0},
                                        {7, 13, 5},     {1, 33, 9},    {129, 3, 2}, {67, 131, 90},
                                        {260, 530, 70}, {40, 24, 1100}};
    static const xp_dtype types[][2] = {{XP_F32, XP_F32}, {XP_BF16, XP_BF16}, {XP_BF16, XP_F32}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int t = 0; t < 3; t++)
            for (int kind = 0; kind < 6; kind++) {
                const int64_t size[] = {
                    shapes[i][0],     shapes[i][1], shapes[i][2],         kind & 1,
                    (kind >> 1) & 1,  kind == 2,    (int64_t)types[t][0], (int64_t)types[t][1],
                    kind >= 4 ? 3 : 0};
                gemm_case(ctx, size, "");
            }
}

/* The dense GEMMs of a step of the mid-size model: 4096 tokens, D = 512, head in chunks of 1024
 * rows. */
static void bench_gemm(ck_context *ctx) {
    static const struct {
        const char *what;
        int64_t m, n, k, trans_a, trans_b;
    } shapes[] = {
        {"qkv ", 4096, 1024, 512, 0, 1},     {"qkv dx ", 4096, 512, 1024, 0, 0},
        {"qkv dw ", 1024, 512, 4096, 1, 0},  {"out ", 4096, 512, 512, 0, 1},
        {"out dw ", 512, 512, 4096, 1, 0},   {"router ", 4096, 32, 512, 0, 1},
        {"router dx ", 4096, 512, 32, 0, 0}, {"router dw ", 32, 512, 4096, 1, 0},
        {"head ", 1024, 8192, 512, 0, 1},    {"head dx ", 1024, 512, 8192, 0, 0},
        {"head dw ", 8192, 512, 1024, 1, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const int64_t size[] = {shapes[i].m,
                                shapes[i].n,
                                shapes[i].k,
                                shapes[i].trans_a,
                                shapes[i].trans_b,
                                shapes[i].trans_a,
                                XP_F32,
                                XP_F32,
                                0};
        gemm_case(ctx, size, shapes[i].what);
    }
}

void ck_gemm_at(ck_context *ctx, const ck_gemm_shape *s) {
    const int64_t size[] = {
        s->m, s->n, s->k, s->trans_a, s->trans_b, 0, (int64_t)s->dtype, (int64_t)s->dtype, 0};
    gemm_case(ctx, size, s->what);
}

void ck_gemm_cases(ck_context *ctx) {
    if (ctx->bench)
        bench_gemm(ctx);
    else
        check_gemm(ctx);
}
