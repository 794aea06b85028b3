/**
 * Attention backward for sm_90a: what is computed before the GEMMs and after them. See
 * attention_hopper.cu.
 */
#ifndef XP_OPS_CUDA_ATTENTION_HOPPER_SUMS_CUH
#define XP_OPS_CUDA_ATTENTION_HOPPER_SUMS_CUH

#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/hopper_epilogue.cuh"

enum { SUM_THREADS = 256 };

/* Thread 0 of the blocks of head 0: which tiles and key blocks see each other. Documents follow
 * each other, so starts never fall. */
static __device__ __forceinline__ void find_ranges(const xp_attention_hopper &p, int m, int b) {
    const int32_t *starts = p.a.doc_start + b * p.a.seq_len;
    const int n = m / 2;
    p.first[b * p.n_tiles + m] = starts[m * XP_ATTENTION_TILE] / XP_ATTENTION_BLOCK;
    if (m % 2 != 0)
        return;
    int low = n * XP_ATTENTION_BLOCK, high = (int)p.a.seq_len;
    while (low < high) { /* the first query that sees no key up to the block's last */
        const int middle = (low + high) / 2;
        if (starts[middle] < (n + 1) * XP_ATTENTION_BLOCK)
            low = middle + 1;
        else
            high = middle;
    }
    p.last[b * p.n_blocks + n] = (low - 1) / XP_ATTENTION_TILE;
}

/* Block: 64 queries of one head: lse / ln 2 and delta = dout . out. Also resets the counters. */
template <int C>
static __global__ void __launch_bounds__(SUM_THREADS)
    attention_factors(const xp_attention_hopper p) {
    constexpr int LANES = C / 8, ROWS = SUM_THREADS / LANES, N = XP_ATTENTION_TILE / ROWS;
    const int m = (int)blockIdx.x, h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int lane = (int)threadIdx.x % LANES, row = (int)threadIdx.x / LANES;
    const int64_t tile = ((int64_t)b * p.a.n_heads + h) * p.n_tiles + m;
    const int seq_len = (int)p.a.seq_len, first = m * XP_ATTENTION_TILE;
    vec<bf16, 8> out[N], dout[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int r = first + row + i * ROWS;
        const int64_t at =
            (b * p.a.seq_len + (r < seq_len ? r : 0)) * p.a.ldo + (int64_t)h * C + lane * 8;
        out[i] = load_vec<bf16, 8>((const bf16 *)p.a.out + at);
        dout[i] = load_vec<bf16, 8>((const bf16 *)p.dout + at);
    }
    float *factors = p.factors + tile * XP_ATTENTION_FACTORS * XP_ATTENTION_TILE;
    const float *lse = p.a.lse + ((int64_t)b * p.a.n_heads + h) * p.a.seq_len + first;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float x[8], y[8], sum = 0.0f;
        unpack(out[i], x);
        unpack(dout[i], y);
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum += x[k] * y[k];
#pragma unroll
        for (int k = LANES / 2; k > 0; k /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, k);
        const int r = row + i * ROWS;
        const bool valid = first + r < seq_len;
        if (lane == 0) {
            factors[r] = valid ? lse[r] * 1.4426950408889634f : INFINITY;
            factors[XP_ATTENTION_TILE + r] = valid ? sum : 0.0f;
        }
    }
    if (threadIdx.x < XP_ATTENTION_HALVES)
        p.turns[tile * XP_ATTENTION_HALVES + threadIdx.x] = 0;
    if (tile == 0 && threadIdx.x == 0)
        *p.n_taken = 0;
    if (p.starts == nullptr || h > 0)
        return;
    if (threadIdx.x < XP_ATTENTION_TILE) {
        const int r = min(first + (int)threadIdx.x, seq_len - 1);
        p.starts[((int64_t)b * p.n_tiles + m) * XP_ATTENTION_TILE + threadIdx.x] =
            p.a.doc_start[b * p.a.seq_len + r];
    }
    if (threadIdx.x == 0)
        find_ranges(p, m, b);
}

/* [64 keys, C] times scale, rounded, to rows [first, seq_len) of a gradient. */
template <int N>
static __device__ __forceinline__ void put_rows(const float (&d)[N], float scale, bf16 *to,
                                                int64_t ld, int row, int n_rows) {
    const int quad = (int)threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int g = 0; g < N / 16; g++) {
            uint32_t w[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int i = 4 * (4 * g + j) + 2 * half;
                w[j] = pack(d[i] * scale, d[i + 1] * scale);
            }
            transpose_quad(w);
            const int r = row + 8 * half;
            store_16(to + r * ld + 8 * (4 * g + quad), w, r < n_rows);
        }
}

/* Block: dq of 64 queries of one head from its fp32 sums, a half of the columns a warpgroup. */
template <int C>
static __global__ void __launch_bounds__(SUM_THREADS)
    attention_round_dq(const xp_attention_hopper p) {
    constexpr int N = C / 4; /* a thread's sums */
    const int m = (int)blockIdx.x, h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int half = (int)threadIdx.x / 128, thread = (int)threadIdx.x % 128;
    const int64_t tile = ((int64_t)b * p.a.n_heads + h) * p.n_tiles + m;
    const float4 *sums = (const float4 *)(p.dq_sums + (tile * 2 + half) * (128 * N)) + thread;
    float4 d[N / 4];
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        d[i] = __ldcs(sums + i * 128);
    const int row = m * XP_ATTENTION_TILE + thread / 32 * 16 + thread % 32 / 4, quad = thread % 4;
    bf16 *to = (bf16 *)p.dq + (int64_t)b * p.a.seq_len * p.lddq + (int64_t)h * C + half * (C / 2);
    const float scale = p.a.scale;
#pragma unroll
    for (int g = 0; g < N / 16; g++) {
        uint32_t low[4], high[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            low[j] = pack(d[4 * g + j].x * scale, d[4 * g + j].y * scale);
            high[j] = pack(d[4 * g + j].z * scale, d[4 * g + j].w * scale);
        }
        transpose_quad(low);
        transpose_quad(high);
        const int column = 8 * (4 * g + quad);
        store_16(to + row * p.lddq + column, low, row < p.a.seq_len);
        store_16(to + (row + 8) * p.lddq + column, high, row + 8 < p.a.seq_len);
    }
}

/* Block: dk and dv of 64 keys of one head, a warpgroup each, from the sums of the parts in their
 * order. Grid: (half blocks, key/value heads, rows). */
template <int C>
static __global__ void __launch_bounds__(SUM_THREADS)
    attention_round_keys(const xp_attention_hopper p) {
    constexpr int N = C / 2; /* a thread's sums */
    const int n = (int)blockIdx.x / 2, half = (int)blockIdx.x % 2, head = (int)blockIdx.y;
    const int b = (int)blockIdx.z, which = (int)threadIdx.x / 128, thread = (int)threadIdx.x % 128;
    float d[N] = {};
    for (int part = 0; part < p.n_parts; part++) {
        const int64_t index =
            (((int64_t)b * p.a.n_kv_heads + head) * p.n_parts + part) * p.n_blocks + n;
        const float4 *sums =
            (const float4 *)(p.key_sums + (index * 4 + which * 2 + half) * (128 * N)) + thread;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const float4 x = __ldcs(sums + i * 128);
            d[4 * i] += x.x;
            d[4 * i + 1] += x.y;
            d[4 * i + 2] += x.z;
            d[4 * i + 3] += x.w;
        }
    }
    const int first = n * XP_ATTENTION_BLOCK + half * 64, n_rows = (int)p.a.seq_len - first;
    const int64_t token = (int64_t)b * p.a.seq_len + first;
    bf16 *to = which == 0 ? (bf16 *)p.dk + token * p.lddk + head * C
                          : (bf16 *)p.dv + token * p.lddv + head * C;
    put_rows(d, which == 0 ? p.a.scale : 1.0f, to, which == 0 ? p.lddk : p.lddv,
             thread / 32 * 16 + thread % 32 / 4, n_rows);
}

#endif
