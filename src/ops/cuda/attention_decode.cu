/*
 * Attention of new tokens over a cache of keys and values. Two kernels: append copies the new rows into the caches;
 * decode computes one head of one new token in a block. Each of its warps takes every 8th group of keys and keeps a
 * running maximum, sum and output (Dao et al., "FlashAttention", 2022); the warps' results are merged in warp order, so the
 * result does not depend on timing. All arithmetic is fp32.
 */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int AHEAD = 4; /* keys of a warp that are loaded at a time */
constexpr int MAX_DIM = 256;

/* Grid-stride over the elements of the new rows. */
template <typename T> __global__ void append(xp_attention_decode_args a) {
    const int64_t width = (int64_t)a.n_kv_heads * a.head_dim, n = a.n_tokens * width;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t t = i / width, column = i % width, to = a.n_cached * width + i;
        ((T *)a.k_cache)[to] = ((const T *)a.k)[i];
        ((T *)a.v_cache)[to] = ((const T *)a.v)[t * a.ldv + column];
    }
}

/* What a warp has seen so far. Lane l holds the elements l, l + 32, ... of the output. */
template <int N> struct running { float max, sum, out[N]; };

template <typename T, int N>
static __device__ __forceinline__ void load_row(const T *row, int dim, float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int c = (int)threadIdx.x % 32 + 32 * i;
        x[i] = c < dim ? to_float(row[c]) : 0.0f;
    }
}

/* Keys [first, first + AHEAD) below n into the warp's running result. */
template <typename T, int N>
static __device__ __forceinline__ void take_keys(const xp_attention_decode_args &a,
                                                 const float (&q)[N], int64_t first, int64_t n,
                                                 int64_t at, running<N> &r) {
    const int64_t width = (int64_t)a.n_kv_heads * a.head_dim;
    float k[AHEAD][N], v[AHEAD][N], score[AHEAD], highest = r.max;
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        const int64_t key = first + j < n ? first + j : n - 1;
        load_row<T, N>((const T *)a.k_cache + key * width + at, a.head_dim, k[j]);
        load_row<T, N>((const T *)a.v_cache + key * width + at, a.head_dim, v[j]);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++)
            dot += q[i] * k[j][i];
        score[j] = first + j < n ? warp_sum(dot) : -INFINITY;
        highest = fmaxf(highest, score[j]);
    }
    const float factor = expf(r.max - highest);
    r.max = highest;
    r.sum *= factor;
#pragma unroll
    for (int i = 0; i < N; i++)
        r.out[i] *= factor;
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        const float weight = expf(score[j] - highest);
        r.sum += weight;
#pragma unroll
        for (int i = 0; i < N; i++)
            r.out[i] += weight * v[j][i];
    }
}

/* Block: one head of one new token. Grid: (heads, new tokens). */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) decode(xp_attention_decode_args a) {
    __shared__ float maxima[WARPS], sums[WARPS], outs[WARPS][MAX_DIM];
    const int head = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int64_t t = blockIdx.y, n = a.n_cached + t + 1;
    const int64_t at = (int64_t)(head / (a.n_heads / a.n_kv_heads)) * a.head_dim;
    const int64_t row = (t * a.n_heads + head) * a.head_dim;
    float q[N];
    load_row<T, N>((const T *)a.q + row, a.head_dim, q);
#pragma unroll
    for (int i = 0; i < N; i++)
        q[i] *= a.scale;
    running<N> r = {-INFINITY, 0.0f, {}};
    for (int64_t first = (int64_t)warp * AHEAD; first < n; first += WARPS * AHEAD)
        take_keys<T, N>(a, q, first, n, at, r);
    if (lane == 0) {
        maxima[warp] = r.max;
        sums[warp] = r.sum;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        outs[warp][lane + 32 * i] = r.out[i];
    __syncthreads();
    float highest = maxima[0], total = 0.0f; /* warp 0 has seen the first key */
    for (int w = 1; w < WARPS; w++)
        highest = fmaxf(highest, maxima[w]);
    for (int w = 0; w < WARPS; w++)
        total += sums[w] * expf(maxima[w] - highest);
    for (int c = (int)threadIdx.x; c < a.head_dim; c += THREADS) {
        float out = 0.0f;
        for (int w = 0; w < WARPS; w++)
            out += outs[w][c] * expf(maxima[w] - highest);
        ((T *)a.out)[row + c] = from_float<T>(out / total);
    }
}

template <typename T> static void launch(cudaStream_t stream, const xp_attention_decode_args &a) {
    const int64_t n = a.n_tokens * a.n_kv_heads * a.head_dim;
    append<T><<<(unsigned)xp_min_i64(xp_ceil_div(n, THREADS), 1024), THREADS, 0, stream>>>(a);
    const dim3 grid((unsigned)a.n_heads, (unsigned)a.n_tokens);
    if (a.head_dim <= 32)
        decode<T, 1><<<grid, THREADS, 0, stream>>>(a);
    else if (a.head_dim <= 64)
        decode<T, 2><<<grid, THREADS, 0, stream>>>(a);
    else if (a.head_dim <= 128)
        decode<T, 4><<<grid, THREADS, 0, stream>>>(a);
    else
        decode<T, 8><<<grid, THREADS, 0, stream>>>(a);
}

/* A grid's y has 65535 blocks: more new tokens go in parts, each over what the ones before have appended. */
constexpr int64_t MOST_TOKENS = 32768;

} // namespace

xp_status xp_cuda_attention_decode(xp_stream *stream, const xp_attention_decode_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const int64_t size = (int64_t)xp_dtype_bytes(args->dtype);
    const int64_t q_width = (int64_t)args->n_heads * args->head_dim,
                  kv_width = (int64_t)args->n_kv_heads * args->head_dim;
    for (int64_t done = 0; done < args->n_tokens; done += MOST_TOKENS) {
        xp_attention_decode_args part = *args;
        part.n_tokens = xp_min_i64(args->n_tokens - done, MOST_TOKENS);
        part.n_cached += done;
        part.q = (const char *)args->q + done * q_width * size;
        part.k = (const char *)args->k + done * kv_width * size;
        part.v = (const char *)args->v + done * args->ldv * size;
        part.out = (char *)args->out + done * q_width * size;
        if (args->dtype == XP_BF16)
            launch<bf16>(s, part);
        else
            launch<float>(s, part);
    }
    return xp_cuda_check(cudaGetLastError(), "attention_decode");
}
