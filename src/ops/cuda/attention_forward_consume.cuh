/**
 * Attention forward for sm_90a: the consumer warpgroups. See attention_forward_hopper.cu.
 *
 * A warpgroup owns 64 queries. While the tensor cores multiply the weights of a block of keys with
 * its values, the warpgroup turns the scores of the next block into weights. The warpgroups do not
 * wait for each other: one's GEMMs run while the other computes weights all the same. The first
 * scores of a tile run with the last values of the tile before.
 */
#ifndef XP_OPS_CUDA_ATTENTION_FORWARD_CONSUME_CUH
#define XP_OPS_CUDA_ATTENTION_FORWARD_CONSUME_CUH

#include "ops/cuda/attention_forward_tiles.cuh"
#include "ops/cuda/attention_hopper_warpgroup.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* x[64 queries, 128 keys] = rows of q . rows of k, C wide. */
template <int C>
static __device__ __forceinline__ void multiply_queries(float (&x)[64], uint32_t q, uint32_t k) {
    const operand of_q = operand_of(q, 1), of_k = operand_of(k, 1);
    wgmma_shared_zero<0, 0>(x, of_q.at(0), of_k.at(0));
#pragma unroll
    for (int step = 1; step < C / 16; step++) {
        const uint32_t at = step / 4 * BLOCK_SLAB + step % 4 * COLUMN_STEP;
        wgmma_shared<0, 0>(x, of_q.at(at), of_k.at(at));
    }
}

/* sum[64 queries, C] += w[64 queries, 128 keys] v[128 keys, C], of keys 16 FIRST to 16 LAST: v in
 * slabs of 128 rows. */
template <int FIRST, int LAST, int N>
static __device__ __forceinline__ void add_values(float (&sum)[N], const uint32_t (&w)[32],
                                                  uint32_t v) {
    const uint64_t d = xp_hopper_descriptor(v, BLOCK_SLAB, XP_HOPPER_ATOM_BYTES);
    const operand of_v = {(uint32_t)d, (uint32_t)(d >> 32)};
#pragma unroll
    for (int step = FIRST; step < LAST; step++)
        wgmma_registers(sum, w + 4 * step, of_v.at(step * ROW_STEP));
}

static __device__ __forceinline__ int load_start(const int32_t *from) {
    int32_t x;
    asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"(__cvta_generic_to_global(from)));
    return x;
}

static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* What a sum of weights is made of stays above this line. ptxas moves a wait for GEMMs up to where its
 * registers are known, above the whole softmax, which should run beside those GEMMs; a branch, never
 * taken, that depends on the softmax keeps the wait below. (A trap in it costs the registers that
 * setmaxnreg adds: C7512.) */
static __device__ __forceinline__ void stay_above(float sum) {
    if (sum < 0.0f)
        asm volatile("nanosleep.u32 20;");
}

/* Two rows a thread: r and r + 8 of its warp's 16. Scores are in units of ln 2. */
struct softmax_rows {
    float max[2]; /* of all scores so far */
    float sum[2]; /* of the thread's weights, before they are rounded */
};

/* The tile and what hides keys from the thread's two queries, and from the warpgroup's last. */
struct query_rows {
    xp_attention_query_tile t;
    int start[2], last_start;
};

/* Scores of keys that a query does not see become -infinity. first: the block's first key less the
 * tile's first query. */
static __device__ __forceinline__ void mask_keys(float (&x)[64], int group, int first,
                                                 const int (&start)[2], int tile_first) {
    const uint32_t thread = thread_in_group();
    first += first_column(thread);
    const int own = group * 64 + first_row(thread);
    const int last[2] = {own - first, own + 8 - first};
    const int low[2] = {start[0] - tile_first - first, start[1] - tile_first - first};
#pragma unroll
    for (int i = 0; i < BLOCK / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = 8 * i + e % 2;
            const bool seen = key <= last[e / 2] && key >= low[e / 2];
            x[4 * i + e] = seen ? x[4 * i + e] : -INFINITY;
        }
}

/* Scores become weights 2^(x scale - max). @param[out] factor what older results are worth now */
static __device__ __forceinline__ void weigh_keys(float (&x)[64], float scale, softmax_rows &rows,
                                                  float (&factor)[2]) {
    float high[4], added[4]; /* two chains a row */
#pragma unroll
    for (int j = 0; j < 4; j++)
        high[j] = fmaxf(x[j], x[4 + j]);
#pragma unroll
    for (int i = 2; i < BLOCK / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            high[j] = fmaxf(high[j], x[4 * i + j]);
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float most =
            fmaxf(rows.max[r], quad_max(fmaxf(high[2 * r], high[2 * r + 1])) * scale);
        base[r] = most == -INFINITY ? 0.0f : most; /* nothing but -infinity so far */
        factor[r] = power_of_2(rows.max[r] - base[r]);
        rows.max[r] = most;
    }
#pragma unroll
    for (int i = 0; i < BLOCK / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[4 * i + j] = power_of_2(fmaf(x[4 * i + j], scale, -base[j / 2]));
            added[j] = i == 0 ? x[j] : added[j] + x[4 * i + j];
        }
#pragma unroll
    for (int r = 0; r < 2; r++)
        rows.sum[r] = rows.sum[r] * factor[r] + (added[2 * r] + added[2 * r + 1]);
}

template <int C> struct forward_consumer {
    typedef forward_layout<C> L;
    const xp_attention_forward_hopper &p;
    const forward_maps &maps;
    const consumer c;
    const bool stores; /* one thread of the warpgroup */
    const float scale;
    ring_place<N_QUERY_BUFFERS> q; /* of the current tile */
    ring_place<L::STAGES> k, v;
    softmax_rows rows;
    float out[C / 2];
    uint32_t w[32];

    /* The tile in buffer q; m < 0: no more. */
    __device__ __forceinline__ void read_tile(query_rows &now) const {
        const uint32_t at = c.base + L::ITEMS_AT + q.at * TILE_WORDS * 4;
        mbarrier_wait(L::barrier(c.base, L::Q_FULL + q.at), q.parity);
        int x[TILE_WORDS]; /* the exchange tells the compiler: uniform */
#pragma unroll
        for (int i = 0; i < TILE_WORDS; i++)
            x[i] = __shfl_sync(0xffffffffu, (int)load_shared(at + i * 4), 0);
        now.t = {x[0], x[1], x[2], x[3]};
        now.start[0] = now.start[1] = now.last_start = 0;
        if (now.t.m < 0 || p.a.doc_start == nullptr)
            return;
        const int32_t *starts = p.a.doc_start + now.t.b * p.a.seq_len;
        const int last = (int)p.a.seq_len - 1, first = now.t.m * BLOCK + c.group * 64,
                  own = first + first_row(thread_in_group());
        now.start[0] = load_start(starts + min(own, last));
        now.start[1] = load_start(starts + min(own + 8, last));
        now.last_start = load_start(starts + min(first + 63, last));
    }

    __device__ __forceinline__ void start_scores(float (&x)[64]) const {
        __syncwarp();
        wgmma_fence();
        multiply_queries<C>(x,
                            c.base + L::Q_AT + q.at * L::BLOCK_BYTES + c.group * (BLOCK_SLAB / 2),
                            c.base + L::K_AT + k.at * L::BLOCK_BYTES);
        wgmma_commit();
    }
    /* diagonal: the first 64 queries see none of the last 64 keys. Each branch commits its own group:
     * with one commit below both, ptxas closes a group in each branch and an empty one for the commit,
     * and a wait for the scores, all groups but the last, waits for the values too. */
    template <bool MAY_BE_DIAGONAL> __device__ __forceinline__ void start_values(bool diagonal) {
        mbarrier_wait(L::barrier(c.base, L::V_FULL + v.at), v.parity);
        __syncwarp();
        wgmma_fence();
        const uint32_t from = c.base + L::V_AT + v.at * L::BLOCK_BYTES;
        if (!MAY_BE_DIAGONAL) {
            add_values<0, BLOCK / 16>(out, w, from);
            wgmma_commit();
        } else if (diagonal && c.group == 0) {
            add_values<0, BLOCK / 32>(out, w, from);
            wgmma_commit();
        } else {
            add_values<0, BLOCK / 16>(out, w, from);
            wgmma_commit();
        }
    }
    __device__ __forceinline__ void wait_keys() const {
        mbarrier_wait(L::barrier(c.base, L::K_FULL + k.at), k.parity);
    }
    __device__ __forceinline__ void free_keys() {
        arrive(c, L::barrier(c.base, L::K_EMPTY + k.at));
        k.next();
    }
    __device__ __forceinline__ void free_values() {
        arrive(c, L::barrier(c.base, L::V_EMPTY + v.at));
        v.next();
    }

    /* Weights of a tile's first block, the one on the diagonal: each query sees itself. */
    __device__ __forceinline__ void begin(float (&x)[64], const query_rows &now) {
        float factor[2];
        mask_keys(x, c.group, 0, now.start, now.t.m * BLOCK);
        rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
        weigh_keys(x, scale, rows, factor);
        round_all(x, w);
#pragma unroll
        for (int i = 0; i < C / 2; i++)
            out[i] = 0.0f;
    }

    /* Block n of the tile: its scores become weights while those of the block before meet their
     * values. DIAGONAL: that was the first. */
    template <bool DIAGONAL>
    __device__ __forceinline__ void step(float (&x)[64], const query_rows &now, int n) {
        float factor[2];
        wait_keys();
        start_scores(x);
        start_values<DIAGONAL>(true);
        wgmma_wait<1>(); /* scores */
        accumulators_fence(x);
        free_keys();
        if (n * BLOCK < now.last_start)
            mask_keys(x, c.group, (n - now.t.m) * BLOCK, now.start, now.t.m * BLOCK);
        weigh_keys(x, scale, rows, factor);
        stay_above(rows.sum[0] + rows.sum[1]);
        wgmma_wait<0>(); /* values; the weights' registers are free */
        accumulators_fence(out);
        free_values();
#pragma unroll
        for (int i = 0; i < C / 2; i++)
            out[i] *= factor[i / 2 % 2];
        round_all(x, w);
    }

    /* The last values of this tile, and the first scores of the next: of what happens to lie there
     * when there is none, so that there is no branch. */
    __device__ __forceinline__ void finish_values(float (&x)[64], bool more, bool diagonal) {
        if (more)
            wait_keys();
        start_scores(x);
        start_values<true>(diagonal);
        wgmma_wait<0>();
        accumulators_fence(out);
        accumulators_fence(x);
        free_values();
    }

    /* Results of the tile in buffer `from`, over its queries. All warps of the warpgroup have met
     * here since the last scores of the tile were complete, so nobody reads them. */
    __device__ __forceinline__ void finish_tile(const xp_attention_query_tile &t, int from) {
        const uint32_t thread = thread_in_group(), lane = thread % 32;
        const int row = t.m * BLOCK + c.group * 64;
        const int64_t first = ((int64_t)t.b * p.a.n_heads + t.h) * p.a.seq_len;
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float sum = quad_sum(rows.sum[r]);
            const int own = row + first_row(thread) + 8 * r;
            inverse[r] = 1.0f / sum;
            if (lane % 4 == 0 && own < p.a.seq_len)
                p.a.lse[first + own] = (rows.max[r] + log2f(sum)) * 0.693147180559945309f;
        }
        const uint32_t to = c.base + L::Q_AT + from * L::BLOCK_BYTES + c.group * (BLOCK_SLAB / 2);
        named_barrier_sync(1 + c.group, GROUP);
        const uint32_t line = thread / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
        for (int i = 0; i < C / 16; i++) { /* 16 columns: rows 0-7 and 8-15 of the first 8, then the
                                              others; chunk 2 i + lane / 16 of the slab's row */
            uint32_t both[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                both[j] = pack(out[8 * i + 2 * j] * inverse[j % 2],
                               out[8 * i + 2 * j + 1] * inverse[j % 2]);
            store_matrices<false>(
                to + i / 4 * BLOCK_SLAB + xp_hopper_chunk(line, 2 * (i % 4) + lane / 16), both);
        }
        async_proxy_fence();
        named_barrier_sync(1 + c.group, GROUP);
        if (!stores)
            return;
        if (row < p.a.seq_len) { /* of the last tile, the second half may be empty */
#pragma unroll
            for (int s = 0; s < C / SLAB_COLUMNS; s++)
                tma_store(&maps.out, to + s * BLOCK_SLAB, t.h * C + s * SLAB_COLUMNS, row, t.b);
        }
        bulk_commit();
    }

    /* The buffer is free once the stores have read it. Called when that is long past. */
    __device__ __forceinline__ void free_queries(int buffer) const {
        if (!stores)
            return;
        bulk_wait_read();
        mbarrier_arrive(L::barrier(c.base, L::Q_EMPTY + buffer));
    }

    __device__ __forceinline__ void run() {
        float x[64];
        query_rows now;
        read_tile(now);
        if (now.t.m < 0)
            return;
        wait_keys();
        start_scores(x);
        wgmma_wait<0>();
        accumulators_fence(x);
        for (int before = -1;;) {
            free_keys();
            begin(x, now);
            if (before >= 0)
                free_queries(before);
            int n = now.t.m - 1;
            if (n >= now.t.low)
                step<true>(x, now, n--);
            for (; n >= now.t.low; n--)
                step<false>(x, now, n);
            const xp_attention_query_tile done = now.t;
            before = q.at;
            q.next();
            read_tile(now);
            finish_values(x, now.t.m >= 0, done.low == done.m);
            finish_tile(done, before);
            if (now.t.m < 0)
                break;
        }
        if (stores)
            bulk_wait();
    }
};

#endif
#endif
