/**
 * Attention forward for sm_90a: shared memory and the producer. See attention_forward_hopper.cu.
 */
#ifndef XP_OPS_CUDA_ATTENTION_FORWARD_TILES_CUH
#define XP_OPS_CUDA_ATTENTION_FORWARD_TILES_CUH

#include "ops/cuda/attention_forward_hopper.h"
#include "ops/cuda/attention_hopper_tiles.cuh"

enum { N_QUERY_BUFFERS = 3, TILE_WORDS = 4 /* of a tile: m, h, b, low */ };

struct forward_maps {
    CUtensorMap q, k, v, out; /* out in boxes of 64 rows, the others of 128 */
};

/* Shared memory of a CTA. All tiles are 128 rows in slabs of 64 columns. A buffer of queries takes
 * the results of its tile too: a warpgroup alone reads its 64 queries, and writes their results
 * over them. */
template <int C> struct forward_layout {
    static constexpr int STAGES = C == 64 ? 4 : 2; /* of keys, of values */
    static constexpr uint32_t BLOCK_BYTES = BLOCK * C * 2;
    static constexpr uint32_t Q_AT = 0, K_AT = Q_AT + N_QUERY_BUFFERS * BLOCK_BYTES,
                              V_AT = K_AT + STAGES * BLOCK_BYTES,
                              ITEMS_AT = V_AT + STAGES * BLOCK_BYTES,
                              BARRIERS_AT = ITEMS_AT + N_QUERY_BUFFERS * TILE_WORDS * 4;
    enum { /* barriers, 8 bytes each */
           Q_FULL = 0,
           Q_EMPTY = Q_FULL + N_QUERY_BUFFERS,
           K_FULL = Q_EMPTY + N_QUERY_BUFFERS,
           K_EMPTY = K_FULL + STAGES,
           V_FULL = K_EMPTY + STAGES,
           V_EMPTY = V_FULL + STAGES,
           N_BARRIERS = V_EMPTY + STAGES
    };
    static constexpr uint32_t N_BYTES = BARRIERS_AT + N_BARRIERS * 8;

    static __device__ __forceinline__ uint32_t barrier(uint32_t base, int which) {
        return base + BARRIERS_AT + (uint32_t)which * 8;
    }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Barriers of copies complete by the producer's arrival and the bytes, those of a free stage by
 * every consumer warp, those of a free buffer of queries by one thread a warpgroup. */
template <class L> static __device__ __forceinline__ void init_barriers(uint32_t base) {
    for (int i = 0; i < L::N_BARRIERS; i++) {
        const bool full = i < L::Q_EMPTY || (i >= L::K_FULL && i < L::K_EMPTY) ||
                          (i >= L::V_FULL && i < L::V_EMPTY);
        mbarrier_init(L::barrier(base, i), full ? 1 : i < L::K_FULL ? N_CONSUMERS : CONSUMER_WARPS);
    }
    mbarrier_init_fence();
}

/* C columns of a head from token `row` on, 128 rows. */
template <int C>
static __device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap *map, uint32_t full,
                                                 int head, int row, int b) {
    mbarrier_expect_tx(full, BLOCK * C * 2);
#pragma unroll
    for (int s = 0; s < C / SLAB_COLUMNS; s++)
        tma_load<1>(to + s * BLOCK_SLAB, map, full, head * C + s * SLAB_COLUMNS, row, b);
}

/* One thread. Keys of a block are loaded before the values of the block before, as they are used. */
template <int C> struct forward_producer {
    typedef forward_layout<C> L;
    const xp_attention_forward_hopper &p;
    const forward_maps &maps;
    uint32_t base;
    ring_place<N_QUERY_BUFFERS> q;
    ring_place<L::STAGES> k, v;
    int v_block, v_head, v_row; /* values still to be loaded; v_block < 0: none */

    __device__ __forceinline__ int take() {
        return (int)atomicAdd(p.counter, 1u);
    }

    /* The tile of an item, and in place of its first block where its document starts. */
    __device__ __forceinline__ xp_attention_query_tile tile_of(int item) const {
        xp_attention_query_tile t = {};
        if (item < p.n_items)
            xp_attention_query_tile_of(&p, item, &t);
        if (item < p.n_items && p.a.doc_start != nullptr)
            t.low = p.a.doc_start[t.b * p.a.seq_len + t.m * BLOCK];
        return t;
    }

    /* The next buffer's tile becomes known with its queries. */
    __device__ __forceinline__ void put_tile(const xp_attention_query_tile &t) {
        const uint32_t at = base + L::ITEMS_AT + q.at * TILE_WORDS * 4;
        mbarrier_wait(L::barrier(base, L::Q_EMPTY + q.at), q.parity ^ 1);
        store_shared(at, (uint32_t)t.m);
        store_shared(at + 4, (uint32_t)t.h);
        store_shared(at + 8, (uint32_t)t.b);
        store_shared(at + 12, (uint32_t)t.low);
    }

    __device__ __forceinline__ void load_values() {
        if (v_block < 0)
            return;
        const uint32_t full = L::barrier(base, L::V_FULL + v.at);
        mbarrier_wait(L::barrier(base, L::V_EMPTY + v.at), v.parity ^ 1);
        load_tile<C>(base + L::V_AT + v.at * L::BLOCK_BYTES, &maps.v, full, v_head, v_block * BLOCK,
                     v_row);
        v.next();
    }

    __device__ __forceinline__ void load(xp_attention_query_tile t) {
        t.low = xp_attention_first_block(t.low, t.m);
        put_tile(t);
        load_tile<C>(base + L::Q_AT + q.at * L::BLOCK_BYTES, &maps.q,
                     L::barrier(base, L::Q_FULL + q.at), t.h, t.m * BLOCK, t.b);
        q.next();
        const int head = t.h / (p.a.n_heads / p.a.n_kv_heads);
#pragma unroll 1
        for (int n = t.m; n >= t.low; n--) {
            const uint32_t full = L::barrier(base, L::K_FULL + k.at);
            mbarrier_wait(L::barrier(base, L::K_EMPTY + k.at), k.parity ^ 1);
            load_tile<C>(base + L::K_AT + k.at * L::BLOCK_BYTES, &maps.k, full, head, n * BLOCK,
                         t.b);
            k.next();
            load_values();
            v_block = n;
            v_head = head;
            v_row = t.b;
        }
    }

    /*
     * A CTA takes items from the counter, so that one that starts late owes nothing; two ahead, so
     * that the number and the start of the tile's document arrive while the tile before is loaded.
     * Each gets two numbers past the last item, and the CTA with the last number of all sets the
     * counter back for the stream's next launch.
     */
    __device__ __forceinline__ void run() {
        int item = take(), next = take();
        xp_attention_query_tile t = tile_of(item);
        while (item < p.n_items) {
            const int after = take();
            const xp_attention_query_tile following = tile_of(next);
            load(t);
            t = following;
            item = next;
            next = after;
        }
        load_values();
        t.m = -1; /* the end */
        put_tile(t);
        mbarrier_arrive(L::barrier(base, L::Q_FULL + q.at));
        if (next == p.n_items + 2 * (int)gridDim.x - 1)
            *p.counter = 0;
    }
};

#endif
#endif
