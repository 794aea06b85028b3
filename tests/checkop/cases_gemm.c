/* Dense and grouped GEMM with every kind of routing. */
#include <string.h>
#include "checkop.h"

/* ---- dense ----------------------------------------------------------------------------------- */

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

/* ---- grouped --------------------------------------------------------------------------------- */

enum {
    GROUPED_L,
    GROUPED_ROWS,
    GROUPED_N,
    GROUPED_K,
    GROUPED_TOKENS,
    GROUPED_DTYPE,
    GROUPED_DW,
    GROUPED_ACC,
    GROUPED_SPARE_SMS
};

static xp_grouped_args grouped_args(const ck_call *call) {
    const int64_t *s = call->c->size;
    return (xp_grouped_args){.n_experts = s[GROUPED_L],
                             .max_rows = s[GROUPED_ROWS],
                             .n = s[GROUPED_N],
                             .k = s[GROUPED_K],
                             .offsets = ck_at(call, "offsets"),
                             .gather = ck_at(call, "gather"),
                             .x = ck_at(call, "x"),
                             .w = ck_at(call, "w"),
                             .dy = ck_at(call, "dy"),
                             .gather_dy = ck_at(call, "gather_dy"),
                             .dtype = (xp_dtype)s[GROUPED_DTYPE],
                             .dw_dtype = (xp_dtype)s[GROUPED_DW],
                             .acc = s[GROUPED_ACC] != 0,
                             .spare_sms = (int)s[GROUPED_SPARE_SMS]};
}

static xp_status call_forward(const ck_call *call) {
    xp_grouped_args args = grouped_args(call);
    args.y = ck_at(call, "y");
    return call->ops->grouped_forward(call->stream, &args);
}
static xp_status call_dgrad(const ck_call *call) {
    xp_grouped_args args = grouped_args(call);
    args.y = ck_at(call, "dx");
    return call->ops->grouped_dgrad(call->stream, &args);
}
static xp_status call_wgrad(const ck_call *call) {
    xp_grouped_args args = grouped_args(call);
    args.y = ck_at(call, "dw");
    return call->ops->grouped_wgrad(call->stream, &args);
}

typedef struct routing {
    const char *name;
    int64_t n_experts, n_rows, n_tokens;
    const int32_t *offsets;
    bool gathered;
    int spare_sms;
} routing;

static void begin(ck_case *c, const char *op, xp_status (*call)(const ck_call *), const routing *r,
                  int64_t n, int64_t k, xp_dtype dtype) {
    ck_case_init(c, op, call);
    const int64_t size[] = {r->n_experts,   r->n_rows,      n, k,           r->n_tokens,
                            (int64_t)dtype, (int64_t)dtype, 0, r->spare_sms};
    for (int i = 0; i <= GROUPED_SPARE_SMS; i++)
        c->size[i] = size[i];
    ck_given(c, "offsets", XP_I32, r->n_experts + 1, r->offsets);
    c->flops = 2.0 * (double)r->offsets[r->n_experts] * (double)n * (double)k;
    snprintf(c->shape, sizeof c->shape, "%s %lld rows, %lld experts of %lldx%lld %s%s%s", r->name,
             (long long)r->n_rows, (long long)r->n_experts, (long long)n, (long long)k,
             xp_dtype_name(dtype), r->gathered ? " gathered" : "",
             r->spare_sms > 0 ? " few SMs" : "");
}

static void add_rows(ck_case *c, const char *name, const char *gather, const routing *r,
                     int64_t width, xp_dtype dtype) {
    if (r->gathered)
        ck_index(c, gather, r->n_rows, r->n_tokens);
    ck_in(c, name, dtype, (r->gathered ? r->n_tokens : r->n_rows) * width);
}

static void grouped_cases(ck_context *ctx, const routing *r, int64_t n, int64_t k, xp_dtype dtype) {
    const int64_t w_elements = r->n_experts * n * k;
    ck_case forward, dgrad, wgrad;
    begin(&forward, "grouped_forward", call_forward, r, n, k, dtype);
    add_rows(&forward, "x", "gather", r, k, dtype);
    ck_in(&forward, "w", dtype, w_elements);
    ck_inout(&forward, "y", dtype, r->n_rows * n, CK_SUM); /* rows past the last expert's stay */
    ck_run(ctx, &forward);

    begin(&dgrad, "grouped_dgrad", call_dgrad, r, n, k, dtype);
    add_rows(&dgrad, "dy", "gather_dy", r, n, dtype);
    ck_in(&dgrad, "w", dtype, w_elements);
    ck_inout(&dgrad, "dx", dtype, r->n_rows * k, CK_SUM);
    ck_run(ctx, &dgrad);

    static const struct {
        const char *name;
        bool x_gathered, dy_gathered, acc, f32;
    } kinds[] = {{"", true, false, false, false},
                 {", acc in fp32", true, false, true, true},
                 {", dy instead of x", false, true, false, false},
                 {", acc", true, false, true, false},
                 {", in fp32", true, false, false, true},
                 {", dy instead of x, acc", false, true, true, false},
                 {", dy instead of x, acc in fp32", false, true, true, true},
                 {", dy instead of x, in fp32", false, true, false, true},
                 {", both", true, true, false, false},
                 {", both, acc in fp32", true, true, true, true}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        routing plain = *r;
        plain.gathered = false;
        if (dtype == XP_F32 && i >= 3 && i <= 5) /* as with fp32 results */
            continue;
        begin(&wgrad, "grouped_wgrad", call_wgrad, r, n, k, dtype);
        add_rows(&wgrad, "x", "gather", kinds[i].x_gathered ? r : &plain, k, dtype);
        add_rows(&wgrad, "dy", "gather_dy", kinds[i].dy_gathered ? r : &plain, n, dtype);
        const xp_dtype dw_dtype = kinds[i].f32 ? XP_F32 : dtype;
        wgrad.size[GROUPED_DW] = (int64_t)dw_dtype;
        wgrad.size[GROUPED_ACC] = kinds[i].acc;
        const size_t used = strlen(wgrad.shape);
        snprintf(wgrad.shape + used, sizeof wgrad.shape - used, "%s", kinds[i].name);
        if (kinds[i].acc)
            ck_inout(&wgrad, "dw", dw_dtype, w_elements, CK_SUM);
        else
            ck_out(&wgrad, "dw", dw_dtype, w_elements, CK_SUM);
        ck_run(ctx, &wgrad);
    }
}

static void check_grouped(ck_context *ctx) {
    static const int32_t none[] = {0, 0, 0, 0}, one[] = {0, 0, 1, 1}, all[] = {0, 0, 0, 300, 300},
                         ragged[] = {0, 3, 3, 70, 71, 139, 140}, single[] = {0, 37};
    const routing routings[] = {
        {"no rows", 3, 0, 4, none, false, 0},       {"no assignments", 3, 5, 4, none, true, 0},
        {"one row", 3, 1, 4, one, false, 0},        {"all to one", 4, 300, 90, all, true, 0},
        {"all to one", 4, 300, 300, all, false, 0}, {"ragged", 6, 150, 60, ragged, true, 0},
        {"ragged", 6, 150, 150, ragged, false, 0},  {"one expert", 1, 37, 20, single, true, 0},
    };
    /* The last: rows of 16 bytes, which is what tile copies need. */
    static const int64_t sizes[][2] = {{1, 1}, {33, 17}, {40, 70}, {136, 72}};
    for (size_t i = 0; i < sizeof routings / sizeof routings[0]; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int t = 0; t < 2; t++)
                grouped_cases(ctx, &routings[i], sizes[s][0], sizes[s][1], t ? XP_BF16 : XP_F32);
    /* Several tiles in every direction, and more rows than one chunk of scratch. */
    static const int32_t large[] = {0, 10, 700};
    const routing skewed = {"large", 2, 700, 80, large, true, 0};
    grouped_cases(ctx, &skewed, 300, 270, XP_F32);
    grouped_cases(ctx, &skewed, 300, 270, XP_BF16);
    grouped_cases(ctx, &skewed, 528, 328, XP_BF16);
    /* Many experts, the first and the last and every fifth without rows, the others with 1 to 127. */
    enum { N_MANY = 61 };
    int32_t starts[N_MANY + 1] = {0};
    for (int e = 0; e < N_MANY; e++)
        starts[e + 1] = starts[e] + (e % 5 == 0 ? 0 : 1 + 37 * e % 127);
    routing small = {"many experts", N_MANY, starts[N_MANY], 300, starts, true, 0};
    grouped_cases(ctx, &small, 136, 72, XP_BF16);
    small.spare_sms = 100000; /* as few blocks as can be: each takes many tiles */
    grouped_cases(ctx, &small, 136, 72, XP_BF16);
    /* Enough rows an expert for 2-CTA clusters; an expert that fills no tile, ends inside tiles. */
    static const int32_t pairs[] = {0, 300, 310, 1640};
    for (int gathered = 0; gathered < 2; gathered++) {
        routing many = {"clusters", 3, 1700, gathered ? 200 : 1700, pairs, gathered != 0, 0};
        grouped_cases(ctx, &many, 264, 328, XP_BF16);
        many.spare_sms = 129;
        grouped_cases(ctx, &many, 264, 72, XP_BF16);
    }
}

/* One layer's experts of the mid-size model, and the same with most rows on one expert. */
static void bench_grouped(ck_context *ctx) {
    int32_t even[33], skewed[33];
    for (int e = 0; e <= 32; e++) {
        even[e] = 512 * e;
        skewed[e] = e < 32 ? 150 * e : 16384;
    }
    const routing routings[] = {{"even", 32, 16384, 4096, even, true, 0},
                                {"skewed", 32, 16384, 4096, skewed, true, 0}};
    for (int i = 0; i < 2; i++) {
        grouped_cases(ctx, &routings[i], 768, 512, XP_F32);
        grouped_cases(ctx, &routings[i], 512, 384, XP_F32);
    }
}

/* dx and dw are derivatives of y; every row in place, so that the rows of x and of dx are the same.
 */
static void gradient_grouped(ck_context *ctx) {
    static const int32_t offsets[] = {0, 9, 9, 30};
    const routing r = {"gradient", 3, 30, 30, offsets, false, 0};
    ck_case forward, dgrad, wgrad;
    begin(&forward, "grouped_forward", call_forward, &r, 14, 11, XP_F32);
    ck_in(&forward, "x", XP_F32, 30 * 11);
    ck_in(&forward, "w", XP_F32, 3 * 14 * 11);
    ck_out(&forward, "y", XP_F32, 30 * 14, CK_SUM);
    begin(&dgrad, "grouped_dgrad", call_dgrad, &r, 14, 11, XP_F32);
    ck_in(&dgrad, "dy", XP_F32, 30 * 14);
    ck_in(&dgrad, "w", XP_F32, 3 * 14 * 11);
    ck_out(&dgrad, "dx", XP_F32, 30 * 11, CK_SUM);
    ck_gradient(ctx, &forward, &dgrad, 1e-3);
    begin(&wgrad, "grouped_wgrad", call_wgrad, &r, 14, 11, XP_F32);
    ck_in(&wgrad, "dy", XP_F32, 30 * 14);
    ck_in(&wgrad, "x", XP_F32, 30 * 11);
    ck_out(&wgrad, "dw", XP_F32, 3 * 14 * 11, CK_SUM);
    ck_gradient(ctx, &forward, &wgrad, 1e-3);
}

void ck_gemm_cases(ck_context *ctx) {
    if (ctx->bench) {
        bench_gemm(ctx);
        bench_grouped(ctx);
        return;
    }
    check_gemm(ctx);
    check_grouped(ctx);
    gradient_grouped(ctx);
}
