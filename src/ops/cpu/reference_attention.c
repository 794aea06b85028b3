/* Causal attention with grouped queries in plain code: fp64 scores, one query (forward) or one key
 * (backward) at a time. */
#include <math.h>
#include "ops/cpu/cpu_ops.h"

typedef struct head {
    int64_t row, q_head, kv_head;
} head;

static int64_t first_seen(const xp_attention_args *args, int64_t row, int64_t t) {
    return args->doc_start == NULL ? 0 : args->doc_start[row * args->seq_len + t];
}

static double dot(const xp_attention_args *args, const void *a, int64_t i, const void *b,
                  int64_t j) {
    double sum = 0.0;
    for (int64_t c = 0; c < args->head_dim; c++)
        sum += (double)xp_cpu_load(a, args->dtype, i + c) * xp_cpu_load(b, args->dtype, j + c);
    return sum;
}

/* Where token t's vector of this head starts in q, k, v and out. */
static int64_t at_q(const xp_attention_args *args, head h, int64_t t) {
    return (h.row * args->seq_len + t) * args->ldq + h.q_head * args->head_dim;
}
static int64_t at_k(const xp_attention_args *args, head h, int64_t t) {
    return (h.row * args->seq_len + t) * args->ldk + h.kv_head * args->head_dim;
}
static int64_t at_v(const xp_attention_args *args, head h, int64_t t) {
    return (h.row * args->seq_len + t) * args->ldv + h.kv_head * args->head_dim;
}
static int64_t at_out(const xp_attention_args *args, head h, int64_t t) {
    return (h.row * args->seq_len + t) * args->ldo + h.q_head * args->head_dim;
}
static float *lse_of(const xp_attention_args *args, head h, int64_t t) {
    return args->lse + (h.row * args->n_heads + h.q_head) * args->seq_len + t;
}

static double score(const xp_attention_args *args, head h, int64_t i, int64_t j) {
    return dot(args, args->q, at_q(args, h, i), args->k, at_k(args, h, j)) * (double)args->scale;
}

/* scores: [S] scratch. */
static void forward_query(const xp_attention_args *args, head h, int64_t i, double *scores) {
    const int64_t first = first_seen(args, h.row, i);
    double highest = -INFINITY, sum = 0.0;
    for (int64_t j = first; j <= i; j++) {
        scores[j] = score(args, h, i, j);
        highest = scores[j] > highest ? scores[j] : highest;
    }
    for (int64_t j = first; j <= i; j++) {
        scores[j] = exp(scores[j] - highest);
        sum += scores[j];
    }
    for (int64_t c = 0; c < args->head_dim; c++) {
        double out = 0.0;
        for (int64_t j = first; j <= i; j++)
            out +=
                scores[j] / sum * (double)xp_cpu_load(args->v, args->dtype, at_v(args, h, j) + c);
        xp_cpu_store(args->out, args->dtype, at_out(args, h, i) + c, (float)out);
    }
    *lse_of(args, h, i) = (float)(highest + log(sum));
}

static xp_status forward(xp_stream *stream, const xp_attention_args *args) {
    const size_t n_bytes = sizeof(double) * (size_t)args->seq_len;
    double *scores = xp_cpu_stream_scratch(stream, 0, n_bytes);
    if (scores == NULL)
        return xp_cpu_scratch_error(n_bytes);
    const int group = args->n_heads / args->n_kv_heads;
    for (int64_t row = 0; row < args->n_rows; row++)
        for (int q_head = 0; q_head < args->n_heads; q_head++)
            for (int64_t i = 0; i < args->seq_len; i++)
                forward_query(args, (head){row, q_head, q_head / group}, i, scores);
    return XP_OK;
}

/*
 * Gradient of the loss by the unscaled score of (query i, key j): p (dout . v - dout . out), with p
 * from the saved lse.
 * @param[out] p  softmax weight of query i and key j
 */
static double score_gradient(const xp_attention_backward_args *args, head h, int64_t i, int64_t j,
                             double *p) {
    const xp_attention_args *f = &args->forward;
    const int64_t o = at_out(f, h, i);
    const double delta = dot(f, args->dout, o, f->out, o);
    *p = exp(score(f, h, i, j) - (double)*lse_of(f, h, i));
    return *p * (dot(f, args->dout, o, f->v, at_v(f, h, j)) - delta) * (double)f->scale;
}

/* sums: [C] scratch. */
static void backward_query(const xp_attention_backward_args *args, head h, int64_t i,
                           double *sums) {
    const xp_attention_args *f = &args->forward;
    for (int64_t c = 0; c < f->head_dim; c++)
        sums[c] = 0.0;
    for (int64_t j = first_seen(f, h.row, i); j <= i; j++) {
        double p;
        const double ds = score_gradient(args, h, i, j, &p);
        for (int64_t c = 0; c < f->head_dim; c++)
            sums[c] += ds * (double)xp_cpu_load(f->k, f->dtype, at_k(f, h, j) + c);
    }
    const int64_t to = (h.row * f->seq_len + i) * args->lddq + h.q_head * f->head_dim;
    for (int64_t c = 0; c < f->head_dim; c++)
        xp_cpu_store(args->dq, f->dtype, to + c, (float)sums[c]);
}

/* sums: [2, C] scratch; the queries of all heads that share this key head add to it. */
static void backward_key(const xp_attention_backward_args *args, int64_t row, int64_t kv_head,
                         int64_t j, double *sums) {
    const xp_attention_args *f = &args->forward;
    const int64_t dim = f->head_dim, group = f->n_heads / f->n_kv_heads;
    double *dk = sums, *dv = sums + dim;
    for (int64_t c = 0; c < 2 * dim; c++)
        sums[c] = 0.0;
    for (int64_t g = 0; g < group; g++) {
        const head h = {row, kv_head * group + g, kv_head};
        for (int64_t i = j; i < f->seq_len; i++) {
            if (first_seen(f, row, i) > j)
                continue;
            double p;
            const double ds = score_gradient(args, h, i, j, &p);
            for (int64_t c = 0; c < dim; c++) {
                dk[c] += ds * (double)xp_cpu_load(f->q, f->dtype, at_q(f, h, i) + c);
                dv[c] += p * (double)xp_cpu_load(args->dout, f->dtype, at_out(f, h, i) + c);
            }
        }
    }
    const int64_t token = row * f->seq_len + j;
    for (int64_t c = 0; c < dim; c++) {
        xp_cpu_store(args->dk, f->dtype, token * args->lddk + kv_head * dim + c, (float)dk[c]);
        xp_cpu_store(args->dv, f->dtype, token * args->lddv + kv_head * dim + c, (float)dv[c]);
    }
}

static xp_status backward(xp_stream *stream, const xp_attention_backward_args *args) {
    const xp_attention_args *f = &args->forward;
    const size_t n_bytes = sizeof(double) * 2 * (size_t)f->head_dim;
    double *sums = xp_cpu_stream_scratch(stream, 0, n_bytes);
    if (sums == NULL)
        return xp_cpu_scratch_error(n_bytes);
    const int group = f->n_heads / f->n_kv_heads;
    for (int64_t row = 0; row < f->n_rows; row++) {
        for (int q_head = 0; q_head < f->n_heads; q_head++)
            for (int64_t i = 0; i < f->seq_len; i++)
                backward_query(args, (head){row, q_head, q_head / group}, i, sums);
        for (int kv_head = 0; kv_head < f->n_kv_heads; kv_head++)
            for (int64_t j = 0; j < f->seq_len; j++)
                backward_key(args, row, kv_head, j, sums);
    }
    return XP_OK;
}

/* The stream owns the CPU's scratch. */
static size_t scratch(const xp_device *device, const xp_attention_args *args, bool is_backward) {
    (void)device;
    (void)args;
    (void)is_backward;
    return 0;
}

void xp_cpu_attention_reference(xp_ops *ops) {
    ops->attention_forward = forward;
    ops->attention_backward = backward;
    ops->attention_scratch = scratch;
}
