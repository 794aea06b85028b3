/*
 * Causal attention of any head size up to 256, fp32 and bf16, whole rows and documents: the
 * reference and the fallback of the library kernels. All arithmetic is fp32. Forward keeps a
 * running maximum and sum (Dao et al., "FlashAttention", 2022); backward makes dq in one kernel and
 * dk, dv in another, so that every sum has one owner and a fixed order.
 */
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"

namespace {

constexpr int QUERIES = 64, FEW_QUERIES = 32;

/* Where a block's rows are. Scores: query position i sees keys [start(i), i]. */
template <typename T> struct problem {
    xp_attention_args a;
    const T *dout;
    T *dq, *dk, *dv;
    int64_t lddq, lddk, lddv;
    bool wide; /* all rows allow accesses of four elements */
};

static __device__ __forceinline__ int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Rows of head `h` from token `first` of row `b` on. */
template <typename T, int ROWS>
static __device__ __forceinline__ tile_source<T> source(const problem<T> &p, const void *data,
                                                        int64_t ld, int b, int first, int h) {
    const int64_t token = b * p.a.seq_len + first;
    return {(const T *)data + token * ld + (int64_t)h * p.a.head_dim, ld,
            smaller((int)p.a.seq_len - first, ROWS), p.a.head_dim, p.wide};
}

/* First key that query i sees; past the row: none. */
static __device__ __forceinline__ int start_of(const xp_attention_args &a, int b, int i) {
    if (i >= a.seq_len)
        return INT_MAX;
    return a.doc_start == NULL ? 0 : a.doc_start[b * a.seq_len + i];
}

template <typename T> static __device__ __forceinline__ float exponential(float x) {
    return sizeof(T) == 2 ? __expf(x) : expf(x);
}

/* Block: 64 queries of one head. Grid: (query tiles, heads, rows); the longest tiles start first.
 */
template <typename T, int W> __global__ void __launch_bounds__(TILE_THREADS) forward(problem<T> p) {
    extern __shared__ float4 shared[];
    float *q = (float *)shared, *kv = q + QUERIES * (W + 4), *s = kv + TILE_KEYS * (W + 4);
    const int tile = (int)(gridDim.x - 1 - blockIdx.x), h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int kv_head = h / (p.a.n_heads / p.a.n_kv_heads), first = tile * QUERIES;
    load_tile<T, QUERIES, W>(q, source<T, QUERIES>(p, p.a.q, p.a.ldq, b, first, h));
    int start[4];
    float max[4], sum[4], factor[4];
    tile_rows<W> out = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        start[i] = start_of(p.a, b, first + tile_y() + 16 * i);
        max[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int k0 = start_of(p.a, b, first) / TILE_KEYS * TILE_KEYS; k0 <= first; k0 += TILE_KEYS) {
        float x[4][4];
        __syncthreads(); /* the last tile has been used */
        load_tile<T, TILE_KEYS, W>(kv, source<T, TILE_KEYS>(p, p.a.k, p.a.ldk, b, k0, kv_head));
        __syncthreads();
        tile_scores<4, 4, W>(q, kv, x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = tile_y() + 16 * i;
            float highest = -INFINITY, added = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int key = k0 + tile_x() + 16 * j;
                x[i][j] = key >= start[i] && key <= first + row ? x[i][j] * p.a.scale : -INFINITY;
                highest = fmaxf(highest, x[i][j]);
            }
            highest = fmaxf(max[i], row_max(highest));
            const float base = highest == -INFINITY ? 0.0f : highest; /* nothing seen yet */
            factor[i] = exponential<T>(max[i] - base);
            max[i] = highest;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float weight = exponential<T>(x[i][j] - base);
                added += weight;
                s[row * SCORE_LD + tile_x() + 16 * j] = weight;
            }
            sum[i] = sum[i] * factor[i] + row_sum(added);
#pragma unroll
            for (int j = 0; j < W / 64; j++) {
                float4 &o = out.at[i][j];
                o = make_float4(o.x * factor[i], o.y * factor[i], o.z * factor[i], o.w * factor[i]);
            }
        }
        __syncthreads();
        load_tile<T, TILE_KEYS, W>(kv, source<T, TILE_KEYS>(p, p.a.v, p.a.ldv, b, k0, kv_head));
        __syncthreads();
        add_product<W, TILE_KEYS>(s, kv, out);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = first + tile_y() + 16 * i;
        factor[i] = 1.0f / sum[i];
        if (at < p.a.seq_len && tile_x() == 0)
            p.a.lse[((int64_t)b * p.a.n_heads + h) * p.a.seq_len + at] = max[i] + logf(sum[i]);
    }
    const tile_source<T> to = source<T, QUERIES>(p, p.a.out, p.a.ldo, b, first, h);
    store_rows<T, W>(out, factor, (T *)to.data, to.ld, to.n, to.dim);
}

/* What backward needs of the queries in a tile: lse, dout . out, first key. */
template <int I> struct query_facts {
    float lse[I], delta[I];
    int start[I];
};

template <typename T, int I, int W>
static __device__ __forceinline__ void read_facts(const problem<T> &p, int b, int h, int first,
                                                  const float *dout, query_facts<I> &f) {
    const tile_source<T> out = source<T, 16 * I>(p, p.a.out, p.a.ldo, b, first, h);
#pragma unroll
    for (int i = 0; i < I; i++) {
        const int row = tile_y() + 16 * i;
        float delta = 0;
        for (int c = tile_x(); c < out.dim; c += 16)
            delta +=
                row < out.n ? dout[row * (W + 4) + c] * to_float(out.data[row * out.ld + c]) : 0.0f;
        f.delta[i] = row_sum(delta);
        f.start[i] = start_of(p.a, b, first + row);
        f.lse[i] = row < out.n ? p.a.lse[((int64_t)b * p.a.n_heads + h) * p.a.seq_len + first + row]
                               : 0.0f;
    }
}

/* Block: dq of 64 queries of one head. Grid as forward's. */
template <typename T, int W>
__global__ void __launch_bounds__(TILE_THREADS) backward_queries(problem<T> p) {
    extern __shared__ float4 shared[];
    float *q = (float *)shared, *dout = q + QUERIES * (W + 4), *kv = dout + QUERIES * (W + 4);
    float *ds = kv + TILE_KEYS * (W + 4);
    const int tile = (int)(gridDim.x - 1 - blockIdx.x), h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int kv_head = h / (p.a.n_heads / p.a.n_kv_heads), first = tile * QUERIES;
    load_tile<T, QUERIES, W>(q, source<T, QUERIES>(p, p.a.q, p.a.ldq, b, first, h));
    load_tile<T, QUERIES, W>(dout, source<T, QUERIES>(p, p.dout, p.a.ldo, b, first, h));
    __syncthreads();
    query_facts<4> f;
    read_facts<T, 4, W>(p, b, h, first, dout, f);
    tile_rows<W> dq = {};
    for (int k0 = start_of(p.a, b, first) / TILE_KEYS * TILE_KEYS; k0 <= first; k0 += TILE_KEYS) {
        float x[4][4], dp[4][4];
        __syncthreads(); /* the last tile has been used */
        load_tile<T, TILE_KEYS, W>(kv, source<T, TILE_KEYS>(p, p.a.v, p.a.ldv, b, k0, kv_head));
        __syncthreads();
        tile_scores<4, 4, W>(dout, kv, dp);
        __syncthreads();
        load_tile<T, TILE_KEYS, W>(kv, source<T, TILE_KEYS>(p, p.a.k, p.a.ldk, b, k0, kv_head));
        __syncthreads();
        tile_scores<4, 4, W>(q, kv, x);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = tile_y() + 16 * i, key = k0 + tile_x() + 16 * j;
                const bool seen = key >= f.start[i] && key <= first + row;
                const float weight = seen ? exponential<T>(x[i][j] * p.a.scale - f.lse[i]) : 0.0f;
                ds[row * SCORE_LD + tile_x() + 16 * j] =
                    seen ? weight * (dp[i][j] - f.delta[i]) * p.a.scale : 0.0f;
            }
        __syncthreads();
        add_product<W, TILE_KEYS>(ds, kv, dq);
    }
    const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    const tile_source<T> to = source<T, QUERIES>(p, p.dq, p.lddq, b, first, h);
    store_rows<T, W>(dq, ones, (T *)to.data, to.ld, to.n, to.dim);
}

/* Block: dk and dv of 64 keys of one key/value head, over the queries of all heads that share it.
 * Grid: (key tiles, key/value heads, rows). */
template <typename T, int W>
__global__ void __launch_bounds__(TILE_THREADS) backward_keys(problem<T> p) {
    extern __shared__ float4 shared[];
    float *k = (float *)shared, *v = k + TILE_KEYS * (W + 4), *q = v + TILE_KEYS * (W + 4);
    float *dout = q + FEW_QUERIES * (W + 4), *s = dout + FEW_QUERIES * (W + 4);
    float *ds = s + FEW_QUERIES * SCORE_LD;
    const int k0 = (int)blockIdx.x * TILE_KEYS, kv_head = (int)blockIdx.y, b = (int)blockIdx.z;
    const int group = p.a.n_heads / p.a.n_kv_heads, seq_len = (int)p.a.seq_len;
    load_tile<T, TILE_KEYS, W>(k, source<T, TILE_KEYS>(p, p.a.k, p.a.ldk, b, k0, kv_head));
    load_tile<T, TILE_KEYS, W>(v, source<T, TILE_KEYS>(p, p.a.v, p.a.ldv, b, k0, kv_head));
    tile_rows<W> dk = {}, dv = {};
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (int first = k0; first < seq_len; first += FEW_QUERIES) {
            if (start_of(p.a, b, first) >= k0 + TILE_KEYS)
                break; /* documents follow each other: later queries see none of these keys */
            float x[2][4], dp[2][4];
            query_facts<2> f;
            __syncthreads(); /* the last tile has been used */
            load_tile<T, FEW_QUERIES, W>(q, source<T, FEW_QUERIES>(p, p.a.q, p.a.ldq, b, first, h));
            load_tile<T, FEW_QUERIES, W>(dout,
                                         source<T, FEW_QUERIES>(p, p.dout, p.a.ldo, b, first, h));
            __syncthreads();
            read_facts<T, 2, W>(p, b, h, first, dout, f);
            tile_scores<2, 4, W>(q, k, x);
            tile_scores<2, 4, W>(dout, v, dp);
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int row = tile_y() + 16 * i, key = k0 + tile_x() + 16 * j;
                    const bool seen = key >= f.start[i] && key <= first + row;
                    const float weight =
                        seen ? exponential<T>(x[i][j] * p.a.scale - f.lse[i]) : 0.0f;
                    s[row * SCORE_LD + tile_x() + 16 * j] = weight;
                    ds[row * SCORE_LD + tile_x() + 16 * j] =
                        seen ? weight * (dp[i][j] - f.delta[i]) * p.a.scale : 0.0f;
                }
            __syncthreads();
            add_transposed_product<W, FEW_QUERIES>(s, dout, dv);
            add_transposed_product<W, FEW_QUERIES>(ds, q, dk);
        }
    const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    const tile_source<T> to_k = source<T, TILE_KEYS>(p, p.dk, p.lddk, b, k0, kv_head);
    store_rows<T, W>(dk, ones, (T *)to_k.data, to_k.ld, to_k.n, to_k.dim);
    const tile_source<T> to_v = source<T, TILE_KEYS>(p, p.dv, p.lddv, b, k0, kv_head);
    store_rows<T, W>(dv, ones, (T *)to_v.data, to_v.ld, to_v.n, to_v.dim);
}

/* ---- launches -------------------------------------------------------------------------------- */

bool is_wide(const xp_attention_args *a, const void *dout) {
    const size_t access = 4 * xp_dtype_bytes(a->dtype);
    const void *const data[] = {a->q, a->k, a->v, dout};
    bool wide = a->head_dim % 4 == 0 && a->ldq % 4 == 0 && a->ldk % 4 == 0 && a->ldv % 4 == 0 &&
                a->ldo % 4 == 0;
    for (int i = 0; i < 4; i++)
        wide = wide && (uintptr_t)data[i] % access == 0;
    return wide;
}

template <typename T> problem<T> problem_of(const xp_attention_args *a) {
    problem<T> p = {};
    p.a = *a;
    p.wide = is_wide(a, NULL);
    return p;
}

size_t floats_of_rows(int rows, int width) {
    return (size_t)rows * (size_t)(width + 4);
}

/* Launch with `floats` of dynamic shared memory, above the default limit. */
template <typename T>
xp_status launch(void (*kernel)(problem<T>), const problem<T> &p, dim3 grid, size_t floats,
                 cudaStream_t stream, const char *name) {
    const size_t shared = floats * sizeof(float);
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
        name));
    kernel<<<grid, TILE_THREADS, shared, stream>>>(p);
    return xp_cuda_check(cudaGetLastError(), name);
}

template <typename T, int W> xp_status run_forward(const problem<T> &p, cudaStream_t s) {
    const dim3 grid((unsigned)xp_ceil_div(p.a.seq_len, QUERIES), (unsigned)p.a.n_heads,
                    (unsigned)p.a.n_rows);
    const size_t floats =
        floats_of_rows(QUERIES + TILE_KEYS, W) + floats_of_rows(QUERIES, TILE_KEYS);
    return launch<T>(forward<T, W>, p, grid, floats, s, "attention_forward");
}

template <typename T, int W> xp_status run_backward(const problem<T> &p, cudaStream_t s) {
    const dim3 queries((unsigned)xp_ceil_div(p.a.seq_len, QUERIES), (unsigned)p.a.n_heads,
                       (unsigned)p.a.n_rows);
    const dim3 keys((unsigned)xp_ceil_div(p.a.seq_len, TILE_KEYS), (unsigned)p.a.n_kv_heads,
                    (unsigned)p.a.n_rows);
    const size_t for_queries =
        floats_of_rows(2 * QUERIES + TILE_KEYS, W) + floats_of_rows(QUERIES, TILE_KEYS);
    const size_t for_keys = floats_of_rows(2 * TILE_KEYS + 2 * FEW_QUERIES, W) +
                            floats_of_rows(2 * FEW_QUERIES, TILE_KEYS);
    XP_TRY(launch<T>(backward_queries<T, W>, p, queries, for_queries, s, "attention_backward"));
    return launch<T>(backward_keys<T, W>, p, keys, for_keys, s, "attention_backward");
}

template <typename T> xp_status forward_of_type(const xp_attention_args *a, cudaStream_t s) {
    const problem<T> p = problem_of<T>(a);
    if (a->head_dim <= 64)
        return run_forward<T, 64>(p, s);
    return a->head_dim <= 128 ? run_forward<T, 128>(p, s) : run_forward<T, 256>(p, s);
}

template <typename T>
xp_status backward_of_type(const xp_attention_backward_args *a, cudaStream_t s) {
    problem<T> p = problem_of<T>(&a->forward);
    p.wide = is_wide(&a->forward, a->dout);
    p.dout = (const T *)a->dout;
    p.dq = (T *)a->dq;
    p.dk = (T *)a->dk;
    p.dv = (T *)a->dv;
    p.lddq = a->lddq;
    p.lddk = a->lddk;
    p.lddv = a->lddv;
    if (p.a.head_dim <= 64)
        return run_backward<T, 64>(p, s);
    return p.a.head_dim <= 128 ? run_backward<T, 128>(p, s) : run_backward<T, 256>(p, s);
}

xp_status check_size(const xp_attention_args *a) {
    if (a->head_dim > 256)
        return xp_error(XP_ENOTSUP, "attention: heads of %d elements; the GPU takes at most 256",
                        a->head_dim);
    if (a->n_rows > 65535 || a->n_heads > 65535 || a->seq_len > INT32_MAX / 2)
        return xp_error(XP_ENOTSUP, "attention: %lld rows of %lld tokens are too many at once",
                        (long long)a->n_rows, (long long)a->seq_len);
    return XP_OK;
}

} // namespace

extern "C" xp_status xp_cuda_attention_plain_forward(xp_stream *stream,
                                                     const xp_attention_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(check_size(args));
    if (args->n_rows == 0 || args->seq_len == 0)
        return XP_OK;
    return args->dtype == XP_F32 ? forward_of_type<float>(args, s) : forward_of_type<bf16>(args, s);
}

extern "C" xp_status xp_cuda_attention_plain_backward(xp_stream *stream,
                                                      const xp_attention_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(check_size(&args->forward));
    if (args->forward.n_rows == 0 || args->forward.seq_len == 0)
        return XP_OK;
    return args->forward.dtype == XP_F32 ? backward_of_type<float>(args, s)
                                         : backward_of_type<bf16>(args, s);
}
