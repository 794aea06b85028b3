#include "ops/cuda/cudnn/sdpa_graphs.h"

#include <float.h>
#include <math.h>

/* Letters: B rows, H query heads, G key/value heads, S tokens, C head_dim. */

float xp_sdpa_hidden_score(const xp_cudnn_api *api) {
    return api->version() < 91000 ? -FLT_MAX : -INFINITY;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* [B, heads, S, C] bf16 in rows of ld elements. */
static xp_cudnn_tensor rows_of_heads(const xp_sdpa_shape *s, int64_t heads, int64_t ld,
                                     int64_t uid) {
    return (xp_cudnn_tensor){.dims = {s->n_rows, heads, s->seq_len, s->head_dim},
                             .strides = {s->seq_len * ld, s->head_dim, ld, 1},
                             .dtype = CUDNN_DATA_BFLOAT16,
                             .uid = uid};
}

/* The same memory as [B, heads, C, S]. */
static xp_cudnn_tensor transposed(xp_cudnn_tensor t) {
    const int64_t dim = t.dims[2], stride = t.strides[2];
    t.dims[2] = t.dims[3];
    t.dims[3] = dim;
    t.strides[2] = t.strides[3];
    t.strides[3] = stride;
    return t;
}

/* [B, H, S, S] inside the graph. */
static xp_cudnn_tensor scores(const xp_sdpa_shape *s, cudnnDataType_t dtype) {
    const int64_t n = s->seq_len;
    return (xp_cudnn_tensor){.dims = {s->n_rows, s->n_heads, n, n},
                             .strides = {s->n_heads * n * n, n * n, n, 1},
                             .dtype = dtype};
}

/* [B, H, S, 1] fp32. */
static xp_cudnn_tensor statistics(const xp_sdpa_shape *s, int64_t uid) {
    return (xp_cudnn_tensor){.dims = {s->n_rows, s->n_heads, s->seq_len, 1},
                             .strides = {s->n_heads * s->seq_len, s->seq_len, 1, 1},
                             .dtype = CUDNN_DATA_FLOAT,
                             .uid = uid};
}

/* [B, H, S, C], one head after the other. */
static xp_cudnn_tensor packed_heads(const xp_sdpa_shape *s, cudnnDataType_t dtype, int64_t uid) {
    const int64_t n = s->seq_len, c = s->head_dim;
    return (xp_cudnn_tensor){.dims = {s->n_rows, s->n_heads, n, c},
                             .strides = {s->n_heads * n * c, n * c, c, 1},
                             .dtype = dtype,
                             .uid = uid};
}

static xp_cudnn_node host_scalar(xp_cudnn_graph *g, int64_t uid) {
    const xp_cudnn_tensor t = {.dims = {1, 1, 1, 1},
                               .strides = {1, 1, 1, 1},
                               .dtype = CUDNN_DATA_FLOAT,
                               .uid = uid,
                               .by_value = true};
    return xp_cudnn_add_tensor(g, &t);
}

/* ---- operations ------------------------------------------------------------------------------ */

/* A new tensor y of the given kind = x op b, in fp32. */
static xp_cudnn_node pointwise(xp_cudnn_graph *g, cudnnPointwiseMode_t mode, xp_cudnn_node x,
                               xp_cudnn_node b, const xp_cudnn_tensor *kind) {
    const xp_cudnn_pointwise op = {
        .mode = mode, .math = CUDNN_DATA_FLOAT, .x = x, .b = b, .y = xp_cudnn_add_tensor(g, kind)};
    xp_cudnn_add_pointwise(g, &op);
    return op.y;
}

static xp_cudnn_node matmul(xp_cudnn_graph *g, xp_cudnn_node a, xp_cudnn_node b,
                            const xp_cudnn_tensor *kind) {
    xp_cudnn_node c = xp_cudnn_add_tensor(g, kind);
    xp_cudnn_add_matmul(g, a, b, c);
    return c;
}

static xp_cudnn_node reduction(xp_cudnn_graph *g, cudnnReduceTensorOp_t op, xp_cudnn_node x,
                               const xp_cudnn_tensor *kind) {
    xp_cudnn_node y = xp_cudnn_add_tensor(g, kind);
    xp_cudnn_add_reduction(g, op, x, y);
    return y;
}

static xp_cudnn_node reshape(xp_cudnn_graph *g, xp_cudnn_node x, const xp_cudnn_tensor *kind) {
    xp_cudnn_node y = xp_cudnn_add_tensor(g, kind);
    xp_cudnn_add_reshape(g, x, y);
    return y;
}

/* Scores where the query's position is at least the key's, the hidden score elsewhere. */
static xp_cudnn_node causal(xp_cudnn_graph *g, const xp_sdpa_shape *s, xp_cudnn_node x) {
    const xp_cudnn_tensor f32 = scores(s, CUDNN_DATA_FLOAT), i32 = scores(s, CUDNN_DATA_INT32),
                          boolean = scores(s, CUDNN_DATA_BOOLEAN);
    xp_cudnn_node index[2];
    for (int i = 0; i < 2; i++) {
        const xp_cudnn_pointwise op = {.mode = CUDNN_POINTWISE_GEN_INDEX,
                                       .math = CUDNN_DATA_FLOAT,
                                       .x = x,
                                       .y = index[i] = xp_cudnn_add_tensor(g, &i32),
                                       .axis = 2 + i};
        xp_cudnn_add_pointwise(g, &op);
    }
    const xp_cudnn_pointwise seen = {.mode = CUDNN_POINTWISE_CMP_GE,
                                     .math = CUDNN_DATA_BOOLEAN,
                                     .x = index[0],
                                     .b = index[1],
                                     .y = xp_cudnn_add_tensor(g, &boolean)};
    xp_cudnn_add_pointwise(g, &seen);
    const xp_cudnn_pointwise select = {.mode = CUDNN_POINTWISE_BINARY_SELECT,
                                       .math = CUDNN_DATA_FLOAT,
                                       .x = x,
                                       .b = host_scalar(g, XP_SDPA_HIDDEN),
                                       .t = seen.y,
                                       .y = xp_cudnn_add_tensor(g, &f32)};
    xp_cudnn_add_pointwise(g, &select);
    return select.y;
}

void xp_sdpa_forward_graph(xp_cudnn_graph *g, const xp_sdpa_shape *s) {
    const xp_cudnn_tensor q = rows_of_heads(s, s->n_heads, s->ldq, XP_SDPA_Q);
    const xp_cudnn_tensor kt = transposed(rows_of_heads(s, s->n_kv_heads, s->ldk, XP_SDPA_K));
    const xp_cudnn_tensor v = rows_of_heads(s, s->n_kv_heads, s->ldv, XP_SDPA_V);
    const xp_cudnn_tensor out = rows_of_heads(s, s->n_heads, s->ldo, XP_SDPA_OUT);
    const xp_cudnn_tensor f32 = scores(s, CUDNN_DATA_FLOAT), row = statistics(s, 0),
                          lse = statistics(s, XP_SDPA_LSE), bf16 = scores(s, CUDNN_DATA_BFLOAT16);

    xp_cudnn_node x = matmul(g, xp_cudnn_add_tensor(g, &q), xp_cudnn_add_tensor(g, &kt), &f32);
    x = pointwise(g, CUDNN_POINTWISE_MUL, x, host_scalar(g, XP_SDPA_SCALE), &f32);
    x = causal(g, s, x);
    xp_cudnn_node max = reduction(g, CUDNN_REDUCE_TENSOR_MAX, x, &row);
    x = pointwise(g, CUDNN_POINTWISE_SUB, x, max, &f32);
    x = pointwise(g, CUDNN_POINTWISE_EXP, x, NULL, &f32);
    xp_cudnn_node sum = reduction(g, CUDNN_REDUCE_TENSOR_ADD, x, &row);
    xp_cudnn_node log_sum = pointwise(g, CUDNN_POINTWISE_LOG, sum, NULL, &row);
    pointwise(g, CUDNN_POINTWISE_ADD, max, log_sum, &lse);
    x = pointwise(g, CUDNN_POINTWISE_DIV, x, sum, &bf16);
    matmul(g, x, xp_cudnn_add_tensor(g, &v), &out);
}

/* p (or dS) [B, H, S, S] turned around, times rows of the queries: the gradient of v (or k), summed
 * over the query heads that share a head. */
static void gradient_of_keys(xp_cudnn_graph *g, const xp_sdpa_shape *s, xp_cudnn_node x,
                             xp_cudnn_node of_queries, const xp_cudnn_tensor *gradient) {
    const int64_t n = s->seq_len;
    const xp_cudnn_tensor turned = {.dims = {s->n_rows, s->n_heads, n, n},
                                    .strides = {s->n_heads * n * n, n * n, 1, n},
                                    .dtype = CUDNN_DATA_BFLOAT16};
    xp_cudnn_node xt = reshape(g, x, &turned);
    if (s->n_heads == s->n_kv_heads) {
        matmul(g, xt, of_queries, gradient);
        return;
    }
    const xp_cudnn_tensor of_heads = packed_heads(s, CUDNN_DATA_BFLOAT16, 0);
    xp_cudnn_node all = matmul(g, xt, of_queries, &of_heads);
    reduction(g, CUDNN_REDUCE_TENSOR_ADD, all, gradient);
}

void xp_sdpa_backward_graph(xp_cudnn_graph *g, const xp_sdpa_shape *s) {
    const xp_cudnn_tensor q = rows_of_heads(s, s->n_heads, s->ldq, XP_SDPA_Q);
    const xp_cudnn_tensor kt = transposed(rows_of_heads(s, s->n_kv_heads, s->ldk, XP_SDPA_K));
    const xp_cudnn_tensor vt = transposed(rows_of_heads(s, s->n_kv_heads, s->ldv, XP_SDPA_V));
    const xp_cudnn_tensor out = rows_of_heads(s, s->n_heads, s->ldo, XP_SDPA_OUT);
    const xp_cudnn_tensor dout = rows_of_heads(s, s->n_heads, s->ldo, XP_SDPA_DOUT);
    const xp_cudnn_tensor dq = rows_of_heads(s, s->n_heads, s->lddq, XP_SDPA_DQ);
    const xp_cudnn_tensor dk = rows_of_heads(s, s->n_kv_heads, s->lddk, XP_SDPA_DK);
    const xp_cudnn_tensor dv = rows_of_heads(s, s->n_kv_heads, s->lddv, XP_SDPA_DV);
    const xp_cudnn_tensor f32 = scores(s, CUDNN_DATA_FLOAT), row = statistics(s, 0);
    const xp_cudnn_tensor lse = statistics(s, XP_SDPA_LSE), sums = statistics(s, XP_SDPA_SUMS);
    const xp_cudnn_tensor products = packed_heads(s, CUDNN_DATA_FLOAT, 0);

    xp_cudnn_node q_node = xp_cudnn_add_tensor(g, &q), kt_node = xp_cudnn_add_tensor(g, &kt);
    xp_cudnn_node dout_node = xp_cudnn_add_tensor(g, &dout);
    xp_cudnn_node scale = host_scalar(g, XP_SDPA_SCALE);

    /* dout . out */
    xp_cudnn_node x =
        pointwise(g, CUDNN_POINTWISE_MUL, dout_node, xp_cudnn_add_tensor(g, &out), &products);
    x = reduction(g, CUDNN_REDUCE_TENSOR_ADD, x, &row);
    xp_cudnn_node delta = pointwise(g, CUDNN_POINTWISE_MUL, x, host_scalar(g, XP_SDPA_ONE), &sums);
    /* p, and dv = p^T dout */
    x = matmul(g, q_node, kt_node, &f32);
    x = pointwise(g, CUDNN_POINTWISE_MUL, x, scale, &f32);
    x = pointwise(g, CUDNN_POINTWISE_SUB, x, xp_cudnn_add_tensor(g, &lse), &f32);
    x = causal(g, s, x);
    xp_cudnn_node p = pointwise(g, CUDNN_POINTWISE_EXP, x, NULL, &f32);
    gradient_of_keys(g, s, p, dout_node, &dv);
    /* dS = (dout v^T - dout . out) p scale, and dk = dS^T q */
    x = matmul(g, dout_node, xp_cudnn_add_tensor(g, &vt), &f32);
    x = pointwise(g, CUDNN_POINTWISE_SUB, x, delta, &f32);
    x = pointwise(g, CUDNN_POINTWISE_MUL, x, p, &f32);
    xp_cudnn_node ds = pointwise(g, CUDNN_POINTWISE_MUL, x, scale, &f32);
    gradient_of_keys(g, s, ds, q_node, &dk);
    /* dq = dS k */
    xp_cudnn_tensor k = transposed(kt);
    k.uid = 0;
    xp_cudnn_node k_node = reshape(g, kt_node, &k);
    if (s->deterministic) {
        matmul(g, ds, k_node, &dq);
        return;
    }
    const xp_cudnn_tensor dq_sums = packed_heads(s, CUDNN_DATA_FLOAT, XP_SDPA_DQ_SUMS);
    xp_cudnn_node sum = matmul(g, ds, k_node, &dq_sums);
    pointwise(g, CUDNN_POINTWISE_IDENTITY, sum, NULL, &dq);
}
