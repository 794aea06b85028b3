/*
 * Attention backward in bf16 with mma.sync: dq in one kernel, dk and dv in another, so that every
 * sum has one owner and a fixed order. The first leaves dout . out of every query in scratch for
 * the second. The two kernels compute seven GEMMs, where one kernel would need five, but keep
 * nothing of the size of the scores in memory, whatever the lengths of the documents.
 */
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/cuda_ops.h"

namespace {

/* Queries of a block of the first kernel: 16 a warp; queries that the second takes at a time. */
constexpr int QUERIES = MMA_WARPS * 16, FEW_QUERIES = 32;

/* 4 bytes to shared memory, or zero when not `valid`. */
static __device__ __forceinline__ void copy_fact(void *to, const void *from, bool valid) {
    const int n_bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(n_bytes)
                 : "memory");
}

/* ---- dq -------------------------------------------------------------------------------------- */

/* dout . out of the warp's 16 queries, from tile row 0 on: to shared and to device memory. */
template <int W>
static __device__ __forceinline__ void sum_delta(const attention_problem &p, int b, int h,
                                                 int first, const bf16 *dout, float *delta) {
    constexpr int CHUNKS = W / 8, AT_ONCE = 32 / CHUNKS;
    const int c = lane_of() % CHUNKS * 8, n = lesser((int)p.a.seq_len - first, 16);
    const bf16 *out = (const bf16 *)p.a.out + place_of(p.a, p.a.ldo, b, first, h);
#pragma unroll
    for (int i = 0; i < 16 / AT_ONCE; i++) {
        const int row = i * AT_ONCE + lane_of() / CHUNKS;
        float sum = 0.0f;
        if (row < n && c < p.a.head_dim) {
            float x[8], y[8];
            unpack(load_vec<bf16, 8>(out + row * p.a.ldo + c), x);
            unpack(load_vec<bf16, 8>(dout + row * tile_ld<W>() + c), y);
#pragma unroll
            for (int k = 0; k < 8; k++)
                sum += x[k] * y[k];
        }
        for (int step = CHUNKS / 2; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane_of() % CHUNKS == 0) {
            delta[row] = sum;
            if (row < n)
                p.delta[fact_of(p.a, b, first + row, h)] = sum;
        }
    }
    __syncwarp();
}

/* Scores x and dp = dout . v of the warp's queries and the keys from k0 on: x becomes dS / scale. */
template <bool MASKED>
static __device__ __forceinline__ void
score_gradients(float (&x)[1][MMA_KEYS / 8][4], const float (&dp)[1][MMA_KEYS / 8][4], float scale,
                int first, int k0, const int (&start)[2], const float (&lse)[2],
                const float (&delta)[2]) {
    const int row = lane_of() / 4, column = lane_of() % 4 * 2;
#pragma unroll
    for (int j = 0; j < MMA_KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int r = e / 2, key = k0 + 8 * j + column + e % 2;
            const bool seen = !MASKED || (key >= start[r] && key <= first + row + 8 * r);
            const float weight = power_of_2(x[0][j][e] * scale - lse[r]);
            x[0][j][e] = seen ? weight * (dp[0][j][e] - delta[r]) : 0.0f;
        }
}

/* Block: dq of 64 queries of one head. Grid: (query tiles, heads, rows). Keys are double-buffered:
 * cp.async loads the next tile while the current one is used. */
template <int W>
__global__ void __launch_bounds__(MMA_THREADS, 2) backward_queries(const attention_problem p) {
    extern __shared__ __align__(16) bf16 tiles[];
    constexpr int TILE = MMA_KEYS * tile_ld<W>();
    static_assert(QUERIES == MMA_KEYS, "tiles of one size");
    bf16 *q = tiles, *dout = q + TILE, *v = dout + TILE, *keys = v + TILE;
    __shared__ float block_delta[QUERIES];
    const int tile = (int)(gridDim.x - 1 - blockIdx.x), h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int kv_head = h / (p.a.n_heads / p.a.n_kv_heads), seq_len = (int)p.a.seq_len;
    const int block_first = tile * QUERIES, end = lesser(block_first + QUERIES, seq_len);
    const int begin = start_of(p.a, b, block_first) / MMA_KEYS * MMA_KEYS;
    const auto load = [&](bf16 *to, const void *from, int64_t ld, int first, int head) {
        load_rows<MMA_KEYS, W>(to, (const bf16 *)from + place_of(p.a, ld, b, first, head), ld,
                               seq_len - first, p.a.head_dim);
    };
    load(dout, p.dout, p.a.ldo, block_first, h);
    commit();
    load(q, p.a.q, p.a.ldq, block_first, h);
    load(keys, p.a.k, p.a.ldk, begin, kv_head);
    commit();
    wait_groups<1>();
    __syncthreads();

    const int first = block_first + warp_of() * 16, own = warp_of() * 16 * tile_ld<W>();
    const query_range range = range_of(p.a, b, first, 16);
    const float scale = p.a.scale * LOG2_E;
    sum_delta<W>(p, b, h, first, dout + own, block_delta + warp_of() * 16);
    int start[2];
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = lane_of() / 4 + 8 * r;
        start[r] = start_of(p.a, b, first + row);
        lse[r] = first + row < seq_len ? p.a.lse[fact_of(p.a, b, first + row, h)] * LOG2_E : 0.0f;
        delta[r] = block_delta[warp_of() * 16 + row];
    }
    float dq[1][W / 8][4] = {};
    int turn = 0;
    for (int k0 = begin; k0 < end; k0 += MMA_KEYS, turn ^= 1) {
        const bf16 *k = keys + turn * TILE;
        const bool active = sees_some(range, k0, MMA_KEYS);
        float x[1][MMA_KEYS / 8][4], dp[1][MMA_KEYS / 8][4];
        wait_groups<0>();
        __syncthreads(); /* the keys are here; what the last turn read has been used */
        load(v, p.a.v, p.a.ldv, k0, kv_head);
        commit();
        if (k0 + MMA_KEYS < end)
            load(keys + (turn ^ 1) * TILE, p.a.k, p.a.ldk, k0 + MMA_KEYS, kv_head);
        commit(); /* an empty group too, so that the values are always the last but one */
        if (active)
            row_products<W>(q + own, k, x);
        wait_groups<1>();
        __syncthreads(); /* the values are here */
        if (!active)
            continue;
        row_products<W>(dout + own, v, dp);
        if (sees_all(range, k0, MMA_KEYS))
            score_gradients<false>(x, dp, scale, first, k0, start, lse, delta);
        else
            score_gradients<true>(x, dp, scale, first, k0, start, lse, delta);
        add_product<W>(x, k, dq);
    }
    store_rows<W>(q + own, dq[0], p.a.scale, p.a.scale, p.dq + place_of(p.a, p.lddq, b, first, h),
                  p.lddq, seq_len - first, p.a.head_dim);
}

/* ---- dk, dv ---------------------------------------------------------------------------------- */

/* Queries of one head in shared memory, with what is known of each; zeros past the row. */
template <int W> struct query_tile {
    bf16 q[FEW_QUERIES * tile_ld<W>()], dout[FEW_QUERIES * tile_ld<W>()];
    float lse[FEW_QUERIES], delta[FEW_QUERIES];
    int start[FEW_QUERIES];
};

template <int W>
static __device__ __forceinline__ void load_queries(const attention_problem &p, int b, int h,
                                                    int first, query_tile<W> *to) {
    const int n = (int)p.a.seq_len - first, i = (int)threadIdx.x % FEW_QUERIES;
    load_rows<FEW_QUERIES, W>(to->q, (const bf16 *)p.a.q + place_of(p.a, p.a.ldq, b, first, h),
                              p.a.ldq, n, p.a.head_dim);
    load_rows<FEW_QUERIES, W>(to->dout, p.dout + place_of(p.a, p.a.ldo, b, first, h), p.a.ldo, n,
                              p.a.head_dim);
    const int64_t fact = fact_of(p.a, b, first, h);
    switch ((int)threadIdx.x / FEW_QUERIES) {
    case 0:
        copy_fact(&to->lse[i], i < n ? p.a.lse + fact + i : p.a.lse, i < n);
        break;
    case 1:
        copy_fact(&to->delta[i], i < n ? p.delta + fact + i : p.delta, i < n);
        break;
    case 2:
        if (p.a.doc_start == nullptr)
            to->start[i] = 0;
        else
            copy_fact(&to->start[i], p.a.doc_start + b * p.a.seq_len + (i < n ? first + i : 0),
                      i < n);
        break;
    default:
        break;
    }
    commit();
}

/* The first query from `from` on that sees none of the keys before `last_key`: documents follow
 * each other, so later ones see none either. */
static __device__ __forceinline__ int end_of_queries(const xp_attention_args &a, int b, int from,
                                                     int last_key) {
    int low = from, high = (int)a.seq_len;
    if (a.doc_start == nullptr)
        return high;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (a.doc_start[b * a.seq_len + middle] <= last_key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Scores x [16 keys, queries] become weights; dp becomes dS / scale. `key`: the thread's first. */
template <int W, bool MASKED>
static __device__ __forceinline__ void
weigh_turned(float (&x)[1][FEW_QUERIES / 8][4], float (&dp)[1][FEW_QUERIES / 8][4], float scale,
             int key, int first, int seq_len, const query_tile<W> &tile) {
    const int column = lane_of() % 4 * 2;
#pragma unroll
    for (int j = 0; j < FEW_QUERIES / 8; j++) {
        const float2 lse = *(const float2 *)&tile.lse[8 * j + column];
        const float2 delta = *(const float2 *)&tile.delta[8 * j + column];
        const int2 start = *(const int2 *)&tile.start[8 * j + column];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int at = first + 8 * j + column + e % 2, own = key + e / 2 * 8;
            const bool seen =
                !MASKED || (own <= at && own >= (e % 2 == 0 ? start.x : start.y) && at < seq_len);
            const float less = (e % 2 == 0 ? lse.x : lse.y) * LOG2_E;
            const float weight = power_of_2(x[0][j][e] * scale - less);
            x[0][j][e] = seen ? weight : 0.0f;
            dp[0][j][e] = seen ? weight * (dp[0][j][e] - (e % 2 == 0 ? delta.x : delta.y)) : 0.0f;
        }
    }
}

template <int W> constexpr size_t keys_shared_bytes() {
    return 2 * MMA_KEYS * tile_ld<W>() * sizeof(bf16) + 2 * sizeof(query_tile<W>);
}

/* Block: dk and dv of 64 keys of one key/value head, over the queries of all heads that share it.
 * Grid: (key tiles, key/value heads, rows). Scores are computed transposed, keys as rows: the
 * weights are then in registers in the layout that dk += dS^T q and dv += p^T dout read. */
template <int W>
__global__ void __launch_bounds__(MMA_THREADS, 2) backward_keys(const attention_problem p) {
    extern __shared__ __align__(16) char shared[];
    constexpr int TILE = MMA_KEYS * tile_ld<W>();
    bf16 *k = (bf16 *)shared, *v = k + TILE;
    query_tile<W> *queries = (query_tile<W> *)(v + TILE);
    const int k0 = (int)blockIdx.x * MMA_KEYS, kv_head = (int)blockIdx.y, b = (int)blockIdx.z;
    const int group = p.a.n_heads / p.a.n_kv_heads, seq_len = (int)p.a.seq_len;
    load_rows<MMA_KEYS, W>(k, (const bf16 *)p.a.k + place_of(p.a, p.a.ldk, b, k0, kv_head), p.a.ldk,
                           seq_len - k0, p.a.head_dim);
    load_rows<MMA_KEYS, W>(v, (const bf16 *)p.a.v + place_of(p.a, p.a.ldv, b, k0, kv_head), p.a.ldv,
                           seq_len - k0, p.a.head_dim);
    load_queries<W>(p, b, kv_head * group, k0, queries);

    const int n_steps =
        (end_of_queries(p.a, b, k0, k0 + MMA_KEYS - 1) - k0 + FEW_QUERIES - 1) / FEW_QUERIES;
    const int first_key = k0 + warp_of() * 16, own = warp_of() * 16 * tile_ld<W>();
    const float scale = p.a.scale * LOG2_E;
    float dk[1][W / 8][4] = {}, dv[1][W / 8][4] = {};
    int turn = 0, head = 0, step = 0;
    while (head < group) {
        const int first = k0 + step * FEW_QUERIES;
        const query_tile<W> &tile = queries[turn];
        if (++step == n_steps) {
            step = 0;
            head++;
        }
        turn ^= 1;
        wait_groups<0>();
        __syncthreads(); /* the queries are here, the last ones have been used */
        if (head < group)
            load_queries<W>(p, b, kv_head * group + head, k0 + step * FEW_QUERIES, &queries[turn]);
        const query_range range = {first, lesser(first + FEW_QUERIES, seq_len) - 1, tile.start[0],
                                   tile.start[lesser(FEW_QUERIES, seq_len - first) - 1]};
        if (!sees_some(range, first_key, 16))
            continue;
        float x[1][FEW_QUERIES / 8][4], dp[1][FEW_QUERIES / 8][4];
        row_products<W>(k + own, tile.q, x);
        row_products<W>(v + own, tile.dout, dp);
        const int key = first_key + lane_of() / 4;
        if (sees_all(range, first_key, 16) && first + FEW_QUERIES <= seq_len)
            weigh_turned<W, false>(x, dp, scale, key, first, seq_len, tile);
        else
            weigh_turned<W, true>(x, dp, scale, key, first, seq_len, tile);
        add_product<W>(x, tile.dout, dv);
        add_product<W>(dp, tile.q, dk);
    }
    const int n = seq_len - first_key;
    store_rows<W>(k + own, dk[0], p.a.scale, p.a.scale,
                  p.dk + place_of(p.a, p.lddk, b, first_key, kv_head), p.lddk, n, p.a.head_dim);
    store_rows<W>(v + own, dv[0], 1.0f, 1.0f, p.dv + place_of(p.a, p.lddv, b, first_key, kv_head),
                  p.lddv, n, p.a.head_dim);
}

template <int W> xp_status run(const attention_problem &p, cudaStream_t s) {
    const dim3 queries((unsigned)xp_ceil_div(p.a.seq_len, QUERIES), (unsigned)p.a.n_heads,
                       (unsigned)p.a.n_rows);
    const dim3 keys((unsigned)xp_ceil_div(p.a.seq_len, MMA_KEYS), (unsigned)p.a.n_kv_heads,
                    (unsigned)p.a.n_rows);
    const size_t for_queries = 5 * MMA_KEYS * tile_ld<W>() * sizeof(bf16);
    XP_TRY(launch_attention(backward_queries<W>, p, queries, for_queries, s, "attention_backward"));
    return launch_attention(backward_keys<W>, p, keys, keys_shared_bytes<W>(), s,
                            "attention_backward");
}

} // namespace

extern "C" xp_status xp_cuda_attention_mma_backward(xp_stream *stream,
                                                    const xp_attention_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    attention_problem p = {};
    p.a = args->forward;
    p.dout = (const bf16 *)args->dout;
    p.dq = (bf16 *)args->dq;
    p.dk = (bf16 *)args->dk;
    p.dv = (bf16 *)args->dv;
    p.lddq = args->lddq;
    p.lddk = args->lddk;
    p.lddv = args->lddv;
    p.delta = (float *)p.a.scratch;
    return p.a.head_dim <= 64 ? run<64>(p, s) : run<128>(p, s);
}
