#include "ops/cpu/norm_kernels.h"
#include <math.h>
#include "ops/cpu/vector_rows.h"

#ifdef XP_KERNELS_AVX512
#define THIS_TABLE xp_cpu_norm_kernels_avx512
#else
#define THIS_TABLE xp_cpu_norm_kernels_avx2
#endif

/* Each op is one inlined loop over a constant row type, called once for every row type. */

static inline int64_t at_most(int64_t left) {
    return left < V_LANES ? left : V_LANES;
}

static const void *row_of(const void *data, xp_dtype dtype, int64_t first) {
    return (const char *)data + first * (int64_t)xp_dtype_bytes(dtype);
}
static void *out_row(void *data, xp_dtype dtype, int64_t first) {
    return (char *)data + first * (int64_t)xp_dtype_bytes(dtype);
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

V_INLINE float row_squares(const void *row, int64_t dim, xp_dtype dtype) {
    vf sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * V_LANES <= dim; i += 4 * V_LANES) {
        for (int u = 0; u < 4; u++) {
            const vf v = v_row_load(row, dtype, i + u * V_LANES, V_LANES);
            sums[u] += v * v;
        }
    }
    for (; i < dim; i += V_LANES) {
        const vf v = v_row_load(row, dtype, i, at_most(dim - i));
        sums[0] += v * v;
    }
    return v_sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

V_INLINE void apply_row(const void *s, const void *w, float rstd, void *y, int64_t dim,
                        xp_dtype dtype) {
    for (int64_t i = 0; i < dim; i += V_LANES) {
        const int64_t n = at_most(dim - i);
        v_row_store(y, dtype, i, n, v_row_load(s, dtype, i, n) * rstd * v_row_load(w, dtype, i, n));
    }
}

V_INLINE void forward_rows(const xp_rmsnorm_args *args, int64_t first, int64_t last,
                           xp_dtype dtype) {
    const int64_t dim = args->dim;
    for (int64_t r = first; r < last; r++) {
        const void *s = row_of(args->x, dtype, r * dim);
        if (args->residual != NULL) {
            const void *residual = row_of(args->residual, dtype, r * dim);
            void *sum = out_row(args->sum, dtype, r * dim);
            for (int64_t i = 0; i < dim; i += V_LANES) {
                const int64_t n = at_most(dim - i);
                v_row_store(sum, dtype, i, n,
                            v_row_load(s, dtype, i, n) + v_row_load(residual, dtype, i, n));
            }
            s = sum;
        }
        const float rstd = 1.0f / sqrtf(row_squares(s, dim, dtype) / (float)dim + args->eps);
        args->rstd[r] = rstd;
        if (args->y != NULL)
            apply_row(s, args->w, rstd, out_row(args->y, dtype, r * dim), dim, dtype);
    }
}

static void rmsnorm_forward(const xp_rmsnorm_args *args, int64_t first, int64_t last) {
    if (args->dtype == XP_F32)
        forward_rows(args, first, last, XP_F32);
    else
        forward_rows(args, first, last, XP_BF16);
}

V_INLINE void apply_rows(const xp_rmsnorm_apply_args *args, int64_t first, int64_t last,
                         xp_dtype dtype) {
    for (int64_t r = first; r < last; r++)
        apply_row(row_of(args->s, dtype, r * args->dim), args->w, args->rstd[r],
                  out_row(args->y, dtype, r * args->dim), args->dim, dtype);
}

static void rmsnorm_apply(const xp_rmsnorm_apply_args *args, int64_t first, int64_t last) {
    if (args->dtype == XP_F32)
        apply_rows(args, first, last, XP_F32);
    else
        apply_rows(args, first, last, XP_BF16);
}

/* With n = s * rstd and g = dy * w: dx = rstd * (g - n * mean(g * n)) + what reaches s past the
 * norm. */
V_INLINE void backward_row(const xp_rmsnorm_backward_args *args, int64_t r, float *dw_part,
                           xp_dtype dtype) {
    const int64_t dim = args->dim;
    const void *s = row_of(args->s, dtype, r * dim), *dy = row_of(args->dy, dtype, r * dim);
    const float rstd = args->rstd[r];
    vf dots[2] = {{0}};
    for (int64_t i = 0; i < dim; i += V_LANES) {
        const int64_t n = at_most(dim - i);
        const vf part = v_row_load(dy, dtype, i, n) * (v_row_load(s, dtype, i, n) * rstd);
        v_row_store(dw_part, XP_F32, i, n, v_row_load(dw_part, XP_F32, i, n) + part);
        dots[i / V_LANES % 2] += part * v_row_load(args->w, dtype, i, n);
    }
    const float mean = v_sum_lanes(dots[0] + dots[1]) / (float)dim;
    void *dx = out_row(args->dx, dtype, r * dim);
    const void *past = args->d_residual == NULL ? NULL : row_of(args->d_residual, dtype, r * dim);
    for (int64_t i = 0; i < dim; i += V_LANES) {
        const int64_t n = at_most(dim - i);
        const vf normed = v_row_load(s, dtype, i, n) * rstd;
        vf ds =
            (v_row_load(dy, dtype, i, n) * v_row_load(args->w, dtype, i, n) - normed * mean) * rstd;
        if (past != NULL)
            ds += v_row_load(past, dtype, i, n);
        v_row_store(dx, dtype, i, n, ds);
    }
}

static void rmsnorm_backward(const xp_rmsnorm_backward_args *args, int64_t first, int64_t last,
                             float *dw_part) {
    memset(dw_part, 0, sizeof *dw_part * (size_t)args->dim);
    for (int64_t r = first; r < last; r++) {
        if (args->dtype == XP_F32)
            backward_row(args, r, dw_part, XP_F32);
        else
            backward_row(args, r, dw_part, XP_BF16);
    }
}

/* ---- QK-norm and RoPE ------------------------------------------------------------------------ */

/* One head: x [C] -> out [C]. w: the norm's weight or NULL. */
V_INLINE void rope_head(const xp_qknorm_rope_args *args, const void *x, const void *w,
                        const float *angles, void *out, xp_dtype dtype) {
    const int64_t dim = args->head_dim, half = dim / 2;
    const float rstd =
        w == NULL ? 1.0f : 1.0f / sqrtf(row_squares(x, dim, dtype) / (float)dim + args->eps);
    for (int64_t i = 0; i < half; i += V_LANES) {
        const int64_t n = at_most(half - i);
        vf a = v_row_load(x, dtype, i, n), b = v_row_load(x, dtype, i + half, n);
        if (w != NULL) {
            a = a * rstd * v_row_load(w, dtype, i, n);
            b = b * rstd * v_row_load(w, dtype, i + half, n);
        }
        const vf cosine = v_row_load(angles, XP_F32, i, n),
                 sine = v_row_load(angles, XP_F32, i + half, n);
        v_row_store(out, dtype, i, n, a * cosine - b * sine);
        v_row_store(out, dtype, i + half, n, b * cosine + a * sine);
    }
}

V_INLINE void rope_token(const xp_qknorm_rope_args *args, int64_t t, xp_dtype dtype) {
    const int64_t dim = args->head_dim, n_q = args->n_heads, n_k = args->n_kv_heads;
    const float *angles = args->rope + args->positions[t] * dim;
    const int64_t row = t * (n_q + 2 * n_k) * dim;
    for (int64_t h = 0; h < n_q; h++)
        rope_head(args, row_of(args->qkv, dtype, row + h * dim), args->q_norm, angles,
                  out_row(args->q, dtype, (t * n_q + h) * dim), dtype);
    for (int64_t h = 0; h < n_k; h++)
        rope_head(args, row_of(args->qkv, dtype, row + (n_q + h) * dim), args->k_norm, angles,
                  out_row(args->k, dtype, (t * n_k + h) * dim), dtype);
}

static void qknorm_rope_forward(const xp_qknorm_rope_args *args, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) {
        if (args->dtype == XP_F32)
            rope_token(args, t, XP_F32);
        else
            rope_token(args, t, XP_BF16);
    }
}

typedef struct rope_back {
    const void *x, *w, *dout;
    const float *angles;
    void *dx;
    float *dw_part; /* [C] added to */
    int64_t dim;
    float eps;
} rope_back;

/* Gradient by the halves of the normed head: the rotation turned back. */
V_INLINE void unrotate(const rope_back *head, int64_t i, int64_t n, xp_dtype dtype, vf *a, vf *b) {
    const int64_t half = head->dim / 2;
    const vf cosine = v_row_load(head->angles, XP_F32, i, n),
             sine = v_row_load(head->angles, XP_F32, i + half, n);
    const vf da = v_row_load(head->dout, dtype, i, n),
             db = v_row_load(head->dout, dtype, i + half, n);
    *a = da * cosine + db * sine;
    *b = db * cosine - da * sine;
}

V_INLINE void add_to(float *row, int64_t i, int64_t n, vf v) {
    v_row_store(row, XP_F32, i, n, v_row_load(row, XP_F32, i, n) + v);
}

V_INLINE void rope_head_backward(const rope_back *head, xp_dtype dtype) {
    const int64_t dim = head->dim, half = dim / 2;
    float rstd = 1.0f, mean = 0.0f;
    if (head->w != NULL) {
        rstd = 1.0f / sqrtf(row_squares(head->x, dim, dtype) / (float)dim + head->eps);
        vf dot_a = {0}, dot_b = {0};
        for (int64_t i = 0; i < half; i += V_LANES) {
            const int64_t n = at_most(half - i);
            vf a, b;
            unrotate(head, i, n, dtype, &a, &b);
            a *= v_row_load(head->x, dtype, i, n) * rstd;
            b *= v_row_load(head->x, dtype, i + half, n) * rstd;
            add_to(head->dw_part, i, n, a);
            add_to(head->dw_part, i + half, n, b);
            dot_a += a * v_row_load(head->w, dtype, i, n);
            dot_b += b * v_row_load(head->w, dtype, i + half, n);
        }
        mean = v_sum_lanes(dot_a + dot_b) / (float)dim;
    }
    for (int64_t i = 0; i < half; i += V_LANES) {
        const int64_t n = at_most(half - i);
        vf a, b;
        unrotate(head, i, n, dtype, &a, &b);
        if (head->w != NULL) {
            const vf normed_a = v_row_load(head->x, dtype, i, n) * rstd;
            const vf normed_b = v_row_load(head->x, dtype, i + half, n) * rstd;
            a = (a * v_row_load(head->w, dtype, i, n) - normed_a * mean) * rstd;
            b = (b * v_row_load(head->w, dtype, i + half, n) - normed_b * mean) * rstd;
        }
        v_row_store(head->dx, dtype, i, n, a);
        v_row_store(head->dx, dtype, i + half, n, b);
    }
}

V_INLINE void rope_token_backward(const xp_qknorm_rope_backward_args *args, int64_t t,
                                  float *dw_part, xp_dtype dtype) {
    const xp_qknorm_rope_args *f = &args->forward;
    const int64_t dim = f->head_dim, n_q = f->n_heads, n_k = f->n_kv_heads;
    rope_back head = {.angles = f->rope + f->positions[t] * dim, .dim = dim, .eps = f->eps};
    for (int64_t h = 0; h < n_q + n_k; h++) {
        const bool is_q = h < n_q;
        const int64_t at = (t * (n_q + 2 * n_k) + h) * dim;
        head.x = row_of(f->qkv, dtype, at);
        head.dx = out_row(args->dqkv, dtype, at);
        head.w = is_q ? f->q_norm : f->k_norm;
        head.dout = is_q ? row_of(args->dq, dtype, (t * n_q + h) * dim)
                         : row_of(args->dk, dtype, (t * n_k + h - n_q) * dim);
        head.dw_part = is_q || dw_part == NULL ? dw_part : dw_part + dim;
        rope_head_backward(&head, dtype);
    }
}

static void qknorm_rope_backward(const xp_qknorm_rope_backward_args *args, int64_t first,
                                 int64_t last, float *dw_part) {
    if (dw_part != NULL)
        memset(dw_part, 0, sizeof *dw_part * 2 * (size_t)args->forward.head_dim);
    for (int64_t t = first; t < last; t++) {
        if (args->forward.dtype == XP_F32)
            rope_token_backward(args, t, dw_part, XP_F32);
        else
            rope_token_backward(args, t, dw_part, XP_BF16);
    }
}

/* ---- sums of rows ---------------------------------------------------------------------------- */

static void sum_parts(const float *parts, int64_t n_parts, int64_t stride, int64_t n, void *out,
                      xp_dtype dtype, bool acc) {
    for (int64_t i = 0; i < n; i += V_LANES) {
        const int64_t count = at_most(n - i);
        vf sum = {0};
        for (int64_t part = 0; part < n_parts; part++)
            sum += v_row_load(parts + part * stride, XP_F32, i, count);
        if (acc)
            sum += v_row_load(out, dtype, i, count);
        v_row_store(out, dtype, i, count, sum);
    }
}

V_INLINE void add_tokens(const xp_embed_args *args, const int32_t *tokens, int64_t n, void *row,
                         xp_dtype dtype) {
    for (int64_t i = 0; i < args->dim; i += 4 * V_LANES) {
        vf sums[4] = {{0}};
        const int n_vecs =
            args->dim - i >= 4 * V_LANES ? 4 : (int)((args->dim - i + V_LANES - 1) / V_LANES);
        for (int64_t t = 0; t < n; t++) {
            const void *dx = row_of(args->dx, dtype, tokens[t] * args->dim);
            for (int u = 0; u < n_vecs; u++)
                sums[u] +=
                    v_row_load(dx, dtype, i + u * V_LANES, at_most(args->dim - i - u * V_LANES));
        }
        for (int u = 0; u < n_vecs; u++) {
            const int64_t at = i + u * V_LANES, count = at_most(args->dim - at);
            if (args->acc)
                sums[u] += v_row_load(row, args->dtable_dtype, at, count);
            v_row_store(row, args->dtable_dtype, at, count, sums[u]);
        }
    }
}

static void embed_row(const xp_embed_args *args, int64_t id, const int32_t *tokens, int64_t n) {
    void *row = out_row(args->dtable, args->dtable_dtype, id * args->dim);
    if (args->dtype == XP_F32)
        add_tokens(args, tokens, n, row, XP_F32);
    else
        add_tokens(args, tokens, n, row, XP_BF16);
}

const xp_cpu_norm_kernels *THIS_TABLE(void) {
    static const xp_cpu_norm_kernels table = {
        .rmsnorm_forward = rmsnorm_forward,
        .rmsnorm_apply = rmsnorm_apply,
        .rmsnorm_backward = rmsnorm_backward,
        .qknorm_rope_forward = qknorm_rope_forward,
        .qknorm_rope_backward = qknorm_rope_backward,
        .sum_parts = sum_parts,
        .embed_row = embed_row,
    };
    return &table;
}
