/*
 * Attention in blocks of 64 queries by 64 keys (Dao et al., "FlashAttention", 2022): no score
 * leaves the cache, blocks that no query of them sees are left out. A forward task is up to 256
 * queries of all heads that share one key/value head; a backward task is one key/value head of one
 * row, whose gradients of k and v it sums up alone. So there is nothing to add up between tasks,
 * and results do not depend on how they are shared out.
 */
#include <math.h>
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/pool_scratch.h"

#define BLOCK XP_ATTENTION_BLOCK
#define STRIP XP_ATTENTION_STRIP
#define TASK_ROWS                                                                                  \
    256 /* queries of a forward task: its copies of k and v cost little beside them                \
         */

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}
static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* What all tasks of a call share. */
typedef struct job {
    const xp_cpu_attention_kernels *kernels;
    const xp_attention_args *args;
    const xp_attention_backward_args *back; /* NULL in forward */
    xp_stream *stream;
    int64_t dim_pad, seq_pad, group, n_chunks;
    size_t scratch_bytes;
} job;

/* A task's buffers, in the worker's scratch. Backward uses all, forward those of the first two
 * lines and `out`. */
typedef struct buffers {
    float *k, *v;              /* [seq_pad, dim_pad] */
    float *q_t, *s;            /* [dim_pad, 64], [64, 64] */
    float *max, *sum, *shrink; /* [64]; backward: lse, delta */
    int32_t *starts;           /* [64] */
    float *out;                /* [64, dim_pad]; backward: dq */
    float *dk, *dv;            /* [seq_pad, dim_pad] */
    float *q, *dout, *dout_t, *dp;
} buffers;

/* Hand out scratch front to back; with base NULL the return value counts the floats. */
static size_t lay_out(const job *j, float *base, buffers *b) {
    const size_t kv = (size_t)(j->seq_pad * j->dim_pad), rows = (size_t)(BLOCK * j->dim_pad),
                 tile = BLOCK * BLOCK;
    const bool back = j->back != NULL;
    float *starts = NULL;
    const struct {
        float **to;
        size_t n;
    } parts[] = {{&b->k, kv},
                 {&b->v, kv},
                 {&b->q_t, rows},
                 {&b->s, tile},
                 {&b->max, BLOCK},
                 {&b->sum, BLOCK},
                 {&b->shrink, BLOCK},
                 {&starts, BLOCK},
                 {&b->out, rows},
                 {&b->dk, back ? kv : 0},
                 {&b->dv, back ? kv : 0},
                 {&b->q, back ? rows : 0},
                 {&b->dout, back ? rows : 0},
                 {&b->dout_t, back ? rows : 0},
                 {&b->dp, back ? tile : 0}};
    size_t used = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].to = base == NULL ? NULL : base + used;
        used += parts[i].n;
    }
    b->starts = (int32_t *)(void *)starts;
    return used;
}

/* Rows [first, first + n) of head `head` of batch row `row` in a tensor with this leading
 * dimension. */
static xp_tile_rows rows_of(const job *j, const void *data, int64_t ld, int64_t row, int64_t head,
                            int64_t first, int64_t n) {
    const xp_attention_args *args = j->args;
    const int64_t at = (row * args->seq_len + first) * ld + head * args->head_dim;
    return (xp_tile_rows){(const char *)data + at * (int64_t)xp_dtype_bytes(args->dtype),
                          args->dtype, ld, n, args->head_dim};
}

/* Where an output tensor's rows start: the same place as rows_of(), writable. */
static void *out_of(const job *j, void *data, int64_t ld, int64_t row, int64_t head,
                    int64_t first) {
    const int64_t at = (row * j->args->seq_len + first) * ld + head * j->args->head_dim;
    return (char *)data + at * (int64_t)xp_dtype_bytes(j->args->dtype);
}

/* A block of queries: where it is, and which keys it sees. */
typedef struct query_block {
    int64_t row, head, first, n;
    int64_t least_start, greatest_start; /* over its queries */
} query_block;

static query_block query_block_at(const job *j, const buffers *b, int64_t row, int64_t head,
                                  int64_t first) {
    const xp_attention_args *args = j->args;
    query_block qb = {row, head, first, smaller(BLOCK, args->seq_len - first), first, 0};
    for (int64_t i = 0; i < BLOCK; i++) {
        const bool real = i < qb.n && args->doc_start != NULL;
        b->starts[i] = real ? args->doc_start[row * args->seq_len + first + i] : 0;
        if (i >= qb.n)
            continue;
        qb.least_start = smaller(qb.least_start, b->starts[i]);
        qb.greatest_start = b->starts[i] > qb.greatest_start ? b->starts[i] : qb.greatest_start;
    }
    return qb;
}

static xp_attention_block score_block(const buffers *b, const query_block *qb, int64_t first_key) {
    const bool diagonal = first_key == qb->first;
    return (xp_attention_block){b->s,      first_key, qb->first,
                                b->starts, diagonal,  diagonal || first_key < qb->greatest_start};
}

/* ---- block products: on the diagonal in strips, which leave out what no query sees ----------- */

/* s[64 keys, 64 queries] = keys[64, dim_pad] @ queries_t[dim_pad, 64] */
static void keys_by_queries(const job *j, const float *keys, const float *queries_t, float *s,
                            bool diagonal) {
    const int64_t strip = diagonal ? STRIP : BLOCK;
    for (int64_t at = 0; at < BLOCK; at += strip)
        j->kernels->gemm(&(xp_tile_gemm){.m = strip,
                                         .n = BLOCK - at,
                                         .k = j->dim_pad,
                                         .a = keys + at * j->dim_pad,
                                         .row_a = j->dim_pad,
                                         .col_a = 1,
                                         .b = queries_t + at,
                                         .ldb = BLOCK,
                                         .c = s + at * BLOCK + at,
                                         .ldc = BLOCK});
}

/* rows[64 queries, dim_pad] += s^T @ keys[64, dim_pad] */
static void add_to_queries(const job *j, const float *s, const float *keys, float *rows,
                           bool diagonal) {
    const int64_t strip = diagonal ? STRIP : BLOCK;
    for (int64_t at = 0; at < BLOCK; at += strip)
        j->kernels->gemm(&(xp_tile_gemm){.m = strip,
                                         .n = j->dim_pad,
                                         .k = at + strip,
                                         .a = s + at,
                                         .row_a = 1,
                                         .col_a = BLOCK,
                                         .b = keys,
                                         .ldb = j->dim_pad,
                                         .c = rows + at * j->dim_pad,
                                         .ldc = j->dim_pad,
                                         .acc = true});
}

/* rows[64 keys, dim_pad] += s @ queries[64, dim_pad] */
static void add_to_keys(const job *j, const float *s, const float *queries, float *rows,
                        bool diagonal) {
    const int64_t strip = diagonal ? STRIP : BLOCK;
    for (int64_t at = 0; at < BLOCK; at += strip)
        j->kernels->gemm(&(xp_tile_gemm){.m = strip,
                                         .n = j->dim_pad,
                                         .k = BLOCK - at,
                                         .a = s + at * BLOCK + at,
                                         .row_a = BLOCK,
                                         .col_a = 1,
                                         .b = queries + at * j->dim_pad,
                                         .ldb = j->dim_pad,
                                         .c = rows + at * j->dim_pad,
                                         .ldc = j->dim_pad,
                                         .acc = true});
}

/* ---- forward --------------------------------------------------------------------------------- */

static void write_forward(const job *j, const buffers *b, const query_block *qb) {
    const xp_attention_args *args = j->args;
    float *lse = args->lse + (qb->row * args->n_heads + qb->head) * args->seq_len + qb->first;
    for (int64_t i = 0; i < qb->n; i++) {
        lse[i] = b->max[i] + logf(b->sum[i]);
        b->shrink[i] = 1.0f / b->sum[i];
    }
    const xp_tile_rows rows = rows_of(j, args->out, args->ldo, qb->row, qb->head, qb->first, qb->n);
    j->kernels->unpack(&rows, out_of(j, args->out, args->ldo, qb->row, qb->head, qb->first), b->out,
                       j->dim_pad, 1.0f, b->shrink);
}

/* b->k and b->v hold the keys from `first_key` on. */
static void forward_block(const job *j, const buffers *b, const query_block *qb,
                          int64_t first_key) {
    const xp_attention_args *args = j->args;
    const xp_tile_rows q = rows_of(j, args->q, args->ldq, qb->row, qb->head, qb->first, qb->n);
    j->kernels->pack(&q, args->scale, b->out, BLOCK, j->dim_pad);
    j->kernels->transpose(b->out, j->dim_pad, b->q_t);
    for (int64_t i = 0; i < BLOCK; i++) {
        b->max[i] = -INFINITY;
        b->sum[i] = 0.0f;
    }
    for (int64_t i = 0; i < BLOCK * j->dim_pad; i++)
        b->out[i] = 0.0f;
    for (int64_t key = qb->least_start / BLOCK * BLOCK; key <= qb->first; key += BLOCK) {
        const xp_attention_block block = score_block(b, qb, key);
        const int64_t at = (key - first_key) * j->dim_pad;
        keys_by_queries(j, b->k + at, b->q_t, b->s, block.diagonal);
        if (j->kernels->softmax(&block, b->max, b->sum, b->shrink))
            j->kernels->scale_rows(b->out, j->dim_pad, b->shrink);
        add_to_queries(j, b->s, b->v + at, b->out, block.diagonal);
    }
    write_forward(j, b, qb);
}

static void forward_task(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_attention_args *args = j->args;
    buffers b;
    lay_out(j, xp_cpu_stream_scratch(j->stream, worker, j->scratch_bytes), &b);
    /* the last chunk of a row has the most to do: first come, so that the end is even */
    const int64_t chunk = j->n_chunks - 1 - tile % j->n_chunks,
                  kv_head = tile / j->n_chunks % args->n_kv_heads;
    const int64_t row = tile / j->n_chunks / args->n_kv_heads;
    const int64_t first = chunk * TASK_ROWS, last = smaller(first + TASK_ROWS, args->seq_len);
    int64_t first_key = first;
    for (int64_t at = first; at < last; at += BLOCK)
        first_key = smaller(first_key, query_block_at(j, &b, row, 0, at).least_start);
    first_key = first_key / BLOCK * BLOCK;
    const xp_tile_rows k =
        rows_of(j, args->k, args->ldk, row, kv_head, first_key, last - first_key);
    const xp_tile_rows v =
        rows_of(j, args->v, args->ldv, row, kv_head, first_key, last - first_key);
    j->kernels->pack(&k, 1.0f, b.k, round_up(k.n_rows, BLOCK), j->dim_pad);
    j->kernels->pack(&v, 1.0f, b.v, round_up(v.n_rows, BLOCK), j->dim_pad);
    for (int64_t head = kv_head * j->group; head < (kv_head + 1) * j->group; head++) {
        for (int64_t at = first; at < last; at += BLOCK) {
            const query_block qb = query_block_at(j, &b, row, head, at);
            forward_block(j, &b, &qb, first_key);
        }
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Fill q (scaled) and dout, both ways round, and lse and delta = rowsum(dout * out) of a query
 * block. */
static void load_queries(const job *j, const buffers *b, const query_block *qb) {
    const xp_attention_args *args = j->args;
    const xp_tile_rows q = rows_of(j, args->q, args->ldq, qb->row, qb->head, qb->first, qb->n);
    const xp_tile_rows out = rows_of(j, args->out, args->ldo, qb->row, qb->head, qb->first, qb->n);
    const xp_tile_rows dout =
        rows_of(j, j->back->dout, args->ldo, qb->row, qb->head, qb->first, qb->n);
    j->kernels->pack(&q, args->scale, b->q, BLOCK, j->dim_pad);
    j->kernels->transpose(b->q, j->dim_pad, b->q_t);
    j->kernels->pack(&dout, 1.0f, b->dout, BLOCK, j->dim_pad);
    j->kernels->transpose(b->dout, j->dim_pad, b->dout_t);
    j->kernels->pack(&out, 1.0f, b->out, BLOCK, j->dim_pad);
    j->kernels->row_dots(b->dout, b->out, j->dim_pad, b->sum);
    const float *lse = args->lse + (qb->row * args->n_heads + qb->head) * args->seq_len + qb->first;
    for (int64_t i = 0; i < BLOCK; i++)
        b->max[i] = i < qb->n ? lse[i] : INFINITY; /* past the end: weight 0 */
}

static void backward_block(const job *j, const buffers *b, const query_block *qb) {
    const xp_attention_args *args = j->args;
    load_queries(j, b, qb);
    for (int64_t i = 0; i < BLOCK * j->dim_pad; i++)
        b->out[i] = 0.0f;
    for (int64_t key = qb->least_start / BLOCK * BLOCK; key <= qb->first; key += BLOCK) {
        const xp_attention_block block = score_block(b, qb, key);
        const int64_t at = key * j->dim_pad;
        keys_by_queries(j, b->k + at, b->q_t, b->s, block.diagonal);
        keys_by_queries(j, b->v + at, b->dout_t, b->dp, block.diagonal);
        j->kernels->softmax_backward(&block, b->dp, b->max, b->sum);
        add_to_keys(j, b->s, b->dout, b->dv + at, block.diagonal);
        add_to_keys(j, b->dp, b->q, b->dk + at, block.diagonal);
        add_to_queries(j, b->dp, b->k + at, b->out, block.diagonal);
    }
    const xp_tile_rows dq =
        rows_of(j, j->back->dq, j->back->lddq, qb->row, qb->head, qb->first, qb->n);
    j->kernels->unpack(&dq, out_of(j, j->back->dq, j->back->lddq, qb->row, qb->head, qb->first),
                       b->out, j->dim_pad, args->scale, NULL);
}

static void backward_task(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_attention_args *args = j->args;
    const xp_attention_backward_args *back = j->back;
    buffers b;
    lay_out(j, xp_cpu_stream_scratch(j->stream, worker, j->scratch_bytes), &b);
    const int64_t row = tile / args->n_kv_heads, kv_head = tile % args->n_kv_heads,
                  n = args->seq_len;
    const xp_tile_rows k = rows_of(j, args->k, args->ldk, row, kv_head, 0, n);
    const xp_tile_rows v = rows_of(j, args->v, args->ldv, row, kv_head, 0, n);
    j->kernels->pack(&k, 1.0f, b.k, j->seq_pad, j->dim_pad);
    j->kernels->pack(&v, 1.0f, b.v, j->seq_pad, j->dim_pad);
    for (int64_t i = 0; i < j->seq_pad * j->dim_pad; i++)
        b.dk[i] = b.dv[i] = 0.0f;
    for (int64_t head = kv_head * j->group; head < (kv_head + 1) * j->group; head++) {
        for (int64_t at = 0; at < n; at += BLOCK) {
            const query_block qb = query_block_at(j, &b, row, head, at);
            backward_block(j, &b, &qb);
        }
    }
    const xp_tile_rows dk = rows_of(j, back->dk, back->lddk, row, kv_head, 0, n);
    const xp_tile_rows dv = rows_of(j, back->dv, back->lddv, row, kv_head, 0, n);
    j->kernels->unpack(&dk, out_of(j, back->dk, back->lddk, row, kv_head, 0), b.dk, j->dim_pad,
                       1.0f, NULL);
    j->kernels->unpack(&dv, out_of(j, back->dv, back->lddv, row, kv_head, 0), b.dv, j->dim_pad,
                       1.0f, NULL);
}

/* ---- entries --------------------------------------------------------------------------------- */

static xp_status run(xp_stream *stream, job *j, xp_tile_fn task, int64_t n_tasks) {
    const unsigned caps = xp_cpu_device_caps(xp_stream_device(stream));
    j->kernels = (caps & XP_CPU_AVX512) != 0 ? xp_cpu_attention_kernels_avx512()
                                             : xp_cpu_attention_kernels_avx2();
    j->stream = stream;
    j->dim_pad = round_up(j->args->head_dim, STRIP);
    j->seq_pad = round_up(j->args->seq_len, BLOCK);
    j->group = j->args->n_heads / j->args->n_kv_heads;
    buffers unused;
    j->scratch_bytes = lay_out(j, NULL, &unused) * sizeof(float);
    if (n_tasks == 0)
        return XP_OK;
    XP_TRY(xp_cpu_reserve_scratch(stream, j->scratch_bytes));
    xp_pool_run(xp_cpu_stream_pool(stream), task, j, n_tasks);
    return XP_OK;
}

static xp_status forward(xp_stream *stream, const xp_attention_args *args) {
    job j = {.args = args, .n_chunks = (args->seq_len + TASK_ROWS - 1) / TASK_ROWS};
    return run(stream, &j, forward_task, args->n_rows * args->n_kv_heads * j.n_chunks);
}

static xp_status backward(xp_stream *stream, const xp_attention_backward_args *args) {
    job j = {.args = &args->forward, .back = args};
    return run(stream, &j, backward_task,
               args->forward.seq_len == 0 ? 0 : args->forward.n_rows * args->forward.n_kv_heads);
}

void xp_cpu_attention_fast(xp_ops *ops, unsigned caps) {
    if ((caps & XP_CPU_AVX2) == 0)
        return;
    ops->attention_forward = forward;
    ops->attention_backward = backward;
}
