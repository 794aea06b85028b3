/** Optimizer and reductions, plain: fp64 inside, elements in ascending order. */
#include <math.h>
#include "core/remainder.h"
#include "core/rng.h"
#include "ops/cpu/cpu_ops.h"

/* Element i's weight, and v as the second moment alone. */
static float load_weight(const xp_adamw_args *args, int64_t i) {
    float weight = 0;
    if (args->param_dtype != XP_BF16)
        return ((const float *)args->param)[i];
    xp_remainder_join(1, (const uint16_t *)args->param + i, args->remainder + i, args->v + i,
                      &weight);
    return weight;
}

static void store_weight(const xp_adamw_args *args, int64_t i, float weight) {
    if (args->param_dtype != XP_BF16)
        ((float *)args->param)[i] = weight;
    else
        xp_remainder_split(1, &weight, (uint16_t *)args->param + i, args->remainder + i,
                           args->v + i);
}

static xp_status adamw(xp_stream *stream, const xp_adamw_args *args) {
    if (args->n == 0 || isnan(*args->grad_scale))
        return XP_OK;
    (void)stream;
    double beta1 = (double)args->beta1;
    double beta2 = (double)args->beta2;
    double lr = (double)args->lr;
    double scale = (double)*args->grad_scale;
    double correction1 = 1 - pow(beta1, (double)args->step);
    double correction2 = 1 - pow(beta2, (double)args->step);
    double decay = 1 - lr * (double)args->weight_decay;
    for (int64_t i = 0; i < args->n; i++) {
        const double weight = (double)load_weight(args, i);
        double g = scale * (double)xp_cpu_load(args->grad, args->grad_dtype, i);
        double m = beta1 * (double)args->m[i] + (1 - beta1) * g;
        double v = beta2 * (double)args->v[i] + (1 - beta2) * g * g;
        double denominator = sqrt(v / correction2) + (double)args->eps;
        args->m[i] = (float)m;
        args->v[i] = (float)v;
        store_weight(args, i, (float)(decay * weight - lr * (m / correction1) / denominator));
    }
    return XP_OK;
}

static xp_status remainder_split(xp_stream *stream, const xp_remainder_args *args) {
    (void)stream;
    xp_remainder_split(args->n, args->master, args->param, args->remainder, args->v);
    return XP_OK;
}

static xp_status remainder_join(xp_stream *stream, const xp_remainder_args *args) {
    (void)stream;
    xp_remainder_join(args->n, args->param, args->remainder, args->v, args->master);
    return XP_OK;
}

static xp_status clip_scale(xp_stream *stream, const xp_clip_scale_args *args) {
    (void)stream;
    double total = 0;
    for (int64_t i = 0; i < args->n; i++)
        total += args->squares[i];
    double scale = args->max_norm > 0 ? args->max_norm / (sqrt(total) + 1e-6) : 1;
    bool stop = false;
    for (int i = 0; i < 2; i++)
        stop |= args->stop[i] && *args->stop[i] != 0;
    if (stop || !isfinite(total))
        *args->scale = NAN;
    else
        *args->scale = scale < 1 ? (float)scale : 1.0F;
    return XP_OK;
}

static xp_status sum_squares(xp_stream *stream, const xp_sum_squares_args *args) {
    (void)stream;
    double sum = args->acc ? *args->out : 0;
    for (int64_t i = 0; i < args->n; i++) {
        double x = (double)xp_cpu_load(args->x, args->dtype, i);
        sum += x * x;
    }
    *args->out = sum;
    return XP_OK;
}

static xp_status sum_squares_parts(xp_stream *stream, const xp_sum_squares_parts_args *args) {
    for (int i = 0; i < args->n_parts; i++) {
        const xp_sum_squares_args part = xp_sum_squares_of_part(args, i);
        XP_TRY(sum_squares(stream, &part));
    }
    return XP_OK;
}

static xp_status axpy(xp_stream *stream, const xp_axpy_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->n; i++) {
        double y = args->acc ? (double)xp_cpu_load(args->y, args->y_dtype, i) : 0;
        y += (double)args->alpha * (double)xp_cpu_load(args->x, args->x_dtype, i);
        xp_cpu_store(args->y, args->y_dtype, i, (float)y);
    }
    return XP_OK;
}

static xp_status sum(xp_stream *stream, const xp_sum_args *args) {
    (void)stream;
    double total = 0;
    for (int64_t i = 0; i < args->n; i++)
        total += (double)args->x[i];
    *args->out = total;
    return XP_OK;
}

static xp_status draw(xp_stream *stream, const xp_draw_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->n; i++)
        args->out[i] = args->std > 0 ? args->std * xp_rng_normal(args->seed, args->stream,
                                                                 args->first + (uint64_t)i)
                                     : 1.0F;
    return XP_OK;
}

void xp_cpu_optim_reference(xp_ops *ops) {
    ops->adamw = adamw;
    ops->remainder_split = remainder_split;
    ops->remainder_join = remainder_join;
    ops->clip_scale = clip_scale;
    ops->sum_squares = sum_squares;
    ops->sum_squares_parts = sum_squares_parts;
    ops->axpy = axpy;
    ops->sum = sum;
    ops->draw = draw;
}
