/* Grouped GEMM with the experts' activation: every kind of routing, edges of tiles in both directions. */
#include <math.h>
#include <string.h>
#include "checkop.h"

enum { SILU_L, SILU_ROWS, SILU_DIM, SILU_WIDTH, SILU_TOKENS, SILU_DTYPE, SILU_SPARE, SILU_RANGED };

typedef struct routing {
    const char *name;
    int64_t n_experts, n_rows, n_tokens;
    const int32_t *offsets;
    bool gathered;
    int spare_sms;
    const int32_t *range; /* NULL: all rows at once. Else those in range first, then the others */
} routing;

static xp_grouped_silu_args silu_args(const ck_call *call, bool forward) {
    const int64_t *s = call->c->size;
    return (xp_grouped_silu_args){
        .gemm = {.n_experts = s[SILU_L],
                 .max_rows = s[SILU_ROWS],
                 .n = forward ? 2 * s[SILU_WIDTH] : s[SILU_DIM],
                 .k = forward ? s[SILU_DIM] : s[SILU_WIDTH],
                 .offsets = ck_at(call, "offsets"),
                 .gather = ck_at(call, "gather"),
                 .x = ck_at(call, "x"),
                 .w = ck_at(call, "w"),
                 .dy = ck_at(call, "dy"),
                 .gather_dy = ck_at(call, "gather_dy"),
                 .dtype = (xp_dtype)s[SILU_DTYPE],
                 .spare_sms = (int)s[SILU_SPARE],
                 .row_range = ck_at(call, "row_range")},
        .p = ck_at(call, "p"),
        .gate_up = ck_at(call, forward ? "gate_up" : "d_gate_up"),
        .h = ck_at(call, "h"),
        .dp = ck_at(call, "dp"),
        .scratch = ck_at(call, "parts"),
    };
}

static xp_status call_forward(const ck_call *call) {
    xp_grouped_silu_args args = silu_args(call, true);
    if (call->c->size[SILU_RANGED] == 0)
        return call->ops->grouped_silu_forward(call->stream, &args);
    args.gemm.rows = XP_ROWS_IN_RANGE;
    const xp_status status = call->ops->grouped_silu_forward(call->stream, &args);
    args.gemm.rows = XP_ROWS_OUT_OF_RANGE;
    return status != XP_OK ? status : call->ops->grouped_silu_forward(call->stream, &args);
}

static xp_status call_backward(const ck_call *call) {
    const xp_grouped_silu_args args = silu_args(call, false);
    return call->ops->grouped_silu_backward(call->stream, &args);
}

static double rounded(double value) {
    return (double)xp_bf16_to_f32(xp_bf16_from_f32((float)value));
}

static const void *input(const ck_case *c, const ck_image *image, const char *name) {
    const int k = ck_find(c, name);
    return k < 0 ? NULL : ck_image_data(image, k);
}

/*
 * How far dp of a row may be off in bf16, beyond the rounding of its own sum: dp = sum over f of dh[f] act[f],
 * act = silu(gate) up, where dh is a GEMM's result rounded to bf16. Where the exact dh[f] is near a tie, two
 * orders of its sum end on two sides of it and dh[f] differs by a unit of bf16, times act[f].
 *
 * A sum of D products in fp32, in any order, is within e = D 2^-23 sum |dy w| of the exact one: products of
 * bf16 are exact, and each of the D additions loses at most one unit of 2^-23 of a partial sum, which is at
 * most sum |dy w| (tensor cores truncate; rounding loses half of it). The plain sum is fp64. Rounding is
 * monotonic, so the two rounded values differ by at most bf16(dh + e) - bf16(dh - e), which is 0 for an
 * element that is not near a tie. act comes from the plain h = act p, which is within 2^-8 of it.
 */
static double dp_slack(const ck_case *c, const ck_image *want, int buffer, int64_t row) {
    const int64_t *s = c->size, dim = s[SILU_DIM], width = s[SILU_WIDTH];
    const int32_t *offsets = input(c, want, "offsets"), *gather = input(c, want, "gather_dy");
    const void *dy = input(c, want, "dy"), *w = input(c, want, "w"), *h = input(c, want, "h");
    const double p = ck_load(input(c, want, "p"), XP_F32, row);
    if (strcmp(c->buffers[buffer].name, "dp") != 0 || row >= offsets[s[SILU_L]] || p == 0.0)
        return 0.0;
    int64_t expert = 0;
    while (row >= offsets[expert + 1])
        expert++;
    const int64_t from = gather != NULL ? gather[row] : row;
    double slack = 0.0;
    for (int64_t f = 0; f < width; f++) {
        double sum = 0.0, size = 0.0;
        for (int64_t d = 0; d < dim; d++) {
            const double term = ck_load(dy, XP_BF16, from * dim + d) *
                                ck_load(w, XP_BF16, (expert * dim + d) * width + f);
            sum += term;
            size += fabs(term);
        }
        const double e = (double)dim * 0x1p-23 * size;
        const double act = fabs(ck_load(h, XP_BF16, row * width + f) / p) * (1.0 + 0x1p-7);
        slack += (rounded(sum + e) - rounded(sum - e)) * act;
    }
    return slack;
}

static void begin(ck_case *c, bool forward, const routing *r, int64_t dim, int64_t width,
                  xp_dtype dtype) {
    const int64_t size[] = {r->n_experts, r->n_rows,      dim,          width,
                            r->n_tokens,  (int64_t)dtype, r->spare_sms, r->range != NULL};
    ck_case_init(c, forward ? "grouped_silu_forward" : "grouped_silu_backward",
                 forward ? call_forward : call_backward);
    for (int i = 0; i <= SILU_RANGED; i++)
        c->size[i] = size[i];
    ck_given(c, "offsets", XP_I32, r->n_experts + 1, r->offsets);
    c->flops =
        (forward ? 4.0 : 2.0) * (double)r->offsets[r->n_experts] * (double)dim * (double)width;
    snprintf(c->shape, sizeof c->shape, "%s %lld rows, %lld experts, D %lld, F %lld %s%s%s%s",
             r->name, (long long)r->n_rows, (long long)r->n_experts, (long long)dim,
             (long long)width, xp_dtype_name(dtype), r->gathered ? " gathered" : "",
             r->spare_sms > 0 ? " few SMs" : "", r->range != NULL ? " in two parts" : "");
    if (r->gathered)
        ck_index(c, forward ? "gather" : "gather_dy", r->n_rows, r->n_tokens);
    ck_in(c, forward ? "x" : "dy", dtype, (r->gathered ? r->n_tokens : r->n_rows) * dim);
    /* Gates of about 1, so that silu is no straight line. */
    ck_in(c, "w", dtype, r->n_experts * dim * width * (forward ? 2 : 1))->limit =
        dim > 16 ? 0.1 : 0.5;
    ck_in(c, "p", XP_F32, r->n_rows);
}

static void silu_cases(ck_context *ctx, const routing *r, int64_t dim, int64_t width,
                       xp_dtype dtype) {
    const int64_t rows = r->n_rows;
    ck_case forward, backward;
    begin(&forward, true, r, dim, width, dtype);
    if (r->range != NULL)
        ck_given(&forward, "row_range", XP_I32, 2 * r->n_experts, r->range);
    ck_inout(&forward, "gate_up", dtype, 2 * rows * width, CK_SUM); /* other rows stay */
    ck_inout(&forward, "h", dtype, rows * width, CK_CHAIN);
    ck_run(ctx, &forward);
    if (r->range != NULL)
        return;
    begin(&backward, false, r, dim, width, dtype);
    ck_inout(&backward, "d_gate_up", dtype, 2 * rows * width, CK_CHAIN);
    ck_inout(&backward, "h", dtype, rows * width, CK_CHAIN);
    ck_inout(&backward, "dp", XP_F32, rows, CK_CHAIN);
    if (dtype == XP_BF16)
        backward.slack = dp_slack;
    ck_scratch(&backward, "parts", XP_F32, XP_SILU_PARTS(width) * rows);
    ck_run(ctx, &backward);
}

/* Experts' rows in numbers that end a tile early, and in no rows. */
static void check_routings(ck_context *ctx) {
    static const int32_t none[] = {0, 0, 0, 0}, one[] = {0, 0, 1, 1}, all[] = {0, 0, 0, 300, 300},
                         ragged[] = {0, 3, 3, 70, 71, 139, 140}, single[] = {0, 37};
    static const int32_t mixed[] = {1, 2, 3, 3, 3, 70, 71, 71, 80, 97, 139, 140};
    const routing routings[] = {
        {"no rows", 3, 0, 4, none, false, 0, NULL},
        {"no assignments", 3, 5, 4, none, true, 0, NULL},
        {"one row", 3, 1, 4, one, false, 0, NULL},
        {"all to one", 4, 300, 90, all, true, 0, NULL},
        {"ragged", 6, 150, 60, ragged, true, 0, NULL},
        {"ragged", 6, 150, 150, ragged, false, 0, NULL},
        {"ragged", 6, 150, 60, ragged, true, 0, mixed},
        {"one expert", 1, 37, 20, single, true, 0, NULL},
    };
    /* Widths: not 16 bytes, less than a chunk, one past a tile of gate, several sums of dp. */
    static const int64_t sizes[][2] = {{1, 1}, {33, 17}, {72, 40}, {72, 136}, {40, 520}};
    for (size_t i = 0; i < sizeof routings / sizeof routings[0]; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int t = 0; t < 2; t++)
                silu_cases(ctx, &routings[i], sizes[s][0], sizes[s][1], t ? XP_BF16 : XP_F32);
}

static void check_clusters(ck_context *ctx) {
    /* Enough rows an expert for 2-CTA clusters; a CTA without rows in the first expert's last tile and
     * in the second's. */
    static const int32_t pairs[] = {0, 300, 310, 1640}, parts[] = {37, 300, 310, 310, 501, 1202};
    routing many = {"clusters", 3, 1700, 200, pairs, true, 0, NULL};
    silu_cases(ctx, &many, 328, 264, XP_BF16);
    silu_cases(ctx, &many, 64, 768, XP_BF16);
    many.gathered = false, many.n_tokens = many.n_rows;
    silu_cases(ctx, &many, 264, 72, XP_BF16);
    many.spare_sms = 129; /* a cluster takes several tiles, whatever the GPU */
    silu_cases(ctx, &many, 72, 512, XP_BF16);
    many.range = parts;
    silu_cases(ctx, &many, 72, 200, XP_BF16);
    /* Every fifth expert without rows, the others with 1 to 127: single CTAs. */
    enum { N_MANY = 61 };
    int32_t starts[N_MANY + 1] = {0};
    for (int e = 0; e < N_MANY; e++)
        starts[e + 1] = starts[e] + (e % 5 == 0 ? 0 : 1 + 37 * e % 127);
    routing small = {"many experts", N_MANY, starts[N_MANY], 300, starts, true, 0, NULL};
    silu_cases(ctx, &small, 72, 136, XP_BF16);
    small.spare_sms = 100000;
    silu_cases(ctx, &small, 136, 264, XP_BF16);
}

void ck_grouped_silu_cases(ck_context *ctx) {
    static const int32_t even[] = {0, 16384, 32768, 49152, 65536};
    static const int32_t few[] = {0, 512, 1024};
    if (ctx->bench) {
        const routing large = {"even", 4, 65536, 32768, even, true, 0, NULL},
                      little = {"even", 2, 1024, 512, few, true, 0, NULL};
        silu_cases(ctx, ctx->gpu ? &large : &little, ctx->gpu ? 2048 : 128, ctx->gpu ? 768 : 64,
                   ctx->gpu ? XP_BF16 : XP_F32);
        return;
    }
    check_routings(ctx);
    if (ctx->gpu) /* CPUs have one entry, the plain one */
        check_clusters(ctx);
}
