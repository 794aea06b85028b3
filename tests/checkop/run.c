/* One case against every candidate. */
#include <fnmatch.h>
#include <math.h>
#include <string.h>
#include "checkop.h"
#include "core/rng.h"
#include "shapes.h"

/* NaN runs repeat the case for every input: large cases would take long and show nothing new. */
#define NAN_RUN_MOST 100000
/* And on the CPU, where the candidates are many: beyond this the fewest and the most threads only. */
#define LONG_FLOPS     8e6
#define QUICK_RUN_MOST 50000

static void fail(ck_context *ctx, const ck_case *c, const char *candidate, const char *what,
                 const char *text) {
    ctx->n_failed++;
    fprintf(ctx->json ? stderr : ctx->out, "FAIL  %s  %s  [%s, seed %llu]\n      %s%s\n", c->op,
            c->shape, candidate, (unsigned long long)ctx->seed, what, text);
}

/* Run one candidate on a copy of `input`; false when it failed. @param[out] result freed by the
 * caller, may be NULL */
static bool run_one(ck_context *ctx, const ck_case *c, int k, const ck_image *input,
                    const ck_image *want, const char *what, ck_image **result) {
    char text[512] = "";
    ck_image *got = NULL;
    if (ck_image_copy(input, &got) != XP_OK ||
        ck_run_candidate(&ctx->candidates[k], got, text, sizeof text) != XP_OK)
        snprintf(text, sizeof text, "%s", xp_last_error());
    else if (text[0] == '\0')
        ck_compare(c, want, got, what[0] != '\0', text, sizeof text);
    *result = got;
    if (text[0] == '\0')
        return true;
    fail(ctx, c, ctx->candidates[k].name, what, text);
    return false;
}

static bool is_long(const ck_context *ctx, const ck_case *c) {
    return !ctx->gpu && c->flops > LONG_FLOPS;
}

/* Neither the fewest nor the most threads of its table. */
static bool is_between(const ck_context *ctx, int k) {
    const int same = ctx->candidates[k].same_bits_as;
    return same >= 0 && k + 1 < ctx->n_candidates && ctx->candidates[k + 1].same_bits_as == same;
}

/* All candidates; each one's bits against those of its table with one thread. Long cases and NaN runs
 * take the fewest and the most threads. */
static bool run_all(ck_context *ctx, const ck_case *c, const ck_image *input, const ck_image *want,
                    const char *what) {
    ck_image *results[CK_MAX_CANDIDATES] = {0};
    bool ok = true;
    for (int k = 0; ok && k < ctx->n_candidates; k++) {
        const int same = ctx->candidates[k].same_bits_as;
        if ((what[0] != '\0' || is_long(ctx, c)) && is_between(ctx, k))
            continue;
        ok = run_one(ctx, c, k, input, want, what, &results[k]);
        char text[256] = "";
        if (ok && same >= 0 && !ck_same_bits(c, results[same], results[k], text, sizeof text)) {
            fail(ctx, c, ctx->candidates[k].name, what, text);
            ok = false;
        }
    }
    for (int k = 0; k < ctx->n_candidates; k++)
        ck_image_destroy(results[k]);
    return ok;
}

static bool takes_nan(const ck_buffer *b) {
    const bool is_float = b->dtype == XP_F32 || b->dtype == XP_BF16 || b->dtype == XP_F64;
    return is_float && b->n > 0 && !b->no_nan &&
           (b->role == CK_IN || b->role == CK_INOUT || b->role == CK_SAVED);
}

static int64_t elements(const ck_case *c) {
    int64_t n = 0;
    for (int i = 0; i < c->n_buffers; i++)
        n += c->buffers[i].n;
    return n;
}

/* Put one NaN, then one Inf, into each input in turn: results are not finite where the plain code's
 * are not. */
static bool run_not_finite(ck_context *ctx, const ck_case *c, const ck_image *input) {
    bool ok = true;
    for (int i = 0; ok && i < 2 * c->n_buffers; i++) {
        const ck_buffer *b = &c->buffers[i / 2];
        if (!takes_nan(b))
            continue;
        const int64_t at = (int64_t)xp_rng_below(ctx->seed, xp_rng_stream("not finite"),
                                                 (uint64_t)i, (uint64_t)b->n);
        ck_image *bad = NULL, *want = NULL;
        char what[128];
        snprintf(what, sizeof what, "with %s[%lld] = %s: ", b->name, (long long)at,
                 i % 2 == 0 ? "NaN" : "Inf");
        xp_status status = ck_image_copy(input, &bad);
        if (status == XP_OK) {
            ck_store(ck_image_data(bad, i / 2), b->dtype, at,
                     i % 2 == 0 ? (double)NAN : (double)INFINITY);
            status = ck_image_copy(bad, &want);
        }
        if (status == XP_OK)
            status = ck_run_reference(ctx, want);
        if (status == XP_OK)
            ok = run_all(ctx, c, bad, want, what);
        else
            fail(ctx, c, "plain", what, xp_last_error());
        ok = ok && status == XP_OK;
        ck_image_destroy(bad);
        ck_image_destroy(want);
    }
    return ok;
}

void ck_run(ck_context *ctx, const ck_case *c) {
    if (fnmatch(ctx->op_glob, c->op, 0) != 0)
        return;
    ctx->n_cases++;
    ck_count_case(ctx, c->op);
    if (ctx->list || (ctx->n_cases - 1) % ctx->n_parts != ctx->part)
        return;
    if (ctx->shapes) {
        ck_shapes_add(ctx, c);
        return;
    }
    if (ctx->bench) {
        ck_bench(ctx, c);
        return;
    }
    if (ctx->quick && elements(c) > QUICK_RUN_MOST)
        return;
    ck_image *input = NULL, *want = NULL;
    xp_status status = ck_image_create(ctx, c, &input);
    if (status == XP_OK)
        status = ck_image_copy(input, &want);
    if (status == XP_OK)
        status = ck_run_reference(ctx, want);
    bool ok = status == XP_OK;
    if (!ok)
        fail(ctx, c, "plain", "", xp_last_error());
    ok = ok && run_all(ctx, c, input, want, "");
    if (ok && !ctx->quick && elements(c) <= NAN_RUN_MOST && !is_long(ctx, c))
        ok = run_not_finite(ctx, c, input);
    if (ctx->verbose && !ctx->json)
        fprintf(ctx->out, "%-4s  %s  %s\n", ok ? "ok" : "FAIL", c->op, c->shape);
    if (ctx->json)
        fprintf(ctx->out, "%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"ok\": %s}",
                ctx->n_json++ == 0 ? "" : ",", c->op, c->shape, ok ? "true" : "false");
    ck_image_destroy(input);
    ck_image_destroy(want);
}
