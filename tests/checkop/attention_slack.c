/*
 * How far dq may be off in bf16 because the GEMMs of attention's backward take bf16:
 *
 *   dq_i = scale sum over j of dS_ij k_j    dS_ij = P_ij (dout_i . v_j - dout_i . out_i)
 *
 * dS is fp32 and is rounded to bf16 once, as an operand; the plain code keeps it in fp64. k is bf16
 * already, so products with it are exact. Rounding to nearest moves a value by at most half a unit of
 * bf16 at that value, r(x) = 2^(e - 8) for 2^e <= |x| < 2^(e + 1): between 2^-9 and 2^-8 of it. So a
 * result moves by at most scale sum r(dS_ij) |k_j|.
 *
 * Over many keys these errors cancel, and the tolerance by the row's rms holds. In a row of few keys one
 * large dS with a large k is enough to leave it, while their sum may cancel to near 0. The tolerance
 * stays for the rest: fp32 sums and exponentials, and the rounding of the result. dk and dv are sums
 * over all queries that share the key, and need no more than it.
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

double ck_attention_slack(const ck_case *c, const ck_image *want, int buffer, int64_t element) {
    const tensors t = tensors_of(c, want);
    if (strcmp(c->buffers[buffer].name, "dq") != 0)
        return 0.0;
    const int64_t token = element / t.q_width, head = element % t.q_width / t.dim;
    if (head >= t.n_heads) /* the space between rows */
        return 0.0;
    return slack_of_query(&t, head, token, element % t.q_width % t.dim);
}
