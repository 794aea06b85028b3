/* Timing shapes, and how long they would take at the machine's limits. */
#include "shapes.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "core/rng.h"

#define FLUSH_BYTES  ((size_t)32 << 20) /* more than most of a CPU's caches hold */
#define MOST_SAMPLES 2000
#define TELL_S       10.0 /* between lines of progress where no terminal shows them */

/* ---- floors --------------------------------------------------------------------------------- */

static ck_size_class class_of(double floor_s) {
    static const double below[] = {5e-6, 15e-6, 50e-6, 150e-6};
    int size = CK_BELOW_5;
    while (size < CK_LONGER && floor_s >= below[size])
        size++;
    return (ck_size_class)size;
}

static void find_floor(const ck_context *ctx, const ck_case *c, ck_shape_row *row) {
    row->floor_s = ck_floor_s(ctx, c, &row->by_flops);
    row->size = class_of(row->floor_s);
    if (ctx->gpu)
        snprintf(row->reason, sizeof row->reason, "%s", c->reason);
    if (row->reason[0] == '\0' && row->size == CK_BELOW_5)
        snprintf(row->reason, sizeof row->reason, "as short as %s",
                 ctx->gpu ? "a launch with its first wave" : "starting the threads");
}

/* ---- time ----------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of calls on the CPU, each after a write of more than the caches hold. */
static xp_status sample(const ck_candidate *candidate, const ck_call *call, double repeat_s,
                        char *flush, double *seconds) {
    static const int least = 4; /* the first warms up */
    double *samples = malloc(sizeof *samples * MOST_SAMPLES);
    if (samples == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    const double end = xp_time_s() + repeat_s;
    xp_status status = XP_OK;
    int n = 0;
    for (int i = 0; status == XP_OK && n < MOST_SAMPLES && (i < least || xp_time_s() < end); i++) {
        memset(flush, i, FLUSH_BYTES);
        const double start = xp_time_s();
        status = call->c->call(call);
        if (status == XP_OK)
            status = xp_stream_sync(candidate->stream);
        samples[n] = xp_time_s() - start;
        n += i >= 1;
    }
    qsort(samples, (size_t)n, sizeof *samples, ascending);
    *seconds = samples[n / 2];
    free(samples);
    return status;
}

static xp_status time_call(const ck_context *ctx, const ck_call *call, double *seconds) {
    const ck_candidate *candidate = &ctx->candidates[0];
    if (ctx->gpu)
        return ck_time_on_gpu(candidate, call, ctx->repeat_s, seconds);
    return sample(candidate, call, ctx->repeat_s, ctx->shapes->flush, seconds);
}

static xp_status time_case(const ck_context *ctx, const ck_case *c, double *seconds) {
    const ck_candidate *candidate = &ctx->candidates[0];
    ck_loaded loaded;
    XP_TRY(ck_shapes_load(candidate, ctx->shapes, c, &loaded));
    const ck_call call = {c, candidate->ops, candidate->stream, loaded.pointers, loaded.scratch};
    const xp_status status = time_call(ctx, &call, seconds);
    ck_loaded_release(candidate, c, &loaded);
    return status;
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void tell_progress(ck_shapes *shapes, const ck_case *c) {
    const double now = xp_time_s();
    const bool is_terminal = isatty(STDERR_FILENO) == 1;
    if (!is_terminal && now - shapes->told_s < TELL_S)
        return;
    shapes->told_s = now;
    fprintf(stderr, "%s%d of %d shapes, %.0f s: %s%s", is_terminal ? "\r" : "", shapes->n_rows,
            shapes->n_cases, now - shapes->began_s, c->op, is_terminal ? "\033[K" : "\n");
}

void ck_shapes_add(ck_context *ctx, const ck_case *c) {
    ck_shapes *shapes = ctx->shapes;
    if (shapes->counting) {
        shapes->n_cases++;
        return;
    }
    if (xp_time_s() - shapes->began_s > shapes->budget_s) {
        shapes->n_left_out++;
        return;
    }
    tell_progress(shapes, c);
    ck_shape_row *row = &shapes->rows[shapes->n_rows++];
    *row = (ck_shape_row){.op = c->op};
    snprintf(row->shape, sizeof row->shape, "%s", c->shape);
    find_floor(ctx, c, row);
    const xp_status status = time_case(ctx, c, &row->seconds);
    if (status == XP_OK)
        return;
    snprintf(row->error, sizeof row->error, "%s", xp_last_error());
    ctx->n_failed += status != XP_ENOMEM; /* a GPU with less memory has fewer shapes */
}

static xp_status reserve(ck_shapes *shapes) {
    shapes->rows = calloc((size_t)shapes->n_cases + 1, sizeof *shapes->rows);
    shapes->normal = malloc(sizeof *shapes->normal * CK_NOISE);
    shapes->positive = malloc(sizeof *shapes->positive * CK_NOISE);
    shapes->flush = malloc(FLUSH_BYTES);
    if (!shapes->rows || !shapes->normal || !shapes->positive || !shapes->flush)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    for (int64_t i = 0; i < CK_NOISE; i++) {
        shapes->normal[i] = (float)xp_rng_normal(1, xp_rng_stream("normal"), (uint64_t)i);
        shapes->positive[i] =
            0.5F + (float)xp_rng_uniform(1, xp_rng_stream("positive"), (uint64_t)i);
    }
    return XP_OK;
}

xp_status ck_shapes_run(ck_context *ctx) {
    ck_shapes *shapes = ctx->shapes;
    shapes->counting = true;
    ck_shapes_users(ctx);
    shapes->counting = false;
    xp_status status = reserve(shapes);
    shapes->began_s = shapes->told_s = xp_time_s();
    ctx->n_cases = 0;
    if (status == XP_OK) {
        ck_shapes_users(ctx);
        if (isatty(STDERR_FILENO) == 1)
            fputs("\r\033[K", stderr);
        (ctx->json ? ck_shapes_json : ck_shapes_print)(ctx, shapes);
    }
    free(shapes->flush);
    free(shapes->positive);
    free(shapes->normal);
    free(shapes->rows);
    return status;
}
