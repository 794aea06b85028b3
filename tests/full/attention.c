/*
 * Causal attention at full length. Sampled: (row, head, query) for out, lse and dq; (row, key head,
 * key) for dk and dv, which sum over all later queries of all heads of the group. Backward takes
 * forward's out and lse as its inputs, so its reference uses the very values forward gave.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "full.h"

#define N_QUERIES 48
#define N_KEYS    24

typedef struct shape {
    const char *name;
    int64_t n_rows, seq_len;
    int heads, kv_heads, dim;
} shape;

static const shape shapes[] = {{"30B, B=2 S=4096 32/4 heads", 2, 4096, 32, 4, 128},
                               {"235B, B=2 S=4096 64/4 heads", 2, 4096, 64, 4, 128}};
static const shape small_shapes[] = {{"small, B=2 S=96 4/2 heads", 2, 96, 4, 2, 32}};

typedef struct attention {
    full_context *ctx;
    const shape *s;
    full_tensor q, k, v, dout; /* [T, H*C]; [T, G*C] twice; [T, H*C] */
    void *out, *lse, *dq, *dk, *dv, *scratch;
    double *host_out, *host_lse; /* [T, H*C], [B, H, S]: what forward gave */
    double scale;
} attention;

typedef struct place { /* of a query or a key */
    int64_t row, token;
    int head;
} place;

static int64_t q_at(const attention *a, int64_t row, int64_t token, int head) {
    return ((row * a->s->seq_len + token) * a->s->heads + head) * a->s->dim;
}
static int64_t k_at(const attention *a, int64_t row, int64_t token, int kv_head) {
    return ((row * a->s->seq_len + token) * a->s->kv_heads + kv_head) * a->s->dim;
}
static int64_t lse_at(const attention *a, int64_t row, int64_t token, int head) {
    return (row * a->s->heads + head) * a->s->seq_len + token;
}
static double score(const attention *a, int64_t q, int64_t k) {
    return a->scale * full_dot(&a->q, q, &a->k, k, a->s->dim);
}
/* sum over c of dout * out at a query */
static double delta(const attention *a, int64_t q) {
    double sum = 0;
    for (int c = 0; c < a->s->dim; c++)
        sum += full_at(&a->dout, q + c) * a->host_out[q + c];
    return sum;
}

/* [n] places spread over the flat index; the first and the last token among them. */
static void places(const attention *a, const char *name, int n, int heads, place *out) {
    int64_t at[N_QUERIES];
    const int64_t all = a->s->n_rows * heads * a->s->seq_len;
    full_sample(a->ctx, name, n, all, at);
    for (int i = 0; i < n; i++)
        out[i] = (place){.row = at[i] / (heads * a->s->seq_len),
                         .head = (int)(at[i] / a->s->seq_len % heads),
                         .token = at[i] % a->s->seq_len};
}

static xp_attention_args args_of(const attention *a) {
    const int64_t width = (int64_t)a->s->heads * a->s->dim;
    const int64_t kv_width = (int64_t)a->s->kv_heads * a->s->dim;
    return (xp_attention_args){.n_rows = a->s->n_rows,
                               .seq_len = a->s->seq_len,
                               .n_heads = a->s->heads,
                               .n_kv_heads = a->s->kv_heads,
                               .head_dim = a->s->dim,
                               .scale = (float)a->scale,
                               .q = a->q.data,
                               .k = a->k.data,
                               .v = a->v.data,
                               .ldq = width,
                               .ldk = kv_width,
                               .ldv = kv_width,
                               .ldo = width,
                               .out = a->out,
                               .lse = a->lse,
                               .dtype = XP_BF16,
                               .scratch = a->scratch};
}

static xp_status use_scratch(attention *a, bool backward) {
    const xp_attention_args args = args_of(a);
    const size_t n_bytes = a->ctx->ops->attention_scratch(a->ctx->device, &args, backward);
    xp_device_free(a->ctx->device, a->scratch);
    a->scratch = NULL;
    return n_bytes > 0 ? full_output_create(a->ctx, n_bytes, &a->scratch) : XP_OK;
}

/* out [C] and lse of a query. */
static void exact_query(const attention *a, const place *p, double *out, double *lse) {
    const int kv_head = p->head / (a->s->heads / a->s->kv_heads);
    const int64_t q = q_at(a, p->row, p->token, p->head);
    double most = -INFINITY, sum = 0;
    for (int64_t t = 0; t <= p->token; t++)
        most = fmax(most, score(a, q, k_at(a, p->row, t, kv_head)));
    for (int c = 0; c < a->s->dim; c++)
        out[c] = 0;
    for (int64_t t = 0; t <= p->token; t++) {
        const int64_t k = k_at(a, p->row, t, kv_head);
        const double weight = exp(score(a, q, k) - most);
        sum += weight;
        for (int c = 0; c < a->s->dim; c++)
            out[c] += weight * full_at(&a->v, k + c);
    }
    for (int c = 0; c < a->s->dim; c++)
        out[c] /= sum;
    *lse = log(sum) + most;
}

/* A pair of a query and a key in backward. */
typedef struct pair {
    double weight, ds,
        size; /* of softmax; d loss / d score; the latter's terms before they cancel */
} pair;

static pair exact_pair(const attention *a, const place *query, int64_t q, int64_t k, double d) {
    const double lse = a->host_lse[lse_at(a, query->row, query->token, query->head)];
    const double weight = exp(score(a, q, k) - lse);
    const double dp = full_dot(&a->dout, q, &a->v, k, a->s->dim);
    return (pair){weight, weight * (dp - d) * a->scale, weight * sqrt(dp * dp + d * d) * a->scale};
}

/* dq [C]. @return the norm of its terms */
static double exact_dq(const attention *a, const place *p, double *dq) {
    const int kv_head = p->head / (a->s->heads / a->s->kv_heads);
    const int64_t q = q_at(a, p->row, p->token, p->head);
    const double d = delta(a, q);
    double size = 0;
    for (int c = 0; c < a->s->dim; c++)
        dq[c] = 0;
    for (int64_t t = 0; t <= p->token; t++) {
        const int64_t k = k_at(a, p->row, t, kv_head);
        const pair at = exact_pair(a, p, q, k, d);
        for (int c = 0; c < a->s->dim; c++)
            dq[c] += at.ds * full_at(&a->k, k + c);
        size += at.size * at.size * full_dot(&a->k, k, &a->k, k, a->s->dim);
    }
    return sqrt(size);
}

/* dk and dv [C]. @return the norm of dk's terms */
static double exact_key(const attention *a, const place *p, double *dk, double *dv) {
    const int dim = a->s->dim, group = a->s->heads / a->s->kv_heads;
    const int64_t k = k_at(a, p->row, p->token, p->head);
    double size = 0;
    for (int c = 0; c < dim; c++)
        dk[c] = dv[c] = 0;
    for (int head = p->head * group; head < (p->head + 1) * group; head++)
        for (int64_t t = p->token; t < a->s->seq_len; t++) {
            const place query = {.row = p->row, .token = t, .head = head};
            const int64_t q = q_at(a, p->row, t, head);
            const pair at = exact_pair(a, &query, q, k, delta(a, q));
            for (int c = 0; c < dim; c++) {
                dk[c] += at.ds * full_at(&a->q, q + c);
                dv[c] += at.weight * full_at(&a->dout, q + c);
            }
            size += at.size * at.size * full_dot(&a->q, q, &a->q, q, dim);
        }
    return sqrt(size);
}

static xp_status check_forward(attention *a, double *want, double *got) {
    const int dim = a->s->dim;
    const int64_t n_out = a->s->n_rows * a->s->seq_len * a->s->heads * dim;
    place p[N_QUERIES];
    double lse[N_QUERIES], got_lse[N_QUERIES];
    XP_TRY(use_scratch(a, false));
    const xp_attention_args args = args_of(a);
    XP_TRY(a->ctx->ops->attention_forward(a->ctx->stream, &args));
    XP_TRY(full_read(a->ctx, a->out, XP_BF16, 0, n_out, a->host_out));
    XP_TRY(full_read(a->ctx, a->lse, XP_F32, 0, n_out / dim, a->host_lse));
    places(a, "queries", N_QUERIES, a->s->heads, p);
    for (int i = 0; i < N_QUERIES; i++) {
        exact_query(a, &p[i], want + i * dim, &lse[i]);
        got_lse[i] = a->host_lse[lse_at(a, p[i].row, p[i].token, p[i].head)];
        for (int c = 0; c < dim; c++)
            got[i * dim + c] = a->host_out[q_at(a, p[i].row, p[i].token, p[i].head) + c];
    }
    full_judge(a->ctx, &(full_results){.op = "attention_forward",
                                       .what = a->s->name,
                                       .tolerance = FULL_ATTENTION,
                                       .n_rows = N_QUERIES,
                                       .n_columns = dim,
                                       .want = want,
                                       .got = got});
    full_judge(a->ctx, &(full_results){.op = "attention lse",
                                       .what = a->s->name,
                                       .tolerance = FULL_LSE,
                                       .n_rows = 1,
                                       .n_columns = N_QUERIES,
                                       .want = lse,
                                       .got = got_lse});
    return XP_OK;
}

static xp_status check_dq(attention *a, double *want, double *got) {
    const int dim = a->s->dim;
    place p[N_QUERIES];
    double sizes[N_QUERIES];
    places(a, "queries of dq", N_QUERIES, a->s->heads, p);
    for (int i = 0; i < N_QUERIES; i++) {
        sizes[i] = exact_dq(a, &p[i], want + i * dim);
        XP_TRY(full_read(a->ctx, a->dq, XP_BF16, q_at(a, p[i].row, p[i].token, p[i].head), dim,
                         got + i * dim));
    }
    full_judge(a->ctx, &(full_results){.op = "attention dq",
                                       .what = a->s->name,
                                       .tolerance = FULL_ATTENTION_GRADIENT,
                                       .n_rows = N_QUERIES,
                                       .n_columns = dim,
                                       .want = want,
                                       .got = got,
                                       .sizes = sizes});
    return XP_OK;
}

static xp_status check_keys(attention *a, double *want, double *got) {
    const int dim = a->s->dim;
    place p[N_KEYS];
    double sizes[N_KEYS];
    double *want_v = want + N_KEYS * dim, *got_v = got + N_KEYS * dim;
    places(a, "keys", N_KEYS, a->s->kv_heads, p);
    for (int i = 0; i < N_KEYS; i++) {
        const int64_t at = k_at(a, p[i].row, p[i].token, p[i].head);
        sizes[i] = exact_key(a, &p[i], want + i * dim, want_v + i * dim);
        XP_TRY(full_read(a->ctx, a->dk, XP_BF16, at, dim, got + i * dim));
        XP_TRY(full_read(a->ctx, a->dv, XP_BF16, at, dim, got_v + i * dim));
    }
    full_judge(a->ctx, &(full_results){.op = "attention dk",
                                       .what = a->s->name,
                                       .tolerance = FULL_ATTENTION_GRADIENT,
                                       .n_rows = N_KEYS,
                                       .n_columns = dim,
                                       .want = want,
                                       .got = got,
                                       .sizes = sizes});
    full_judge(a->ctx, &(full_results){.op = "attention dv",
                                       .what = a->s->name,
                                       .tolerance = FULL_ATTENTION_GRADIENT,
                                       .n_rows = N_KEYS,
                                       .n_columns = dim,
                                       .want = want_v,
                                       .got = got_v});
    return XP_OK;
}

static xp_status check_backward(attention *a, double *want, double *got) {
    XP_TRY(use_scratch(a, true));
    const xp_attention_args forward = args_of(a);
    const xp_attention_backward_args args = {.forward = forward,
                                             .dout = a->dout.data,
                                             .dq = a->dq,
                                             .dk = a->dk,
                                             .dv = a->dv,
                                             .lddq = forward.ldq,
                                             .lddk = forward.ldk,
                                             .lddv = forward.ldv};
    XP_TRY(a->ctx->ops->attention_backward(a->ctx->stream, &args));
    XP_TRY(check_dq(a, want, got));
    return check_keys(a, want, got);
}

static xp_status check(attention *a) {
    const full_context *ctx = a->ctx;
    const int64_t t = a->s->n_rows * a->s->seq_len;
    const int64_t n_q = t * a->s->heads * a->s->dim, n_k = t * a->s->kv_heads * a->s->dim;
    XP_TRY(full_tensor_create(ctx, "q", 1.0, n_q, &a->q));
    XP_TRY(full_tensor_create(ctx, "k", 1.0, n_k, &a->k));
    XP_TRY(full_tensor_create(ctx, "v", 1.0, n_k, &a->v));
    XP_TRY(full_tensor_create(ctx, "dout", 1.0, n_q, &a->dout));
    XP_TRY(full_output_create(ctx, (size_t)n_q * 2, &a->out));
    XP_TRY(full_output_create(ctx, (size_t)(t * a->s->heads) * 4, &a->lse));
    XP_TRY(full_output_create(ctx, (size_t)n_q * 2, &a->dq));
    XP_TRY(full_output_create(ctx, (size_t)n_k * 2, &a->dk));
    XP_TRY(full_output_create(ctx, (size_t)n_k * 2, &a->dv));
    a->host_out = calloc((size_t)n_q, sizeof *a->host_out);
    a->host_lse = calloc((size_t)(t * a->s->heads), sizeof *a->host_lse);
    const size_t n = (size_t)(2 * N_QUERIES * a->s->dim);
    double *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    xp_status status = a->host_out && a->host_lse && want && got
                           ? check_forward(a, want, got)
                           : xp_error(XP_ENOMEM, "check_full: no memory");
    if (status == XP_OK)
        status = check_backward(a, want, got);
    free(want);
    free(got);
    return status;
}

static void release(attention *a) {
    full_tensor_destroy(a->ctx, &a->q);
    full_tensor_destroy(a->ctx, &a->k);
    full_tensor_destroy(a->ctx, &a->v);
    full_tensor_destroy(a->ctx, &a->dout);
    void *const memory[] = {a->out, a->lse, a->dq, a->dk, a->dv, a->scratch};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        xp_device_free(a->ctx->device, memory[i]);
    free(a->host_out);
    free(a->host_lse);
}

xp_status full_attention(full_context *ctx) {
    const shape *list = ctx->small ? small_shapes : shapes;
    const size_t n = ctx->small ? sizeof small_shapes / sizeof *list : sizeof shapes / sizeof *list;
    if (!full_wants(ctx, "attention"))
        return XP_OK;
    for (size_t i = 0; i < n; i++) {
        attention a = {.ctx = ctx, .s = &list[i], .scale = 1.0 / sqrt((double)list[i].dim)};
        const xp_status status = check(&a);
        release(&a);
        XP_TRY(status);
    }
    return XP_OK;
}
