/*
 * Attention forward in bf16 with mma.sync (Dao, "FlashAttention-2", 2023): whole rows and
 * documents, head sizes up to 128. Tiles of keys outside the documents of a block's queries are
 * skipped, so the time is proportional to the query-key pairs that are not masked.
 */
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/cuda_ops.h"

namespace {

/* Groups of 16 queries a warp owns: the more, the fewer reads of keys and values; and of a block.
 */
constexpr int GROUPS = 2, QUERIES = MMA_WARPS * GROUPS * 16;

/* What a thread keeps of its rows: two of each group. Scores are in units of log2(e). */
struct softmax_state {
    float max[GROUPS][2], sum[GROUPS][2];
};

/* Scores x of queries from `first` on and keys from k0 on to weights, old results to the new
 * maximum. */
template <int W, bool MASKED>
static __device__ __forceinline__ void weigh(const attention_problem &p, int b, int first, int k0,
                                             float (&x)[GROUPS][MMA_KEYS / 8][4], softmax_state &s,
                                             float (&out)[GROUPS][W / 8][4]) {
    const int row = lane_of() / 4, column = lane_of() % 4 * 2;
    const float scale = p.a.scale * LOG2_E;
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int at = first + 16 * i + row + 8 * h;
            const int start = MASKED ? start_of(p.a, b, at) : 0;
            float highest = s.max[i][h], added = 0.0f;
#pragma unroll
            for (int j = 0; j < MMA_KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    const int key = k0 + 8 * j + column + e - 2 * h;
                    const bool seen = !MASKED || (key >= start && key <= at);
                    x[i][j][e] = seen ? x[i][j][e] * scale : -INFINITY;
                    highest = fmaxf(highest, x[i][j][e]);
                }
            highest = quad_max(highest);
            const float base = highest == -INFINITY ? 0.0f : highest; /* nothing seen yet */
            const float factor = power_of_2(s.max[i][h] - base);
            s.max[i][h] = highest;
#pragma unroll
            for (int j = 0; j < MMA_KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    x[i][j][e] = power_of_2(x[i][j][e] - base);
                    added += x[i][j][e];
                }
            s.sum[i][h] = s.sum[i][h] * factor + added;
#pragma unroll
            for (int j = 0; j < W / 8; j++) {
                out[i][j][2 * h] *= factor;
                out[i][j][2 * h + 1] *= factor;
            }
        }
}

/* Results of the warp's queries, and their lse. `tile`: the warp's rows of q. */
template <int W>
static __device__ __forceinline__ void finish(const attention_problem &p, int b, int h, int first,
                                              bf16 *tile, const softmax_state &s,
                                              const float (&out)[GROUPS][W / 8][4]) {
    const int row = lane_of() / 4, n = (int)p.a.seq_len - first;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const float sum[2] = {quad_sum(s.sum[i][0]), quad_sum(s.sum[i][1])};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int r = 16 * i + row + 8 * k;
            if (r < n && lane_of() % 4 == 0)
                p.a.lse[fact_of(p.a, b, first + r, h)] = (s.max[i][k] + log2f(sum[k])) * LN_2;
        }
        store_rows<W>(tile + 16 * i * tile_ld<W>(), out[i], 1.0f / sum[0], 1.0f / sum[1],
                      (bf16 *)p.a.out + place_of(p.a, p.a.ldo, b, first + 16 * i, h), p.a.ldo,
                      n - 16 * i, p.a.head_dim);
    }
}

/* Block: QUERIES queries of one head. Grid: (query tiles, heads, rows); the last tiles, which are
 * the longest of a whole row, start first. cp.async loads the next keys while the values are used,
 * and the next values while the keys are used. */
template <int W>
__global__ void __launch_bounds__(MMA_THREADS, 2) forward(const attention_problem p) {
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *q = tiles, *k = q + QUERIES * tile_ld<W>(), *v = k + MMA_KEYS * tile_ld<W>();
    const int tile = (int)(gridDim.x - 1 - blockIdx.x), h = (int)blockIdx.y, b = (int)blockIdx.z;
    const int kv_head = h / (p.a.n_heads / p.a.n_kv_heads), seq_len = (int)p.a.seq_len;
    const int block_first = tile * QUERIES, end = lesser(block_first + QUERIES, seq_len);
    const int begin = start_of(p.a, b, block_first) / MMA_KEYS * MMA_KEYS;
    const auto load_keys = [&](bf16 *to, const void *from, int64_t ld, int k0) {
        load_rows<MMA_KEYS, W>(to, (const bf16 *)from + place_of(p.a, ld, b, k0, kv_head), ld,
                               seq_len - k0, p.a.head_dim);
        commit();
    };
    load_rows<QUERIES, W>(q, (const bf16 *)p.a.q + place_of(p.a, p.a.ldq, b, block_first, h),
                          p.a.ldq, seq_len - block_first, p.a.head_dim);
    load_keys(k, p.a.k, p.a.ldk, begin);

    const int first = block_first + warp_of() * GROUPS * 16;
    bf16 *own = q + warp_of() * GROUPS * 16 * tile_ld<W>();
    const query_range range = range_of(p.a, b, first, GROUPS * 16);
    softmax_state s;
    float out[GROUPS][W / 8][4] = {};
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.max[i][r] = -INFINITY;
            s.sum[i][r] = 0.0f;
        }
    for (int k0 = begin; k0 < end; k0 += MMA_KEYS) {
        const bool active = sees_some(range, k0, MMA_KEYS);
        float x[GROUPS][MMA_KEYS / 8][4];
        wait_groups<0>();
        __syncthreads(); /* the keys are here, the last values have been used */
        load_keys(v, p.a.v, p.a.ldv, k0);
        if (active)
            row_products<W>(own, k, x);
        wait_groups<0>();
        __syncthreads(); /* the values are here, the keys have been used */
        if (k0 + MMA_KEYS < end)
            load_keys(k, p.a.k, p.a.ldk, k0 + MMA_KEYS);
        if (!active)
            continue;
        if (sees_all(range, k0, MMA_KEYS))
            weigh<W, false>(p, b, first, k0, x, s, out);
        else
            weigh<W, true>(p, b, first, k0, x, s, out);
        add_product<W>(x, v, out);
    }
    finish<W>(p, b, h, first, own, s, out);
}

template <int W> xp_status run(const attention_problem &p, cudaStream_t stream) {
    const dim3 grid((unsigned)xp_ceil_div(p.a.seq_len, QUERIES), (unsigned)p.a.n_heads,
                    (unsigned)p.a.n_rows);
    const size_t n_bytes = (QUERIES + 2 * MMA_KEYS) * tile_ld<W>() * sizeof(bf16);
    return launch_attention(forward<W>, p, grid, n_bytes, stream, "attention_forward");
}

} // namespace

extern "C" xp_status xp_cuda_attention_mma_forward(xp_stream *stream,
                                                   const xp_attention_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    attention_problem p = {};
    p.a = *args;
    return p.a.head_dim <= 64 ? run<64>(p, s) : run<128>(p, s);
}
