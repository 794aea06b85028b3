#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/vector_rows.h"

#ifdef XP_KERNELS_AVX512
#define THIS_TABLE  xp_cpu_attention_kernels_avx512
#define MAX_COLUMNS 4 /* vectors of a register tile: 4 x 4 of 32 registers */
#else
#define THIS_TABLE  xp_cpu_attention_kernels_avx2
#define MAX_COLUMNS 2 /* 4 x 2 of 16 registers */
#endif
#define TILE_M 4
#define BLOCK  XP_ATTENTION_BLOCK

/* ---- GEMM -------------------------------------------------------------------------- */

/* TILE_M rows by n_vecs vectors in registers, over the whole depth. */
V_INLINE void register_tile(const xp_tile_gemm *g, int64_t i, int64_t j, int n_vecs) {
    vf sums[TILE_M][MAX_COLUMNS];
    const float *a = g->a + i * g->row_a, *b = g->b + j;
    float *c = g->c + i * g->ldc + j;
#pragma GCC unroll 4
    for (int r = 0; r < TILE_M; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vecs; v++)
            sums[r][v] = g->acc ? v_load(c + r * g->ldc + v * V_LANES) : v_set(0.0F);
    for (int64_t p = 0; p < g->k; p++) {
        vf row[MAX_COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < n_vecs; v++)
            row[v] = v_load(b + p * g->ldb + v * V_LANES);
#pragma GCC unroll 4
        for (int r = 0; r < TILE_M; r++) {
            const vf x = v_set(a[r * g->row_a + p * g->col_a]);
#pragma GCC unroll 4
            for (int v = 0; v < n_vecs; v++)
                sums[r][v] += x * row[v];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < TILE_M; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vecs; v++)
            v_store(c + r * g->ldc + v * V_LANES, sums[r][v]);
}

static void gemm(const xp_tile_gemm *g) {
    for (int64_t j = 0; j < g->n; j += MAX_COLUMNS * V_LANES) {
        const int64_t n_vecs = (g->n - j) / V_LANES;
        for (int64_t i = 0; i < g->m; i += TILE_M) {
            if (n_vecs >= MAX_COLUMNS)
                register_tile(g, i, j, MAX_COLUMNS);
            else if (n_vecs == 3)
                register_tile(g, i, j, MAX_COLUMNS < 3 ? MAX_COLUMNS : 3);
            else if (n_vecs == 2)
                register_tile(g, i, j, 2);
            else
                register_tile(g, i, j, 1);
        }
    }
}

/* ---- copies in and out of blocks ------------------------------------------------------------- */

V_INLINE void pack_rows(const xp_tile_rows *rows, float factor, float *dst, int64_t dim_pad,
                        xp_dtype dtype) {
    const int64_t bytes = (int64_t)xp_dtype_bytes(dtype);
    for (int64_t r = 0; r < rows->n_rows; r++) {
        const void *row = (const char *)rows->data + r * rows->ld * bytes;
        for (int64_t i = 0; i < rows->dim; i += V_LANES)
            v_store(dst + r * dim_pad + i, v_row_load(row, dtype, i, rows->dim - i) * factor);
    }
}

static void pack(const xp_tile_rows *rows, float factor, float *dst, int64_t n_pad,
                 int64_t dim_pad) {
    if (rows->dim < dim_pad)
        memset(dst, 0, sizeof *dst * (size_t)(n_pad * dim_pad));
    else
        memset(dst + rows->n_rows * dim_pad, 0,
               sizeof *dst * (size_t)((n_pad - rows->n_rows) * dim_pad));
    if (rows->dtype == XP_F32)
        pack_rows(rows, factor, dst, dim_pad, XP_F32);
    else
        pack_rows(rows, factor, dst, dim_pad, XP_BF16);
}

static void transpose(const float *src, int64_t dim_pad, float *dst) {
    for (int64_t r0 = 0; r0 < BLOCK; r0 += 8)
        for (int64_t c = 0; c < dim_pad; c++)
            for (int64_t r = r0; r < r0 + 8; r++)
                dst[c * BLOCK + r] = src[r * dim_pad + c];
}

static void unpack(const xp_tile_rows *rows, void *data, const float *src, int64_t dim_pad,
                   float factor, const float *factors) {
    const int64_t bytes = (int64_t)xp_dtype_bytes(rows->dtype);
    for (int64_t r = 0; r < rows->n_rows; r++) {
        void *row = (char *)data + r * rows->ld * bytes;
        const float by = factors == NULL ? factor : factors[r];
        for (int64_t i = 0; i < rows->dim; i += V_LANES) {
            const vf v = v_load(src + r * dim_pad + i) * by;
            if (rows->dtype == XP_F32)
                v_row_store(row, XP_F32, i, rows->dim - i, v);
            else
                v_row_store(row, XP_BF16, i, rows->dim - i, v);
        }
    }
}

static void scale_rows(float *rows, int64_t dim_pad, const float *factors) {
    for (int64_t r = 0; r < BLOCK; r++)
        for (int64_t i = 0; i < dim_pad; i += V_LANES)
            v_store(rows + r * dim_pad + i, v_load(rows + r * dim_pad + i) * factors[r]);
}

static void row_dots(const float *a, const float *b, int64_t dim_pad, float *dots) {
    for (int64_t r = 0; r < BLOCK; r++) {
        vf sum = {0};
        for (int64_t i = 0; i < dim_pad; i += V_LANES)
            sum += v_load(a + r * dim_pad + i) * v_load(b + r * dim_pad + i);
        dots[r] = v_sum_lanes(sum);
    }
}

/* ---- softmax --------------------------------------------------------------------------------- */

V_INLINE vi load_ints(const int32_t *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

V_INLINE vi lane_numbers(void) {
    vi v;
    for (int i = 0; i < V_LANES; i++)
        v[i] = i;
    return v;
}

/* Lanes of queries [q, q + V_LANES) that see key `key` of the block. */
V_INLINE vi seen(const xp_attention_block *block, int64_t key, vi query, vi start) {
    const int32_t j = (int32_t)(block->first_key + key);
    return (query >= j) & (start <= j);
}

/* Keys that hold scores for the queries from q on. */
V_INLINE int64_t n_keys(const xp_attention_block *block, int64_t q) {
    return block->diagonal ? q / XP_ATTENTION_STRIP * XP_ATTENTION_STRIP + XP_ATTENTION_STRIP
                           : BLOCK;
}

/* Scores below this weigh exactly nothing; it keeps exp() out of subnormal numbers, which are slow
 * on some machines. */
#define NOTHING -87.0F

V_INLINE vf weight(vf x) {
    const vi none = x < NOTHING;
    return v_select(none, v_set(0.0F), v_exp(v_select(none, v_set(NOTHING), x)));
}

/* Put -Inf where a query may not see a key. */
V_INLINE void mask_scores(const xp_attention_block *block, int64_t q) {
    const vi query = lane_numbers() + (int32_t)(block->first_query + q),
             start = load_ints(block->starts + q);
    for (int64_t key = 0; key < n_keys(block, q); key++) {
        float *s = block->s + key * BLOCK + q;
        v_store(s, v_select(seen(block, key, query, start), v_load(s), v_set(-INFINITY)));
    }
}

static bool softmax(const xp_attention_block *block, float *max, float *sum, float *shrink) {
    bool any = false;
    for (int64_t q = 0; q < BLOCK; q += V_LANES) {
        const int64_t keys = n_keys(block, q);
        if (block->masked)
            mask_scores(block, q);
        const vf old = v_load(max + q);
        vf top[2] = {old, old};
        for (int64_t key = 0; key < keys; key += 2) {
            top[0] = v_max(v_load(block->s + key * BLOCK + q), top[0]);
            top[1] = v_max(v_load(block->s + (key + 1) * BLOCK + q), top[1]);
        }
        const vf now = v_max(top[0], top[1]);
        /* a query that has seen nothing yet: any finite number keeps -Inf - -Inf away */
        const vf base = v_select(now == -INFINITY, v_set(0.0F), now);
        const vf by = weight(old - base);
        vf total[2] = {v_load(sum + q) * by, {0}};
        for (int64_t key = 0; key < keys; key += 2) {
            float *s = block->s + key * BLOCK + q;
            const vf p0 = weight(v_load(s) - base), p1 = weight(v_load(s + BLOCK) - base);
            total[0] += p0;
            total[1] += p1;
            v_store(s, p0);
            v_store(s + BLOCK, p1);
        }
        v_store(max + q, now);
        v_store(sum + q, total[0] + total[1]);
        v_store(shrink + q, by);
        for (int i = 0; i < V_LANES; i++)
            any = any || shrink[q + i] != 1.0F;
    }
    return any;
}

static void softmax_backward(const xp_attention_block *block, float *dp, const float *lse,
                             const float *delta) {
    for (int64_t q = 0; q < BLOCK; q += V_LANES) {
        const vf log_sum = v_load(lse + q), d = v_load(delta + q);
        if (block->masked)
            mask_scores(block, q);
        for (int64_t key = 0; key < n_keys(block, q); key++) {
            const int64_t at = key * BLOCK + q;
            const vf p = weight(v_load(block->s + at) - log_sum);
            v_store(block->s + at, p);
            v_store(dp + at, p * (v_load(dp + at) - d));
        }
    }
}

const xp_cpu_attention_kernels *THIS_TABLE(void) {
    static const xp_cpu_attention_kernels table = {
        .gemm = gemm,
        .pack = pack,
        .transpose = transpose,
        .unpack = unpack,
        .softmax = softmax,
        .scale_rows = scale_rows,
        .softmax_backward = softmax_backward,
        .row_dots = row_dots,
    };
    return &table;
}
