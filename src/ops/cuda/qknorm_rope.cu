/* Per-head RMSNorm of q and k with RoPE, forward and backward: one pass over q and k. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/partial_sums.h"
#include "ops/cuda/qknorm_rope_tokens.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int THREADS = 256;

/*
 * `lanes` threads (a power of two) own a head of one token. RoPE turns element i with i + C/2, so
 * a thread owns chunks of N elements in the first half and the same chunks in the second: no
 * element crosses threads, and a head may lie where its result goes. Chunk j of a thread is number
 * lane + lanes * j; J covers n_chunks.
 */
struct heads {
    int64_t n_tokens;
    int n_q, n_k; /* heads */
    int dim, half, n_chunks, lanes;
    float eps;
    const void *qkv, *q_norm, *k_norm;
    const int32_t *positions;
    const float *rope;
};

/* One head: where it is and which it is. */
struct place {
    int64_t token;
    int head;
    bool is_q, valid;
    int64_t in, out; /* first element in qkv; in q or k */
};

static __device__ __forceinline__ place place_of(const heads &h, int64_t unit, int64_t end) {
    place p;
    p.valid = unit < end;
    const int n = h.n_q + h.n_k;
    p.token = p.valid ? unit / n : 0;
    p.head = p.valid ? (int)(unit - p.token * n) : 0;
    p.is_q = p.head < h.n_q;
    p.in = (p.token * (n + h.n_k) + p.head) * h.dim;
    p.out =
        p.is_q ? (p.token * h.n_q + p.head) * h.dim : (p.token * h.n_k + p.head - h.n_q) * h.dim;
    return p;
}

/* Both halves of this thread's chunks, zero where there is none. */
template <typename T, int N, int J>
static __device__ __forceinline__ void load_head(const heads &h, const place &p, const T *from,
                                                 int lane, vec<T, N> (&a)[J], vec<T, N> (&b)[J]) {
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int c = lane + h.lanes * j;
        a[j] = b[j] = vec<T, N>{};
        if (p.valid && c < h.n_chunks) {
            a[j] = load_vec<T, N>(from + c * N);
            b[j] = load_vec<T, N>(from + h.half + c * N);
        }
    }
}

/* Over all lanes of the head; every thread of the warp calls it. */
template <typename T, int N, int J>
static __device__ __forceinline__ float head_rstd(const heads &h, const vec<T, N> (&a)[J],
                                                  const vec<T, N> (&b)[J]) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < J; j++) {
        float x[N], y[N];
        unpack(a[j], x);
        unpack(b[j], y);
#pragma unroll
        for (int k = 0; k < N; k++)
            squares += x[k] * x[k] + y[k] * y[k];
    }
    return 1.0f / sqrtf(warp_sum(squares, h.lanes) / (float)h.dim + h.eps);
}

/* N neighbours of a weight or of the table of angles. */
template <typename T, int N>
static __device__ __forceinline__ void load_factors(const T *from, float (&x)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = to_float(from[k]);
}

/* A thread group takes UNITS heads at a time, loaded before the first is used. */
template <typename T, int N, int J, int UNITS>
__global__ void __launch_bounds__(THREADS) forward(heads h, T *q, T *k) {
    const int groups = THREADS / h.lanes, lane = (int)threadIdx.x % h.lanes;
    const int64_t first = (int64_t)blockIdx.x * groups * UNITS + threadIdx.x / h.lanes;
    const int64_t end = h.n_tokens * (h.n_q + h.n_k);
    place p[UNITS];
    vec<T, N> a[UNITS][J], b[UNITS][J];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        p[u] = place_of(h, first + u * groups, end);
        load_head<T, N, J>(h, p[u], (const T *)h.qkv + p[u].in, lane, a[u], b[u]);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        const T *w = (const T *)(p[u].is_q ? h.q_norm : h.k_norm);
        const float rstd = w == NULL ? 1.0f : head_rstd<T, N, J>(h, a[u], b[u]);
        const float *angles = h.rope + (p[u].valid ? h.positions[p[u].token] : 0) * (int64_t)h.dim;
        T *out = (p[u].is_q ? q : k) + p[u].out;
#pragma unroll
        for (int j = 0; j < J; j++) {
            const int c = lane + h.lanes * j;
            if (!p[u].valid || c >= h.n_chunks)
                continue;
            float x[N], y[N], cosine[N], sine[N];
            unpack(a[u][j], x);
            unpack(b[u][j], y);
            if (w != NULL) {
                float wx[N], wy[N];
                load_factors<T, N>(w + c * N, wx);
                load_factors<T, N>(w + h.half + c * N, wy);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    x[i] = x[i] * rstd * wx[i];
                    y[i] = y[i] * rstd * wy[i];
                }
            }
            load_factors<float, N>(angles + c * N, cosine);
            load_factors<float, N>(angles + h.half + c * N, sine);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float turned = x[i] * cosine[i] - y[i] * sine[i];
                y[i] = y[i] * cosine[i] + x[i] * sine[i];
                x[i] = turned;
            }
            store_vec<T, N>(out + c * N, x);
            store_vec<T, N>(out + h.half + c * N, y);
        }
    }
}

/* Gradients of the two norm weights, this thread's elements: [q or k][half]. */
template <int N, int J> struct weight_sums { float of[2][2][J][N]; };

/* Gradient through norm and rotation of one head; dw += its part. */
template <typename T, int N, int J>
static __device__ __forceinline__ void
backward_head(const heads &h, const place &p, int lane, const vec<T, N> (&a)[J],
              const vec<T, N> (&b)[J], const vec<T, N> (&da)[J], const vec<T, N> (&db)[J], T *dqkv,
              weight_sums<N, J> &dw) {
    const T *w = (const T *)(p.is_q ? h.q_norm : h.k_norm);
    const float rstd = w == NULL ? 1.0f : head_rstd<T, N, J>(h, a, b);
    const float *angles = h.rope + (p.valid ? h.positions[p.token] : 0) * (int64_t)h.dim;
    float x[J][N], y[J][N], gx[J][N], gy[J][N], dot = 0;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int c = lane + h.lanes * j;
        const bool mine = p.valid && c < h.n_chunks;
        float cosine[N] = {}, sine[N] = {}, wx[N] = {}, wy[N] = {};
        unpack(a[j], x[j]);
        unpack(b[j], y[j]);
        unpack(da[j], gx[j]);
        unpack(db[j], gy[j]);
        if (mine) {
            load_factors<float, N>(angles + c * N, cosine);
            load_factors<float, N>(angles + h.half + c * N, sine);
        }
        if (mine && w != NULL) {
            load_factors<T, N>(w + c * N, wx);
            load_factors<T, N>(w + h.half + c * N, wy);
        }
#pragma unroll
        for (int i = 0; i < N; i++) { /* the rotation turned back */
            const float back = gx[j][i] * cosine[i] + gy[j][i] * sine[i];
            gy[j][i] = gy[j][i] * cosine[i] - gx[j][i] * sine[i];
            gx[j][i] = back;
            if (w == NULL)
                continue;
            x[j][i] *= rstd;
            y[j][i] *= rstd;
            const float dwx = gx[j][i] * x[j][i], dwy = gy[j][i] * y[j][i];
            dw.of[0][0][j][i] += p.is_q ? dwx : 0.0f;
            dw.of[0][1][j][i] += p.is_q ? dwy : 0.0f;
            dw.of[1][0][j][i] += p.is_q ? 0.0f : dwx;
            dw.of[1][1][j][i] += p.is_q ? 0.0f : dwy;
            gx[j][i] *= wx[i];
            gy[j][i] *= wy[i];
            dot += gx[j][i] * x[j][i] + gy[j][i] * y[j][i];
        }
    }
    if (w != NULL)
        dot = warp_sum(dot, h.lanes) / (float)h.dim;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int c = lane + h.lanes * j;
        if (!p.valid || c >= h.n_chunks)
            continue;
        if (w != NULL)
#pragma unroll
            for (int i = 0; i < N; i++) {
                gx[j][i] = rstd * (gx[j][i] - x[j][i] * dot);
                gy[j][i] = rstd * (gy[j][i] - y[j][i] * dot);
            }
        store_vec<T, N>(dqkv + p.in + c * N, gx[j]);
        store_vec<T, N>(dqkv + p.in + h.half + c * N, gy[j]);
    }
}

/* A block owns block_tokens tokens; its thread groups take their heads in turn and keep the sums of
 * the norm weights' gradients, added over the groups at the end. partial: [blocks, 2C] (q's, k's).
 */
template <typename T, int N, int J>
__global__ void __launch_bounds__(THREADS, 2)
    backward(heads h, int64_t block_tokens, const T *dq, const T *dk, T *dqkv, float *partial) {
    extern __shared__ float shared[]; /* [groups, 2C] */
    const int groups = THREADS / h.lanes, group = (int)threadIdx.x / h.lanes;
    const int lane = (int)threadIdx.x % h.lanes, n = h.n_q + h.n_k;
    const int64_t first = blockIdx.x * block_tokens * n;
    int64_t end = first + block_tokens * n;
    end = end < h.n_tokens * n ? end : h.n_tokens * n;
    weight_sums<N, J> dw = {};
    /* all groups make the same number of turns: sums over a head use whole warps */
    for (int64_t turn = first; turn < end; turn += groups) {
        const place p = place_of(h, turn + group, end);
        vec<T, N> a[J], b[J], da[J], db[J];
        load_head<T, N, J>(h, p, (const T *)h.qkv + p.in, lane, a, b);
        load_head<T, N, J>(h, p, (p.is_q ? dq : dk) + p.out, lane, da, db);
        backward_head<T, N, J>(h, p, lane, a, b, da, db, dqkv, dw);
    }
    if (h.q_norm == NULL)
        return;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int c = lane + h.lanes * j;
        if (c >= h.n_chunks)
            continue;
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < N; i++)
                    shared[group * 2 * h.dim + k * h.dim + half * h.half + c * N + i] =
                        dw.of[k][half][j][i];
    }
    __syncthreads();
    for (int c = (int)threadIdx.x; c < 2 * h.dim; c += THREADS) {
        float sum = 0;
        for (int g = 0; g < groups; g++)
            sum += shared[g * 2 * h.dim + c];
        partial[(int64_t)blockIdx.x * 2 * h.dim + c] = sum;
    }
}

/* Chunks a thread has in the kernels for heads that allow no wide access. */
constexpr int MOST_CHUNKS = 8;

heads heads_of(const xp_qknorm_rope_args *a, int n) {
    heads h = {.n_tokens = a->n_tokens,
               .n_q = a->n_heads,
               .n_k = a->n_kv_heads,
               .dim = a->head_dim,
               .half = a->head_dim / 2,
               .n_chunks = a->head_dim / 2 / n,
               .lanes = 1,
               .eps = a->eps,
               .qkv = a->qkv,
               .q_norm = a->q_norm,
               .k_norm = a->k_norm,
               .positions = a->positions,
               .rope = a->rope};
    while (h.lanes < 32 && h.lanes < h.n_chunks)
        h.lanes *= 2;
    return h;
}

/* Elements of an access: the widest that divides half a head and fits in one chunk a thread. */
int width_of(const xp_qknorm_rope_args *a, bool aligned) {
    const int wide = a->dtype == XP_F32 ? 4 : 8;
    return aligned && a->head_dim / 2 % wide == 0 && a->head_dim / 2 / wide <= 32 ? wide : 1;
}

xp_status check_dim(const xp_qknorm_rope_args *a, int n) {
    if (n > 1 || a->head_dim / 2 <= 32 * MOST_CHUNKS)
        return XP_OK;
    return xp_error(XP_ENOTSUP, "qknorm_rope: heads of %d elements are too long", a->head_dim);
}

template <typename T, int N, int J, int UNITS>
xp_status launch_forward(const xp_qknorm_rope_args *a, cudaStream_t s) {
    const heads h = heads_of(a, N);
    const int64_t units = a->n_tokens * (a->n_heads + a->n_kv_heads);
    const int64_t n_blocks = xp_ceil_div(units, THREADS / h.lanes * UNITS);
    forward<T, N, J, UNITS><<<(unsigned)n_blocks, THREADS, 0, s>>>(h, (T *)a->q, (T *)a->k);
    return xp_cuda_check(cudaGetLastError(), "qknorm_rope_forward");
}

template <typename T, int N, int J>
xp_status launch_backward(const xp_qknorm_rope_backward_args *a, cudaStream_t s) {
    const heads h = heads_of(&a->forward, N);
    const int64_t n_blocks = xp_ops_n_gpu_blocks(h.n_tokens);
    const size_t shared =
        h.q_norm == NULL ? 0 : sizeof(float) * (size_t)(THREADS / h.lanes) * 2 * (size_t)h.dim;
    backward<T, N, J><<<(unsigned)n_blocks, THREADS, shared, s>>>(
        h, xp_ops_gpu_block_rows(h.n_tokens), (const T *)a->dq, (const T *)a->dk, (T *)a->dqkv,
        a->scratch);
    return xp_cuda_check(cudaGetLastError(), "qknorm_rope_backward");
}

xp_status backward_heads(const xp_qknorm_rope_backward_args *a, cudaStream_t s) {
    if (xp_cuda_qknorm_tokens_serve(&a->forward) && xp_is_aligned(a->dq) && xp_is_aligned(a->dk) &&
        xp_is_aligned(a->dqkv))
        return xp_cuda_qknorm_tokens_backward(s, a);
    const int n = width_of(&a->forward, xp_is_aligned(a->forward.qkv) && xp_is_aligned(a->dq) &&
                                            xp_is_aligned(a->dk) && xp_is_aligned(a->dqkv));
    XP_TRY(check_dim(&a->forward, n));
    if (a->forward.dtype == XP_F32)
        return n > 1 ? launch_backward<float, 4, 1>(a, s)
                     : launch_backward<float, 1, MOST_CHUNKS>(a, s);
    return n > 1 ? launch_backward<bf16, 8, 1>(a, s) : launch_backward<bf16, 1, MOST_CHUNKS>(a, s);
}

xp_status add_weight_sums(const xp_qknorm_rope_backward_args *a, bool is_q, cudaStream_t s) {
    const int64_t dim = a->forward.head_dim;
    const xp_cuda_partial_sums sums = {.partial = a->scratch + (is_q ? 0 : dim),
                                       .n_partials = xp_ops_n_gpu_blocks(a->forward.n_tokens),
                                       .ld = 2 * dim,
                                       .width = dim,
                                       .out = is_q ? a->dq_norm : a->dk_norm,
                                       .out_dtype = a->dw_dtype,
                                       .acc = a->acc};
    return xp_cuda_add_partials(s, &sums);
}

} // namespace

extern "C" xp_status xp_cuda_qknorm_rope_forward(xp_stream *stream, const xp_qknorm_rope_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n_tokens == 0)
        return XP_OK;
    if (xp_cuda_qknorm_tokens_serve(a))
        return xp_cuda_qknorm_tokens_forward(s, a);
    const int n = width_of(a, xp_is_aligned(a->qkv) && xp_is_aligned(a->q) && xp_is_aligned(a->k));
    XP_TRY(check_dim(a, n));
    if (a->dtype == XP_F32)
        return n > 1 ? launch_forward<float, 4, 1, 2>(a, s)
                     : launch_forward<float, 1, MOST_CHUNKS, 1>(a, s);
    return n > 1 ? launch_forward<bf16, 8, 1, 2>(a, s)
                 : launch_forward<bf16, 1, MOST_CHUNKS, 1>(a, s);
}

extern "C" xp_status xp_cuda_qknorm_rope_backward(xp_stream *stream,
                                                  const xp_qknorm_rope_backward_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->forward.n_tokens > 0 && a->part != XP_NORM_WEIGHTS)
        XP_TRY(backward_heads(a, s));
    if (a->forward.q_norm == NULL || a->part == XP_NORM_ROWS)
        return XP_OK;
    XP_TRY(add_weight_sums(a, true, s));
    return add_weight_sums(a, false, s);
}
