/**
 * Attention backward for sm_90a: the consumer warpgroups. See attention_hopper.cu.
 *
 * A warpgroup owns 64 keys. Scores and dP are computed with keys as rows, so that the accumulators
 * become, rounded to bf16, the A operands of dv += P^T dout and dk += dS^T q without leaving
 * registers. dS goes through shared memory for dq = dS k, of which a warpgroup computes half the
 * columns over the keys of both; that GEMM runs one tile late, so that neither warpgroup waits for
 * the other.
 */
#ifndef XP_OPS_CUDA_ATTENTION_HOPPER_CONSUME_CUH
#define XP_OPS_CUDA_ATTENTION_HOPPER_CONSUME_CUH

#include "ops/cuda/attention_hopper_warpgroup.cuh"
#include "ops/cuda/attention_hopper_sums.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* x[64, 64] = rows of a . rows of b, both C wide: a of a block of keys, b of a tile of queries. */
template <int C>
static __device__ __forceinline__ void multiply_rows(float (&x)[32], uint32_t a, uint32_t b) {
    const operand of_a = operand_of(a, 1), of_b = operand_of(b, 1);
    wgmma_shared_zero<0, 0>(x, of_a.at(0), of_b.at(0));
#pragma unroll
    for (int step = 1; step < C / 16; step++)
        wgmma_shared<0, 0>(x, of_a.at(step / 4 * BLOCK_SLAB + step % 4 * COLUMN_STEP),
                           of_b.at(step / 4 * TILE_SLAB + step % 4 * COLUMN_STEP));
}

/* sum[64 keys, C] += w[64 keys, 64 queries] b[64 queries, C]. */
template <int N>
static __device__ __forceinline__ void add_queries(float (&sum)[N], const uint32_t (&w)[16],
                                                   uint32_t b) {
    const operand of_b = operand_of(b, 0);
#pragma unroll
    for (int step = 0; step < TILE / 16; step++)
        wgmma_registers(sum, w + 4 * step, of_b.at(step * ROW_STEP));
}

/* dq[64 queries, C / 2] = dS[64 queries, 128 keys] k[128 keys, C / 2]. */
template <int N>
static __device__ __forceinline__ void multiply_keys(float (&dq)[N], uint32_t ds, uint32_t k) {
    const operand of_ds = operand_of(ds, 0), of_k = operand_of(k, 0);
    wgmma_shared_zero<1, 1>(dq, of_ds.at(0), of_k.at(0));
#pragma unroll
    for (int step = 1; step < BLOCK / 16; step++)
        wgmma_shared<1, 1>(dq, of_ds.at(step * ROW_STEP), of_k.at(step * ROW_STEP));
}

static __device__ __forceinline__ float2 shared_pair(uint32_t at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at));
    return x;
}
static __device__ __forceinline__ int2 shared_ints(uint32_t at) {
    int2 x;
    asm volatile("ld.shared.v2.s32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at));
    return x;
}

/* Scores become weights: 2^(x scale - lse). `facts`: those of the thread's first query. */
static __device__ __forceinline__ void weigh(float (&x)[32], float scale, uint32_t facts) {
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        const float2 lse = shared_pair(facts + i * 32);
        x[4 * i] = power_of_2(fmaf(x[4 * i], scale, -lse.x));
        x[4 * i + 1] = power_of_2(fmaf(x[4 * i + 1], scale, -lse.y));
        x[4 * i + 2] = power_of_2(fmaf(x[4 * i + 2], scale, -lse.x));
        x[4 * i + 3] = power_of_2(fmaf(x[4 * i + 3], scale, -lse.y));
    }
}

/* Scores of keys that a query does not see become -infinity. key, query, starts: of the tile. */
static __device__ __forceinline__ void mask(float (&x)[32], int key, int query, uint32_t starts,
                                            bool documents) {
    const uint32_t thread = thread_in_group();
    key += first_row(thread);
    query += first_column(thread);
    starts += first_column(thread) * 4;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        const int2 start = documents ? shared_ints(starts + i * 32) : make_int2(0, 0);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int own = key + e / 2 * 8, at = query + 8 * i + e % 2;
            const bool seen = own <= at && own >= (e % 2 == 0 ? start.x : start.y);
            x[4 * i + e] = seen ? x[4 * i + e] : -INFINITY;
        }
    }
}

/* dP becomes dS / scale = P (dP - delta). */
static __device__ __forceinline__ void differentiate(float (&dp)[32], const float (&p)[32],
                                                     uint32_t facts) {
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        const float2 delta = shared_pair(facts + TILE * 4 + i * 32);
        dp[4 * i] = p[4 * i] * (dp[4 * i] - delta.x);
        dp[4 * i + 1] = p[4 * i + 1] * (dp[4 * i + 1] - delta.y);
        dp[4 * i + 2] = p[4 * i + 2] * (dp[4 * i + 2] - delta.x);
        dp[4 * i + 3] = p[4 * i + 3] * (dp[4 * i + 3] - delta.y);
    }
}

template <int C, int S> struct consumer_state {
    float dk[C / 2], dv[C / 2]; /* [64 keys, C] */
    ring_place<S> stage;        /* of the tile */
    ring_place<N_SLOTS> slot;   /* of the tile's dS */
    ring_place<N_ADDERS> dq_tile;
    uint32_t dq_parity, block_parity;
};

/* Half of dq, complete in registers, to the thread that adds it. */
template <class L, int N, class STATE>
static __device__ __forceinline__ void hand_over_dq(const consumer &c, const float (&dq)[N],
                                                    STATE &s) {
    const uint32_t to = c.base + L::DQ_AT + c.group * L::DQ_BYTES + thread_in_group() * 16;
    mbarrier_wait(L::barrier(c.base, L::DQ_EMPTY + c.group), s.dq_parity ^ 1);
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + i * GROUP * 16),
                     "f"(dq[4 * i]), "f"(dq[4 * i + 1]), "f"(dq[4 * i + 2]), "f"(dq[4 * i + 3])
                     : "memory");
    async_proxy_fence();
    arrive(c, L::barrier(c.base, L::DQ_FULL + c.group * N_ADDERS + s.dq_tile.at));
    s.dq_tile.next();
    s.dq_parity ^= 1;
}

/* Where a lane's row of 8 queries of dS lies within a slot, before the swizzle of step 0's chunk
 * with the step: chunk 2 step + c of row r lies at (c ^ r % 8) ^ 2 step. */
static __device__ __forceinline__ uint32_t place_of_ds(int group, uint32_t thread) {
    const uint32_t lane = thread % 32, block = lane / 8;
    const uint32_t key = (uint32_t)group * 64 + thread / 32 * 16 + block % 2 * 8 + lane % 8;
    return xp_hopper_chunk(key, block / 2);
}

/* dS of the warp's 16 keys to shared memory: keys as rows, 64 queries each. */
template <class L>
static __device__ __forceinline__ void hand_over_ds(const consumer &c, const uint32_t (&w)[16],
                                                    const ring_place<N_SLOTS> &slot) {
    const uint32_t to =
        c.base + L::DS_AT + slot.at * L::DS_BYTES + place_of_ds(c.group, thread_in_group());
    mbarrier_wait(L::barrier(c.base, L::DS_EMPTY + slot.at), slot.parity ^ 1);
#pragma unroll
    for (int step = 0; step < TILE / 16; step++)
        store_matrices(to ^ (uint32_t)(step * 32), w + 4 * step);
    async_proxy_fence();
    arrive(c, L::barrier(c.base, L::DS_FULL + slot.at));
}

/* The warpgroup's operand of dq: columns [C / 2 group, + C / 2) of k. */
template <int C, class L> static __device__ __forceinline__ uint32_t half_of_k(const consumer &c) {
    return c.base + L::K_AT + (C == 128 ? c.group * BLOCK_SLAB : c.group * C);
}

/* Sums of a part in the order of the accumulators. */
template <int N> static __device__ __forceinline__ void put_sums(const float (&d)[N], float *to) {
    float4 *own = (float4 *)to + threadIdx.x % GROUP;
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        own[i * GROUP] = make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
}

/* dk and dv, complete in registers, to their rows or to the sums of the part. */
template <int N>
static __device__ __forceinline__ void finish_keys(const xp_attention_hopper &p, const consumer &c,
                                                   const xp_attention_item &t, const float (&dk)[N],
                                                   const float (&dv)[N]) {
    if (p.key_sums != nullptr) {
        float *to = p.key_sums + ((int64_t)t.index * 4 + c.group) * (N * GROUP);
        put_sums(dk, to);
        put_sums(dv, to + 2 * N * GROUP);
        return;
    }
    const int first = t.n * BLOCK + c.group * 64, n_rows = (int)p.a.seq_len - first;
    const int row = first_row(thread_in_group());
    const int64_t token = (int64_t)t.b * p.a.seq_len + first;
    put_rows(dk, p.a.scale, (bf16 *)p.dk + token * p.lddk + t.kv_head * (2 * N), p.lddk, row,
             n_rows);
    put_rows(dv, 1.0f, (bf16 *)p.dv + token * p.lddv + t.kv_head * (2 * N), p.lddv, row, n_rows);
}

template <int C, int S> struct consumer_step {
    typedef attention_layout<C, S> L;

    /* dq of the tile before: its dS lies in the slot before the current one. */
    static __device__ __forceinline__ void
    multiply_last(const consumer &c, const ring_place<N_SLOTS> &last, float (&dq)[C / 4]) {
        wgmma_fence();
        multiply_keys(dq, c.base + L::DS_AT + last.at * L::DS_BYTES, half_of_k<C, L>(c));
        wgmma_commit();
    }

    static __device__ __forceinline__ void finish_last(const consumer &c, consumer_state<C, S> &s,
                                                       const ring_place<N_SLOTS> &last,
                                                       const float (&dq)[C / 4]) {
        arrive(c, L::barrier(c.base, L::DS_EMPTY + last.at));
        hand_over_dq<L>(c, dq, s);
    }

    static __device__ __forceinline__ void multiply_dp(const consumer &c, float (&dp)[32],
                                                       const ring_place<S> &stage) {
        mbarrier_wait(L::barrier(c.base, L::DOUT_FULL + stage.at), stage.parity);
        __syncwarp();
        wgmma_fence();
        multiply_rows<C>(dp, c.base + L::V_AT + c.group * (BLOCK_SLAB / 2),
                         c.base + L::DOUT_AT + stage.at * L::TILE_BYTES);
        wgmma_commit();
    }

    static __device__ __forceinline__ void run(const xp_attention_hopper &p, const consumer &c,
                                               consumer_state<C, S> &s, const xp_attention_item &t,
                                               bool first, float scale) {
        ring_place<S> stage = s.stage;
        const ring_place<N_SLOTS> last = s.slot.before();
        const uint32_t facts = c.base + L::FACTS_AT + stage.at * FACTS_BYTES;
        float x[32], dp[32], dq[C / 4];
        uint32_t w[16], ds[16];
        mbarrier_wait(L::barrier(c.base, L::Q_FULL + stage.at), stage.parity);
        wait_turn(c.group);
        __syncwarp();
        wgmma_fence();
        multiply_rows<C>(x, c.base + L::K_AT + c.group * (BLOCK_SLAB / 2),
                         c.base + L::Q_AT + stage.at * L::TILE_BYTES);
        wgmma_commit();
        multiply_dp(c, dp, stage);

        wgmma_wait<1>(); /* scores */
        accumulators_fence(x);
        const int key = t.n * BLOCK + c.group * 64, query = t.m * TILE;
        const bool documents = p.starts != nullptr;
        const uint32_t starts = facts + FACTOR_BYTES;
        if (key + 63 > query || (documents && shared_ints(starts + START_BYTES - 8).y > key))
            mask(x, key, query, starts, documents);
        weigh(x, scale, facts + first_column(thread_in_group()) * 4);
        round_all(x, w);
        wgmma_fence();
        add_queries(s.dv, w, c.base + L::DOUT_AT + stage.at * L::TILE_BYTES);
        wgmma_commit();
        pass_turn(c.group);

        wgmma_wait<1>(); /* dP */
        accumulators_fence(dp);
        differentiate(dp, x, facts + first_column(thread_in_group()) * 4);
        round_all(dp, ds);
        if (!first)
            mbarrier_wait(L::barrier(c.base, L::DS_FULL + last.at), last.parity);
        __syncwarp();
        multiply_last(c, last, dq); /* the first time of nothing, so that there is no branch */
        hand_over_ds<L>(c, ds, s.slot);
        wgmma_fence();
        add_queries(s.dk, ds, c.base + L::Q_AT + stage.at * L::TILE_BYTES);
        wgmma_commit();
        wgmma_wait<1>(); /* dv, dq */
        arrive(c, L::barrier(c.base, L::DOUT_EMPTY + stage.at));
        accumulators_fence(dq);
        if (!first)
            finish_last(c, s, last, dq);
        wgmma_wait<0>(); /* dk: its operands' registers are needed */
        arrive(c, L::barrier(c.base, L::Q_EMPTY + stage.at));
        s.stage.next();
        s.slot.next();
    }
};

template <int C, int S>
static __device__ __forceinline__ void consume(const xp_attention_hopper &p, uint32_t base,
                                               const int32_t *items) {
    typedef attention_layout<C, S> L;
    typedef consumer_step<C, S> step;
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / GROUP - 1, 0); /* uniform */
    const consumer c = {base, group, threadIdx.x % 32 == 0};
    const float scale = p.a.scale * 1.4426950408889634f;
    item_reader<L, true> reader = {};
    consumer_state<C, S> s;
    s.stage = {};
    s.slot = {};
    s.dq_tile = {};
    s.dq_parity = s.block_parity = 0;
    if (group == 1)
        pass_turn(group);
    for (int item; (item = reader.read(p, base, items, c.elected)) >= 0;) {
        xp_attention_item t = xp_attention_item_of(&p, item);
#pragma unroll
        for (int i = 0; i < C / 2; i++)
            s.dk[i] = s.dv[i] = 0.0f;
        mbarrier_wait(L::barrier(base, L::K_FULL), s.block_parity);
        mbarrier_wait(L::barrier(base, L::V_FULL), s.block_parity);
        s.block_parity ^= 1;
        for (int i = 0; i < t.n_tiles; i++, xp_attention_item_next(&t))
            step::run(p, c, s, t, i == 0, scale);

        float dq[C / 4]; /* of the last tile */
        const ring_place<N_SLOTS> last = s.slot.before();
        mbarrier_wait(L::barrier(base, L::DS_FULL + last.at), last.parity);
        __syncwarp();
        step::multiply_last(c, last, dq);
        wgmma_wait<0>();
        accumulators_fence(dq);
        accumulators_fence(s.dk);
        accumulators_fence(s.dv);
        arrive(c, L::barrier(base, L::KV_EMPTY));
        step::finish_last(c, s, last, dq);
        finish_keys(p, c, t, s.dk, s.dv);
    }
}

#endif
#endif
