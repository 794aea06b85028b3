/* Embedding, RMSNorm, QK-norm and RoPE in plain code. Sums are in fp64, everything else in fp32
 * with one rounding at the end. */
#include <math.h>
#include <string.h>
#include "ops/cpu/cpu_ops.h"

/* ---- embedding ------------------------------------------------------------------------------- */

xp_status xp_cpu_embed_check_ids(const xp_embed_args *args) {
    for (int64_t t = 0; t < args->n_tokens; t++) {
        if (args->ids[t] < 0 || args->ids[t] >= args->vocab)
            return xp_error(XP_EINVAL,
                            "embed: token %lld has id %d, outside the vocabulary of %lld",
                            (long long)t, (int)args->ids[t], (long long)args->vocab);
    }
    return XP_OK;
}

static xp_status embed_forward(xp_stream *stream, const xp_embed_args *args) {
    (void)stream;
    XP_TRY(xp_cpu_embed_check_ids(args));
    const size_t row_bytes = (size_t)args->dim * xp_dtype_bytes(args->dtype);
    for (int64_t t = 0; t < args->n_tokens; t++)
        memcpy((char *)args->x + (size_t)t * row_bytes,
               (const char *)args->table + (size_t)args->ids[t] * row_bytes, row_bytes);
    return XP_OK;
}

xp_status xp_cpu_embed_sort(const xp_embed_args *args) {
    XP_TRY(xp_cpu_embed_check_ids(args));
    int32_t *order = args->scratch, *end = args->scratch + args->n_tokens;
    memset(end, 0, sizeof(*end) * (size_t)(args->vocab + 1));
    for (int64_t t = 0; t < args->n_tokens; t++)
        end[args->ids[t] + 1]++;
    for (int64_t id = 0; id < args->vocab; id++)
        end[id + 1] += end[id];
    for (int64_t t = 0; t < args->n_tokens; t++)
        order[end[args->ids[t]]++] = (int32_t)t;
    return XP_OK;
}

static xp_status embed_backward(xp_stream *stream, const xp_embed_args *args) {
    (void)stream;
    if (!args->sorted)
        XP_TRY(xp_cpu_embed_sort(args));
    if (args->sort_only)
        return XP_OK;
    const int32_t *order = args->scratch, *end = args->scratch + args->n_tokens;
    for (int64_t id = 0; id < args->vocab; id++) {
        const int32_t first = id == 0 ? 0 : end[id - 1], last = end[id];
        if (args->acc && first == last)
            continue;
        for (int64_t i = 0; i < args->dim; i++) {
            double sum =
                args->acc ? xp_cpu_load(args->dtable, args->dtable_dtype, id * args->dim + i) : 0.0;
            for (int32_t n = first; n < last; n++)
                sum += xp_cpu_load(args->dx, args->dtype, order[n] * args->dim + i);
            xp_cpu_store(args->dtable, args->dtable_dtype, id * args->dim + i, (float)sum);
        }
    }
    return XP_OK;
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

static xp_status rmsnorm_forward(xp_stream *stream, const xp_rmsnorm_args *args) {
    (void)stream;
    const int64_t dim = args->dim;
    for (int64_t r = 0; r < args->n_rows; r++) {
        const void *s = args->x;
        if (args->residual != NULL) {
            for (int64_t i = r * dim; i < (r + 1) * dim; i++)
                xp_cpu_store(args->sum, args->dtype, i,
                             xp_cpu_load(args->x, args->dtype, i) +
                                 xp_cpu_load(args->residual, args->dtype, i));
            s = args->sum; /* the statistics are those of the stored, rounded sum: backward sees the
                              same numbers */
        }
        double squares = 0.0;
        for (int64_t i = r * dim; i < (r + 1) * dim; i++) {
            const double v = xp_cpu_load(s, args->dtype, i);
            squares += v * v;
        }
        args->rstd[r] = (float)(1.0 / sqrt(squares / (double)dim + (double)args->eps));
        if (args->y == NULL)
            continue;
        for (int64_t i = 0; i < dim; i++)
            xp_cpu_store(args->y, args->dtype, r * dim + i,
                         xp_cpu_load(s, args->dtype, r * dim + i) * args->rstd[r] *
                             xp_cpu_load(args->w, args->dtype, i));
    }
    return XP_OK;
}

static xp_status rmsnorm_apply(xp_stream *stream, const xp_rmsnorm_apply_args *args) {
    (void)stream;
    for (int64_t r = 0; r < args->n_rows; r++)
        for (int64_t i = 0; i < args->dim; i++)
            xp_cpu_store(args->y, args->dtype, r * args->dim + i,
                         xp_cpu_load(args->s, args->dtype, r * args->dim + i) * args->rstd[r] *
                             xp_cpu_load(args->w, args->dtype, i));
    return XP_OK;
}

/* With n = s * rstd and g = dy * w: ds = rstd * (g - n * mean(g * n)). dw before dx, because dx may
 * lie on dy. */
static xp_status rmsnorm_backward(xp_stream *stream, const xp_rmsnorm_backward_args *args) {
    (void)stream;
    const int64_t dim = args->dim;
    const xp_dtype dtype = args->dtype;
    if (args->part == XP_NORM_WEIGHTS) /* added with the rows: dx may lie on dy */
        return XP_OK;
    for (int64_t i = 0; i < dim; i++) {
        double dw = args->acc ? xp_cpu_load(args->dw, args->dw_dtype, i) : 0.0;
        for (int64_t r = 0; r < args->n_rows; r++)
            dw += (double)xp_cpu_load(args->dy, dtype, r * dim + i) *
                  xp_cpu_load(args->s, dtype, r * dim + i) * args->rstd[r];
        xp_cpu_store(args->dw, args->dw_dtype, i, (float)dw);
    }
    for (int64_t r = 0; r < args->n_rows; r++) {
        const double rstd = args->rstd[r];
        double dot = 0.0;
        for (int64_t i = 0; i < dim; i++)
            dot += (double)xp_cpu_load(args->dy, dtype, r * dim + i) *
                   xp_cpu_load(args->w, dtype, i) * xp_cpu_load(args->s, dtype, r * dim + i) * rstd;
        for (int64_t i = 0; i < dim; i++) {
            const double n = xp_cpu_load(args->s, dtype, r * dim + i) * rstd;
            const double g =
                (double)xp_cpu_load(args->dy, dtype, r * dim + i) * xp_cpu_load(args->w, dtype, i);
            const double past =
                args->d_residual == NULL ? 0.0 : xp_cpu_load(args->d_residual, dtype, r * dim + i);
            xp_cpu_store(args->dx, dtype, r * dim + i,
                         (float)(past + rstd * (g - n * dot / (double)dim)));
        }
    }
    return XP_OK;
}

/* ---- QK-norm and RoPE ------------------------------------------------------------------------ */

static double head_rstd(const xp_qknorm_rope_args *args, int64_t first) {
    double squares = 0.0;
    for (int64_t i = 0; i < args->head_dim; i++) {
        const double v = xp_cpu_load(args->qkv, args->dtype, first + i);
        squares += v * v;
    }
    return 1.0 / sqrt(squares / args->head_dim + (double)args->eps);
}

/* Element i of the head at qkv[first], normalised; the plain element where there is no norm. */
static double normed(const xp_qknorm_rope_args *args, const void *w, int64_t first, double rstd,
                     int64_t i) {
    const double v = xp_cpu_load(args->qkv, args->dtype, first + i);
    return w == NULL ? v : v * rstd * xp_cpu_load(w, args->dtype, i);
}

static xp_status qknorm_rope_forward(xp_stream *stream, const xp_qknorm_rope_args *args) {
    (void)stream;
    const int64_t dim = args->head_dim, half = dim / 2, n_q = args->n_heads, n_k = args->n_kv_heads;
    for (int64_t t = 0; t < args->n_tokens; t++) {
        const float *cosines = args->rope + args->positions[t] * dim, *sines = cosines + half;
        for (int64_t h = 0; h < n_q + n_k; h++) {
            const bool is_q = h < n_q;
            const void *w = is_q ? args->q_norm : args->k_norm;
            void *out = is_q ? args->q : args->k;
            const int64_t first = (t * (n_q + 2 * n_k) + h) * dim;
            const int64_t to = is_q ? (t * n_q + h) * dim : (t * n_k + h - n_q) * dim;
            const double rstd = head_rstd(args, first);
            for (int64_t i = 0; i < half; i++) {
                const double a = normed(args, w, first, rstd, i),
                             b = normed(args, w, first, rstd, i + half);
                xp_cpu_store(out, args->dtype, to + i, (float)(a * cosines[i] - b * sines[i]));
                xp_cpu_store(out, args->dtype, to + i + half,
                             (float)(b * cosines[i] + a * sines[i]));
            }
        }
    }
    return XP_OK;
}

/* Gradient at element i of the normed head: the rotation turned back. */
static double unrotated(const xp_qknorm_rope_backward_args *args, const void *dout, int64_t from,
                        int64_t t, int64_t i) {
    const xp_qknorm_rope_args *f = &args->forward;
    const int64_t half = f->head_dim / 2;
    const float *cosines = f->rope + f->positions[t] * (int64_t)f->head_dim,
                *sines = cosines + half;
    const int64_t j = i < half ? i : i - half;
    const double a = xp_cpu_load(dout, f->dtype, from + j),
                 b = xp_cpu_load(dout, f->dtype, from + j + half);
    return i < half ? a * cosines[j] + b * sines[j] : b * cosines[j] - a * sines[j];
}

static void head_backward(const xp_qknorm_rope_backward_args *args, int64_t t, int64_t h) {
    const xp_qknorm_rope_args *f = &args->forward;
    const int64_t dim = f->head_dim, n_q = f->n_heads, n_k = f->n_kv_heads;
    const bool is_q = h < n_q;
    const void *dout = is_q ? args->dq : args->dk, *w = is_q ? f->q_norm : f->k_norm;
    const int64_t first = (t * (n_q + 2 * n_k) + h) * dim;
    const int64_t from = is_q ? (t * n_q + h) * dim : (t * n_k + h - n_q) * dim;
    const double rstd = head_rstd(f, first);
    double dot = 0.0;
    for (int64_t i = 0; w != NULL && i < dim; i++)
        dot += unrotated(args, dout, from, t, i) * xp_cpu_load(w, f->dtype, i) *
               xp_cpu_load(f->qkv, f->dtype, first + i) * rstd;
    for (int64_t i = 0; i < dim; i++) {
        double dx = unrotated(args, dout, from, t, i);
        if (w != NULL) {
            const double n = xp_cpu_load(f->qkv, f->dtype, first + i) * rstd;
            dx = rstd * (dx * xp_cpu_load(w, f->dtype, i) - n * dot / (double)dim);
        }
        xp_cpu_store(args->dqkv, f->dtype, first + i, (float)dx);
    }
}

/* Gradient of q's or k's norm weight: over all tokens and heads. scratch holds fp64 sums. */
static void norm_weight_backward(const xp_qknorm_rope_backward_args *args, bool is_q) {
    const xp_qknorm_rope_args *f = &args->forward;
    const int64_t dim = f->head_dim, n_q = f->n_heads, n_k = f->n_kv_heads, n = is_q ? n_q : n_k;
    void *dw = is_q ? args->dq_norm : args->dk_norm;
    double *sums = (double *)args->scratch; /* xp_qknorm_scratch() gives at least 2 * C floats */
    for (int64_t i = 0; i < dim; i++)
        sums[i] = args->acc ? xp_cpu_load(dw, args->dw_dtype, i) : 0.0;
    for (int64_t t = 0; t < f->n_tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            const int64_t first = (t * (n_q + 2 * n_k) + h + (is_q ? 0 : n_q)) * dim;
            const double rstd = head_rstd(f, first);
            for (int64_t i = 0; i < dim; i++)
                sums[i] += unrotated(args, is_q ? args->dq : args->dk, (t * n + h) * dim, t, i) *
                           xp_cpu_load(f->qkv, f->dtype, first + i) * rstd;
        }
    }
    for (int64_t i = 0; i < dim; i++)
        xp_cpu_store(dw, args->dw_dtype, i, (float)sums[i]);
}

static xp_status qknorm_rope_backward(xp_stream *stream, const xp_qknorm_rope_backward_args *args) {
    (void)stream;
    const xp_qknorm_rope_args *f = &args->forward;
    if (args->part == XP_NORM_WEIGHTS) /* added with the heads: dqkv may lie on qkv */
        return XP_OK;
    if (f->q_norm != NULL) { /* before dqkv is written, which may lie on qkv */
        norm_weight_backward(args, true);
        norm_weight_backward(args, false);
    }
    for (int64_t t = 0; t < f->n_tokens; t++)
        for (int64_t h = 0; h < f->n_heads + f->n_kv_heads; h++)
            head_backward(args, t, h);
    return XP_OK;
}

void xp_cpu_norm_reference(xp_ops *ops) {
    ops->embed_forward = embed_forward;
    ops->embed_backward = embed_backward;
    ops->rmsnorm_forward = rmsnorm_forward;
    ops->rmsnorm_apply = rmsnorm_apply;
    ops->rmsnorm_backward = rmsnorm_backward;
    ops->qknorm_rope_forward = qknorm_rope_forward;
    ops->qknorm_rope_backward = qknorm_rope_backward;
}
