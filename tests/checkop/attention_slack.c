/*
 * How far dq, dk and dv may be off in bf16 because the GEMMs of attention's backward take bf16:
 *
 *   dq_i = scale sum over j of dS_ij k_j    dk_j = scale sum over i of dS_ij q_i
 *   dv_j = sum over i of P_ij dout_i        dS_ij = P_ij (dout_i . v_j - dout_i . out_i)
 *
 * P and dS are fp32 and are rounded to bf16 once, as operands; the plain code keeps them in fp64. q, k,
 * v, out and dout are bf16 already, so products with them are exact. Rounding to nearest moves a value
 * by at most half a unit of bf16 at that value, r(x) = 2^(e - 8) for 2^e <= |x| < 2^(e + 1): between
 * 2^-9 and 2^-8 of it. So a result moves by at most
 *
 *   dq: scale sum r(dS_ij) |k_j|    dk: scale sum r(dS_ij) |q_i|    dv: sum r(P_ij) |dout_i|
 *
 * Over many terms these errors cancel, and the tolerance by the row's rms holds. In a row of few terms
 * one large dS with a large k is enough to leave it, while their sum may cancel to near 0. The
 * tolerance stays for the rest: fp32 sums and exponentials, and the rounding of the result.
 */
#include "attention_slack.h"
#include <math.h>
#include <string.h>

typedef struct tensors {
    int64_t seq_len, n_heads, n_kv_heads, dim;
    int64_t q_width, kv_width; /* elements between rows */
    double scale;
    const void *q, *k, *v, *out, *dout;
    const float *lse;         /* [B, H, S] */
    const int32_t *doc_start; /* [B * S] or NULL */
} tensors;

/* A query head's query i and its key head's key j; tokens are counted over all rows. */
typedef struct pair {
    int64_t head, i, j;
} pair;

static const void *find(const ck_case *c, const ck_image *image, const char *name) {
    const int k = ck_find(c, name);
    return k < 0 ? NULL : ck_image_data(image, k);
}

/* size: as in cases_attention.c */
static tensors tensors_of(const ck_case *c, const ck_image *want) {
    const int64_t *size = c->size;
    return (tensors){.seq_len = size[1],
                     .n_heads = size[2],
                     .n_kv_heads = size[3],
                     .dim = size[4],
                     .q_width = size[2] * size[4] + size[5],
                     .kv_width = size[3] * size[4] + size[5],
                     .scale = (double)(1.0f / sqrtf((float)size[4])),
                     .q = find(c, want, "q"),
                     .k = find(c, want, "k"),
                     .v = find(c, want, "v"),
                     .out = find(c, want, "out"),
                     .dout = find(c, want, "dout"),
                     .lse = find(c, want, "lse"),
                     .doc_start = find(c, want, "doc_start")};
}

static int64_t first_seen(const tensors *t, int64_t i) {
    return i / t->seq_len * t->seq_len + (t->doc_start == NULL ? 0 : t->doc_start[i]);
}
static int64_t at_q(const tensors *t, pair p) {
    return p.i * t->q_width + p.head * t->dim;
}
static int64_t at_k(const tensors *t, pair p) {
    return p.j * t->kv_width + p.head / (t->n_heads / t->n_kv_heads) * t->dim;
}

static double dot(const tensors *t, const void *a, int64_t i, const void *b, int64_t j) {
    double sum = 0.0;
    for (int64_t c = 0; c < t->dim; c++)
        sum += ck_load(a, XP_BF16, i + c) * ck_load(b, XP_BF16, j + c);
    return sum;
}

static double weight(const tensors *t, pair p) {
    const int64_t row = p.i / t->seq_len, at = p.i % t->seq_len;
    const double lse = (double)t->lse[(row * t->n_heads + p.head) * t->seq_len + at];
    return exp(dot(t, t->q, at_q(t, p), t->k, at_k(t, p)) * t->scale - lse);
}

static double score_gradient(const tensors *t, pair p) {
    const int64_t o = at_q(t, p);
    return weight(t, p) * (dot(t, t->dout, o, t->v, at_k(t, p)) - dot(t, t->dout, o, t->out, o));
}

/* Half a unit of bf16 at x: what rounding to nearest moves it by at most. */
static double half_unit(double x) {
    int exponent;
    if (x == 0.0 || !isfinite(x))
        return 0.0;
    frexp(x, &exponent); /* 2^(exponent - 1) <= |x| */
    return ldexp(1.0, exponent - 9);
}

static double slack_of_query(const tensors *t, int64_t head, int64_t i, int64_t column) {
    double slack = 0.0;
    for (int64_t j = first_seen(t, i); j <= i; j++) {
        const pair p = {head, i, j};
        slack +=
            half_unit(score_gradient(t, p)) * fabs(ck_load(t->k, XP_BF16, at_k(t, p) + column));
    }
    return slack * t->scale;
}

/* Over the queries that see key j, of all heads of its group. */
static double slack_of_key(const tensors *t, int64_t kv_head, int64_t j, int64_t column,
                           bool of_values) {
    const int64_t group = t->n_heads / t->n_kv_heads, end = (j / t->seq_len + 1) * t->seq_len;
    double slack = 0.0;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int64_t i = j; i < end && first_seen(t, i) <= j; i++) {
            const pair p = {head, i, j};
            const int64_t at = at_q(t, p) + column;
            slack += of_values ? half_unit(weight(t, p)) * fabs(ck_load(t->dout, XP_BF16, at))
                               : half_unit(score_gradient(t, p)) * fabs(ck_load(t->q, XP_BF16, at));
        }
    }
    return of_values ? slack : slack * t->scale;
}

double ck_attention_slack(const ck_case *c, const ck_image *want, int buffer, int64_t element) {
    const tensors t = tensors_of(c, want);
    const char *name = c->buffers[buffer].name;
    const bool of_queries = strcmp(name, "dq") == 0;
    const int64_t width = of_queries ? t.q_width : t.kv_width;
    const int64_t token = element / width, head = element % width / t.dim,
                  column = element % width % t.dim;
    if (head >= (of_queries ? t.n_heads : t.n_kv_heads)) /* the space between rows */
        return 0.0;
    return of_queries ? slack_of_query(&t, head, token, column)
                      : slack_of_key(&t, head, token, column, strcmp(name, "dv") == 0);
}
