/* The table of shapes as text and as JSON. */
#include <math.h>
#include <string.h>
#include "core/text.h"
#include "shapes.h"

/* Of the best of its op at its size; below, a shape needs a reason. */
#define ENOUGH 0.6

static const char *const class_names[CK_N_CLASSES] = {"< 5", "< 15", "< 50", "< 150", ">= 150"};

static double share_of_floor(const ck_shape_row *r) {
    return r->seconds > 0 ? r->floor_s / r->seconds : 0;
}

static bool is_same_kind(const ck_shape_row *a, const ck_shape_row *b) {
    return a->size == b->size && strcmp(a->op, b->op) == 0;
}

/* The best share of the floor among rows of this one's op and size or smaller ones, which are harder; at most all
 * of it: what a cache still holds is no measure. */
static double best_of(const ck_shapes *shapes, const ck_shape_row *row) {
    double best = 0;
    for (int i = 0; i < shapes->n_rows; i++)
        if (strcmp(row->op, shapes->rows[i].op) == 0 && shapes->rows[i].size <= row->size)
            best = fmax(best, share_of_floor(&shapes->rows[i]));
    return fmin(1, best);
}

static double share_of_best(const ck_shapes *shapes, const ck_shape_row *row) {
    const double best = best_of(shapes, row);
    return best > 0 ? share_of_floor(row) / best : 0;
}

static bool is_under(const ck_shapes *shapes, const ck_shape_row *row) {
    return row->error[0] == '\0' && share_of_best(shapes, row) < ENOUGH;
}

/* ---- text ----------------------------------------------------------------------------------- */

static void print_row(const ck_context *ctx, const ck_shapes *shapes, const ck_shape_row *r) {
    if (r->error[0]) {
        fprintf(ctx->out, "%-24s %-52s not timed: %s\n", r->op, r->shape, r->error);
        return;
    }
    const bool under = is_under(shapes, r);
    fprintf(ctx->out, "%-24s %-52s %10.1f %10.1f %-4s %6.1f%% %6.1f%% %-6s%s%s\n", r->op, r->shape,
            r->seconds * 1e6, r->floor_s * 1e6, r->by_flops ? "GEMM" : "copy",
            100 * share_of_floor(r), 100 * share_of_best(shapes, r), class_names[r->size],
            under ? "  < 60 %: " : "",
            !under         ? ""
            : r->reason[0] ? r->reason
                           : "NO REASON");
}

/* What an op reaches at each size, once for each of its kinds. */
static void print_kinds(const ck_context *ctx, const ck_shapes *shapes) {
    fprintf(ctx->out, "\n%-24s %-8s %6s %8s %8s %9s\n", "op", "floor us", "shapes", "best", "worst",
            "< 60 %");
    for (int i = 0; i < shapes->n_rows; i++) {
        const ck_shape_row *first = &shapes->rows[i];
        double worst = INFINITY;
        int n = 0, n_under = 0, n_before = 0;
        for (int k = 0; k < shapes->n_rows; k++) {
            const ck_shape_row *r = &shapes->rows[k];
            if (r->error[0] || !is_same_kind(first, r))
                continue;
            n_before += k < i;
            n++;
            n_under += is_under(shapes, r);
            worst = fmin(worst, share_of_floor(r));
        }
        if (n_before == 0 && n > 0 && !first->error[0])
            fprintf(ctx->out, "%-24s %-8s %6d %7.1f%% %7.1f%% %9d\n", first->op,
                    class_names[first->size], n, 100 * best_of(shapes, first), 100 * fmin(1, worst),
                    n_under);
    }
}

static void print_count(const ck_context *ctx, const ck_shapes *shapes) {
    int n = 0, n_under = 0, n_silent = 0;
    for (int i = 0; i < shapes->n_rows; i++) {
        const bool under = is_under(shapes, &shapes->rows[i]);
        n += shapes->rows[i].error[0] == '\0';
        n_under += under;
        n_silent += under && shapes->rows[i].reason[0] == '\0';
    }
    fprintf(
        ctx->out,
        "\n%d of %d shapes are under 60 %% of the best of their op and size, %d of them without "
        "a reason\n",
        n_under, n, n_silent);
    if (shapes->n_left_out > 0)
        fprintf(ctx->out, "%d shapes were left out: %g s are over\n", shapes->n_left_out,
                shapes->budget_s);
    fprintf(ctx->out, "floors: %s %.4g TFLOP/s, copy %.4g TB/s, both of this run\n",
            ctx->limits.what, ctx->limits.flops_per_s * 1e-12,
            ctx->limits.copy_bytes_per_s * 1e-12);
}

void ck_shapes_print(const ck_context *ctx, const ck_shapes *shapes) {
    fprintf(ctx->out, "%-24s %-52s %10s %10s %-4s %7s %7s %s\n", "op", "shape", "us", "floor us",
            "by", "of it", "of best", "size");
    for (int i = 0; i < shapes->n_rows; i++)
        print_row(ctx, shapes, &shapes->rows[i]);
    print_kinds(ctx, shapes);
    print_count(ctx, shapes);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

void ck_shapes_json(const ck_context *ctx, const ck_shapes *shapes) {
    fprintf(ctx->out, "[");
    for (int i = 0; i < shapes->n_rows; i++) {
        const ck_shape_row *r = &shapes->rows[i];
        xp_text error = {0};
        fprintf(ctx->out, "%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"size\": \"%s\"",
                i > 0 ? "," : "", r->op, r->shape, class_names[r->size]);
        xp_text_add_json(&error, r->error, strlen(r->error));
        if (r->error[0])
            fprintf(ctx->out, ", \"error\": %s}", error.failed ? "\"\"" : error.data);
        else
            fprintf(ctx->out,
                    ", \"seconds\": %.9g, \"floor_s\": %.9g, \"bound\": \"%s\", "
                    "\"share_of_floor\": %.6g, \"share_of_best\": %.6g, \"under\": %s, "
                    "\"reason\": %s%s%s}",
                    r->seconds, r->floor_s, r->by_flops ? "GEMM" : "copy", share_of_floor(r),
                    share_of_best(shapes, r), is_under(shapes, r) ? "true" : "false",
                    r->reason[0] ? "\"" : "null", r->reason, r->reason[0] ? "\"" : "");
        xp_text_free(&error);
    }
    fprintf(ctx->out, "\n]\n");
}
