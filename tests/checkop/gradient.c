/* Backward against central differences of the plain forward, one random direction for each input.
 */
#include <fnmatch.h>
#include <math.h>
#include <string.h>
#include "checkop.h"
#include "core/rng.h"

/* Balances the rounding of fp32 outputs (1e-7 / STEP) against the third derivative (STEP^2). */
#define STEP 1e-2
/* Where all terms of order 1 cancel, as in a norm over one element, this is still 0. */
#define CANCELLED 2e-3

/* The gradient buffer of `name` in a backward case: "dname". */
static int find_gradient(const ck_case *backward, const char *name) {
    char text[64];
    snprintf(text, sizeof text, "d%s", name);
    return ck_find(backward, text);
}

/* sum of dy * y over forward's outputs that have a gradient, after forward with input `k` moved by
 * `step`. */
static xp_status loss_at(const ck_context *ctx, const ck_case *forward, const ck_case *backward,
                         const ck_image *given, int k, double step, double *loss) {
    ck_image *image = NULL;
    XP_TRY(ck_image_create(ctx, forward, &image));
    float *x = ck_image_data(image, k);
    for (int64_t i = 0; i < forward->buffers[k].n; i++)
        x[i] += (float)(step *
                        (double)xp_rng_normal(ctx->seed, xp_rng_stream("direction"), (uint64_t)i));
    const xp_status status = ck_run_reference(ctx, image);
    *loss = 0.0;
    for (int o = 0; status == XP_OK && o < forward->n_buffers; o++) {
        const ck_buffer *b = &forward->buffers[o];
        const int g =
            b->role == CK_OUT || b->role == CK_INOUT ? find_gradient(backward, b->name) : -1;
        for (int64_t i = 0; g >= 0 && i < b->n; i++)
            *loss += ck_load(ck_image_data(image, o), b->dtype, i) *
                     ck_load(ck_image_data(given, g), b->dtype, i);
    }
    ck_image_destroy(image);
    return status;
}

static xp_status check_input(ck_context *ctx, const ck_case *forward, const ck_case *backward,
                             const ck_image *given, const ck_image *result, int k,
                             double tolerance) {
    const ck_buffer *b = &forward->buffers[k];
    const int g = find_gradient(backward, b->name);
    double above, below, dot = 0.0, squares = 0.0;
    XP_TRY(loss_at(ctx, forward, backward, given, k, STEP, &above));
    XP_TRY(loss_at(ctx, forward, backward, given, k, -STEP, &below));
    for (int64_t i = 0; i < b->n; i++) {
        const double d = (double)xp_rng_normal(ctx->seed, xp_rng_stream("direction"), (uint64_t)i);
        const double grad = ck_load(ck_image_data(result, g), b->dtype, i);
        dot += grad * d;
        squares += grad * grad;
    }
    const double slope = (above - below) / (2 * STEP);
    if (fabs(slope - dot) > tolerance * (fabs(slope) + sqrt(squares) + CANCELLED)) {
        ctx->n_failed++;
        fprintf(ctx->json ? stderr : ctx->out,
                "FAIL  %s  %s  [differences, seed %llu]\n      d%s: slope %.9g by differences, "
                "%.9g by the gradient\n",
                backward->op, backward->shape, (unsigned long long)ctx->seed, b->name, slope, dot);
    }
    return XP_OK;
}

void ck_gradient(ck_context *ctx, const ck_case *forward, const ck_case *backward,
                 double tolerance) {
    if (ctx->bench || ctx->quick || ctx->list || fnmatch(ctx->op_glob, backward->op, 0) != 0)
        return;
    ctx->n_cases++;
    ck_image *given = NULL, *result = NULL;
    char damage[256] = "";
    xp_status status = ck_image_create(ctx, backward, &given);
    if (status == XP_OK)
        status = ck_image_copy(given, &result);
    if (status == XP_OK)
        status = ck_run_candidate(&ctx->candidates[0], result, damage, sizeof damage);
    for (int k = 0; status == XP_OK && k < forward->n_buffers; k++) {
        const ck_buffer *b = &forward->buffers[k];
        const int g =
            b->role == CK_IN && b->dtype == XP_F32 ? find_gradient(backward, b->name) : -1;
        const bool written = g >= 0 && (backward->buffers[g].role == CK_OUT ||
                                        backward->buffers[g].role == CK_INOUT);
        if (written && b->n > 0)
            status = check_input(ctx, forward, backward, given, result, k, tolerance);
    }
    if (status != XP_OK) {
        ctx->n_failed++;
        fprintf(ctx->json ? stderr : ctx->out, "FAIL  %s  %s: %s\n", backward->op, backward->shape,
                xp_last_error());
    }
    ck_image_destroy(given);
    ck_image_destroy(result);
}
