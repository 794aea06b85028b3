#include <math.h>
#include <string.h>
#include "checkop.h"

/* Slack is made from the inputs for one element at a time: where more are wrong none would help. */
enum { MOST_WITH_SLACK = 64 };

static bool is_output(const ck_buffer *b) {
    return b->role == CK_OUT || b->role == CK_INOUT;
}

/* Over the finite ones of elements [begin, end). */
static double root_mean_square(const ck_buffer *b, const void *data, int64_t begin, int64_t end) {
    double squares = 0.0;
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) {
        const double v = ck_load(data, b->dtype, i);
        if (isfinite(v)) {
            squares += v * v;
            n++;
        }
    }
    return n == 0 ? 0.0 : sqrt(squares / (double)n);
}

/*
 * In a run with a NaN or Inf among the inputs, an element that is not finite in the plain code must
 * not be finite, of whatever kind: Inf - Inf and Inf depend on the order of a sum.
 */
static bool agree(double want, double got, double tolerance, bool not_finite_run, bool spreads) {
    if (not_finite_run && !isfinite(got))
        return !isfinite(want) || spreads;
    if (isnan(want))
        return isnan(got);
    if (isinf(want))
        return got == want;
    return fabs(got - want) <= tolerance; /* false for a NaN or Inf that should not be there */
}

bool ck_compare(const ck_case *c, const ck_image *want, const ck_image *got, bool nan_run,
                char *text, size_t n_text) {
    for (int k = 0; k < c->n_buffers; k++) {
        const ck_buffer *b = &c->buffers[k];
        if (!is_output(b))
            continue;
        const void *w = ck_image_data(want, k), *g = ck_image_data(got, k);
        const ck_tolerance_row *row = ck_tolerance_get(b->tolerance);
        const bool half = b->dtype == XP_BF16;
        const double buffer_rms = fmax(root_mean_square(b, w, 0, b->n), b->typical);
        double rms = buffer_rms;
        int64_t n_bad = 0, worst = 0;
        double furthest = -1.0;
        for (int64_t i = 0; i < b->n; i++) {
            if (b->row > 0 && i % b->row == 0)
                rms = fmax(buffer_rms, root_mean_square(b, w, i, i + b->row));
            const double vw = ck_load(w, b->dtype, i), vg = ck_load(g, b->dtype, i);
            const double tolerance = (half ? row->relative_bf16 : row->relative_f32) * fabs(vw) +
                                     (half ? row->rms_bf16 : row->rms_f32) * rms;
            if (agree(vw, vg, tolerance, nan_run, c->nan_spreads))
                continue;
            if (c->slack != NULL && n_bad < MOST_WITH_SLACK &&
                agree(vw, vg, tolerance + c->slack(c, want, k, i), nan_run, c->nan_spreads))
                continue;
            n_bad++;
            const double distance = isfinite(vw - vg) ? fabs(vw - vg) - tolerance : INFINITY;
            if (distance > furthest) {
                furthest = distance;
                worst = i;
            }
        }
        if (n_bad > 0) {
            snprintf(text, n_text,
                     "%s: %lld of %lld wrong, worst at %lld: %.9g, should be %.9g (rms %.3g; "
                     "tolerance: %s)",
                     b->name, (long long)n_bad, (long long)b->n, (long long)worst,
                     ck_load(g, b->dtype, worst), ck_load(w, b->dtype, worst), buffer_rms,
                     row->reason);
            return false;
        }
    }
    return true;
}

bool ck_same_bits(const ck_case *c, const ck_image *a, const ck_image *b, char *text,
                  size_t n_text) {
    for (int k = 0; k < c->n_buffers; k++) {
        if (!is_output(&c->buffers[k]))
            continue;
        const size_t n_bytes = (size_t)c->buffers[k].n * xp_dtype_bytes(c->buffers[k].dtype);
        if (memcmp(ck_image_data(a, k), ck_image_data(b, k), n_bytes) != 0) {
            snprintf(text, n_text, "%s: other bits than with one thread", c->buffers[k].name);
            return false;
        }
    }
    return true;
}
