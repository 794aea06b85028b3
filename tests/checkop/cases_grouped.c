/* Grouped GEMM with every kind of routing, of all rows and of a part of them. */
#include <string.h>
#include "shapes.h"

enum {
    GROUPED_L,
    GROUPED_ROWS,
    GROUPED_N,
    GROUPED_K,
    GROUPED_TOKENS,
    GROUPED_DTYPE,
    GROUPED_DW,
    GROUPED_ACC,
    GROUPED_SPARE_SMS,
    GROUPED_WHICH /* rows: an xp_grouped_rows */
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
                             .spare_sms = (int)s[GROUPED_SPARE_SMS],
                             .row_range = ck_at(call, "row_range"),
                             .rows = (xp_grouped_rows)s[GROUPED_WHICH]};
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

/* ---- grouped: a part of the rows ------------------------------------------------------------- */

enum { MAX_RANGED_ROWS = 4096, NO_ROW = 1 << 30 };

typedef struct ranged {
    routing r;
    const int32_t *range; /* [L, 2] */
    xp_grouped_rows rows;
} ranged;

static bool is_computed(const ranged *p, int64_t row) {
    for (int64_t e = 0; e < p->r.n_experts; e++)
        if (row >= p->r.offsets[e] && row < p->r.offsets[e + 1])
            return (row >= p->range[2 * e] && row < p->range[2 * e + 1]) ==
                   (p->rows == XP_ROWS_IN_RANGE);
    return false;
}

/* The gather list leads nowhere for rows that are left alone. Every row of y has random values
 * before, which must stay where nothing is computed. */
static void ranged_case(ck_context *ctx, const ranged *p, bool forward, int64_t n, int64_t k,
                        xp_dtype dtype) {
    const routing *r = &p->r;
    static int32_t gather[MAX_RANGED_ROWS];
    for (int64_t i = 0; i < r->n_rows; i++)
        gather[i] = is_computed(p, i) ? (int32_t)((37 * i + 11) % r->n_tokens) : NO_ROW;
    ck_case c;
    begin(&c, forward ? "grouped_forward" : "grouped_dgrad", forward ? call_forward : call_dgrad, r,
          n, k, dtype);
    c.size[GROUPED_WHICH] = p->rows;
    ck_given(&c, "row_range", XP_I32, 2 * r->n_experts, p->range);
    if (r->gathered)
        ck_given(&c, forward ? "gather" : "gather_dy", XP_I32, r->n_rows, gather);
    ck_in(&c, forward ? "x" : "dy", dtype,
          (r->gathered ? r->n_tokens : r->n_rows) * (forward ? k : n));
    ck_in(&c, "w", dtype, r->n_experts * n * k);
    ck_inout(&c, forward ? "y" : "dx", dtype, r->n_rows * (forward ? n : k), CK_SUM);
    const size_t used = strlen(c.shape);
    snprintf(c.shape + used, sizeof c.shape - used, "%s",
             p->rows == XP_ROWS_IN_RANGE ? ", in range" : ", out of range");
    ck_run(ctx, &c);
}

static void ranged_cases(ck_context *ctx, routing r, const int32_t *range, int64_t n, int64_t k,
                         xp_dtype dtype) {
    for (int i = 0; i < 4; i++) {
        r.gathered = i % 2 != 0;
        const ranged p = {r, range, i < 2 ? XP_ROWS_IN_RANGE : XP_ROWS_OUT_OF_RANGE};
        ranged_case(ctx, &p, true, n, k, dtype);
        ranged_case(ctx, &p, false, n, k, dtype);
    }
}

static void check_ranged(ck_context *ctx) {
    /* Experts of 3, 0, 67, 1, 68 and 1 rows. Ranges: one row, none, all, ... */
    static const int32_t ragged[] = {0, 3, 3, 70, 71, 139, 140};
    static const int32_t mixed[] = {1, 2, 3, 3, 3, 70, 71, 71, 80, 97, 139, 140},
                         nowhere[] = {0, 0, 3, 3, 3, 3, 71, 71, 100, 100, 140, 140},
                         everywhere[] = {0, 3, 3, 3, 3, 70, 70, 71, 71, 139, 139, 140},
                         edges[] = {0, 2, 3, 3, 3, 36, 70, 70, 134, 139, 139, 139};
    static const int32_t *const ranges[] = {mixed, nowhere, everywhere, edges};
    static const int64_t sizes[][2] = {{33, 17}, {136, 72}};
    const routing small = {"ragged", 6, 150, 60, ragged, false, 0};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int t = 0; t < 2; t++)
                ranged_cases(ctx, small, ranges[i], sizes[s][0], sizes[s][1], t ? XP_BF16 : XP_F32);
    static const int32_t none[] = {0, 0, 0, 0}, no_ranges[] = {0, 0, 0, 0, 0, 0};
    const routing no_rows = {"no assignments", 3, 5, 4, none, false, 0};
    ranged_cases(ctx, no_rows, no_ranges, 136, 72, XP_BF16);
    /* Enough rows an expert for 2-CTA clusters. */
    static const int32_t pairs[] = {0, 300, 310, 1640}, parts[] = {37, 300, 310, 310, 501, 1202};
    routing many = {"clusters", 3, 1700, 200, pairs, false, 0};
    ranged_cases(ctx, many, parts, 264, 328, XP_BF16);
    many.spare_sms = 129;
    ranged_cases(ctx, many, parts, 264, 72, XP_BF16);
    /* Every fifth expert without rows; ranges of 0 to all rows, as a rank's own rows lie. */
    enum { N_MANY = 61 };
    int32_t starts[N_MANY + 1] = {0}, own[2 * N_MANY];
    for (int e = 0; e < N_MANY; e++) {
        const int n = e % 5 == 0 ? 0 : 1 + 37 * e % 127;
        starts[e + 1] = starts[e] + n;
        own[2 * e] = starts[e] + n * (e % 4) / 4;
        own[2 * e + 1] = own[2 * e] + (n - n * (e % 4) / 4) * (e % 3) / 2;
    }
    routing experts = {"many experts", N_MANY, starts[N_MANY], 300, starts, false, 0};
    ranged_cases(ctx, experts, own, 136, 72, XP_BF16);
    experts.spare_sms = 100000;
    ranged_cases(ctx, experts, own, 136, 72, XP_BF16);
    /* More experts than keep their ranges in a GPU's shared memory: 0 to 3 rows each. */
    enum { N_MOST = 263 };
    int32_t tiny[N_MOST + 1] = {0}, last[2 * N_MOST];
    for (int e = 0; e < N_MOST; e++) {
        tiny[e + 1] = tiny[e] + e % 4;
        last[2 * e] = tiny[e + 1] - (e % 4 + 1) / 2;
        last[2 * e + 1] = tiny[e + 1];
    }
    const routing most = {"most experts", N_MOST, tiny[N_MOST], 50, tiny, false, 0};
    ranged_cases(ctx, most, last, 16, 24, XP_BF16);
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

/* ---- shapes of users ------------------------------------------------------------------------- */

enum { MOST_EXPERTS = 256 };

static void few_rows(ck_case *c, const ck_grouped_shape *s) {
    if (s->rows < 128)
        snprintf(c->reason, sizeof c->reason, "%lld rows an expert in tiles of 128",
                 (long long)s->rows);
}

static void wgrad_at(ck_context *ctx, const routing *r, const ck_grouped_shape *s, bool acc) {
    const int64_t w_elements = s->n_experts * s->n * s->k;
    const xp_dtype dw_dtype = acc ? XP_F32 : s->dtype;
    const double row_bytes = (double)xp_dtype_bytes(s->dtype), read = acc ? 2 : 1;
    routing plain = *r;
    plain.gathered = false;
    ck_case c;
    begin(&c, "grouped_wgrad", call_wgrad, r, s->n, s->k, s->dtype);
    c.size[GROUPED_DW] = (int64_t)dw_dtype;
    c.size[GROUPED_ACC] = acc;
    add_rows(&c, "x", "gather", r, s->k, s->dtype);
    add_rows(&c, "dy", "gather_dy", &plain, s->n, s->dtype);
    if (acc)
        ck_inout(&c, "dw", dw_dtype, w_elements, CK_SUM);
    else
        ck_out(&c, "dw", dw_dtype, w_elements, CK_SUM);
    c.bytes =
        row_bytes * (double)((r->gathered ? r->n_tokens : r->n_rows) * s->k + r->n_rows * s->n) +
        read * (double)xp_dtype_bytes(dw_dtype) * (double)w_elements;
    const size_t used = strlen(c.shape);
    snprintf(c.shape + used, sizeof c.shape - used, "%s", acc ? " acc in fp32" : "");
    few_rows(&c, s);
    ck_few_tiles(&c, (double)s->n_experts * ck_tiles(s->n) * ck_tiles(s->k));
    ck_run(ctx, &c);
}

static void rows_at(ck_context *ctx, const routing *r, const ck_grouped_shape *s, bool forward) {
    const int64_t from = forward ? s->k : s->n, to = forward ? s->n : s->k;
    ck_case c;
    begin(&c, forward ? "grouped_forward" : "grouped_dgrad", forward ? call_forward : call_dgrad, r,
          s->n, s->k, s->dtype);
    add_rows(&c, forward ? "x" : "dy", forward ? "gather" : "gather_dy", r, from, s->dtype);
    ck_in(&c, "w", s->dtype, s->n_experts * s->n * s->k);
    ck_out(&c, forward ? "y" : "dx", s->dtype, r->n_rows * to, CK_SUM);
    few_rows(&c, s);
    ck_few_tiles(&c, (double)s->n_experts * ck_tiles(s->rows) * ck_tiles(to));
    ck_run(ctx, &c);
}

void ck_grouped_at(ck_context *ctx, const ck_grouped_shape *s) {
    int32_t offsets[MOST_EXPERTS + 1];
    if (s->n_experts > MOST_EXPERTS)
        return;
    for (int64_t e = 0; e <= s->n_experts; e++)
        offsets[e] = (int32_t)(e * s->rows);
    const routing r = {
        "even", s->n_experts, s->n_experts * s->rows, s->n_tokens, offsets, s->n_tokens > 0, 0};
    rows_at(ctx, &r, s, true);
    if (s->forward_only)
        return;
    routing plain = r;
    plain.gathered = false;
    rows_at(ctx, &plain, s, false);
    wgrad_at(ctx, &r, s, false);
    wgrad_at(ctx, &r, s, true);
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

void ck_grouped_cases(ck_context *ctx) {
    if (ctx->bench) {
        bench_grouped(ctx);
        return;
    }
    check_grouped(ctx);
    check_ranged(ctx);
    gradient_grouped(ctx);
}
