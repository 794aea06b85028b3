/**
 * Attention backward for sm_90a: the order of the work, shared memory, and the warps that copy.
 * See attention_hopper.cu.
 */
#ifndef XP_OPS_CUDA_ATTENTION_HOPPER_TILES_CUH
#define XP_OPS_CUDA_ATTENTION_HOPPER_TILES_CUH

#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/attention_wgmma.cuh"

enum {
    TILE = XP_ATTENTION_TILE,
    BLOCK = XP_ATTENTION_BLOCK,
    GROUP = 128, /* threads of a warpgroup */
    N_CONSUMERS = 2,
    CONSUMER_WARPS = N_CONSUMERS * GROUP / 32,
    N_THREADS = GROUP + N_CONSUMERS * GROUP,
    PRODUCER_REGISTERS = 40,
    CONSUMER_REGISTERS = 232,
    N_SLOTS = 2,  /* buffers of dS, of the item's number */
    N_ADDERS = 3, /* threads that add dq: one may wait for its turn or its copy while others work */
    SLAB_COLUMNS = 64,
    TILE_SLAB = TILE * XP_HOPPER_ROW_BYTES, /* 64 queries x 64 columns */
    BLOCK_SLAB = BLOCK * XP_HOPPER_ROW_BYTES,
    FACTOR_BYTES = XP_ATTENTION_FACTORS * TILE * 4,
    START_BYTES = TILE * 4,
    FACTS_BYTES = FACTOR_BYTES + START_BYTES
};

static_assert(GROUP * PRODUCER_REGISTERS + N_CONSUMERS * GROUP * CONSUMER_REGISTERS <=
                  65536 / N_THREADS / 8 * 8 * N_THREADS,
              "the warpgroups' registers fit what the block has");

struct attention_maps {
    CUtensorMap q, dout, k, v;
};

/* Shared memory of a block; head dimension C, S stages of queries. */
template <int C, int S> struct attention_layout {
    static constexpr uint32_t TILE_BYTES = TILE * C * 2, BLOCK_BYTES = BLOCK * C * 2;
    static constexpr uint32_t DS_BYTES = BLOCK_SLAB, DQ_BYTES = TILE * C / 2 * 4;
    static constexpr uint32_t K_AT = 0, V_AT = K_AT + BLOCK_BYTES, Q_AT = V_AT + BLOCK_BYTES,
                              DOUT_AT = Q_AT + S * TILE_BYTES, DS_AT = DOUT_AT + S * TILE_BYTES,
                              DQ_AT = DS_AT + N_SLOTS * DS_BYTES,
                              FACTS_AT = DQ_AT + N_CONSUMERS * DQ_BYTES,
                              BARRIERS_AT = FACTS_AT + S * FACTS_BYTES;
    enum { /* barriers, 8 bytes each */
           Q_FULL = 0,
           Q_EMPTY = Q_FULL + S,
           DOUT_FULL = Q_EMPTY + S,
           DOUT_EMPTY = DOUT_FULL + S,
           K_FULL = DOUT_EMPTY + S,
           V_FULL,
           KV_EMPTY,
           DS_FULL,
           DS_EMPTY = DS_FULL + N_SLOTS,
           DQ_FULL = DS_EMPTY + N_SLOTS,
           DQ_EMPTY = DQ_FULL + N_CONSUMERS * N_ADDERS, /* filled tile by tile in turn */
           ITEM_FULL = DQ_EMPTY + N_CONSUMERS,
           ITEM_EMPTY = ITEM_FULL + N_SLOTS,
           N_BARRIERS = ITEM_EMPTY + N_SLOTS
    };
    static constexpr uint32_t ITEMS_AT = BARRIERS_AT + N_BARRIERS * 8,
                              N_BYTES = ITEMS_AT + N_SLOTS * 4;

    static __device__ __forceinline__ uint32_t barrier(uint32_t base, int which) {
        return base + BARRIERS_AT + (uint32_t)which * 8;
    }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A buffer of a ring of N, and the parity of the phase in which it fills. */
template <int N> struct ring_place {
    int at;
    uint32_t parity;
    __device__ __forceinline__ void next() {
        if (++at == N) {
            at = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ ring_place before() const {
        return at == 0 ? ring_place{N - 1, parity ^ 1} : ring_place{at - 1, parity};
    }
};

/* How the roles of a block get their items: the producer deals them out. */
template <class L, bool WARP> struct item_reader {
    ring_place<N_SLOTS> slot;
    __device__ __forceinline__ int read(const xp_attention_hopper &p, uint32_t base,
                                        const int32_t *items, bool arrive) {
        mbarrier_wait(L::barrier(base, L::ITEM_FULL + slot.at), slot.parity);
        int item = *(const volatile int32_t *)&items[slot.at];
        if (WARP)
            item = __shfl_sync(0xffffffffu, item, 0); /* which tells the compiler: uniform */
        if (arrive)
            mbarrier_arrive(L::barrier(base, L::ITEM_EMPTY + slot.at));
        slot.next();
        return item < p.n_items ? item : -1;
    }
};

template <int C, class L>
static __device__ __forceinline__ void load_block(const attention_maps &maps,
                                                  const xp_attention_item &t, uint32_t base) {
    const uint32_t k_full = L::barrier(base, L::K_FULL), v_full = L::barrier(base, L::V_FULL);
    mbarrier_expect_tx(k_full, L::BLOCK_BYTES);
#pragma unroll
    for (int s = 0; s < C / SLAB_COLUMNS; s++)
        tma_load<1>(base + L::K_AT + s * BLOCK_SLAB, &maps.k, k_full,
                    t.kv_head * C + s * SLAB_COLUMNS, t.n * BLOCK, t.b);
    mbarrier_expect_tx(v_full, L::BLOCK_BYTES);
#pragma unroll
    for (int s = 0; s < C / SLAB_COLUMNS; s++)
        tma_load<1>(base + L::V_AT + s * BLOCK_SLAB, &maps.v, v_full,
                    t.kv_head * C + s * SLAB_COLUMNS, t.n * BLOCK, t.b);
}

template <int C, int S, class L>
static __device__ __forceinline__ void
load_queries(const xp_attention_hopper &p, const attention_maps &maps, const xp_attention_item &t,
             uint32_t base, const ring_place<S> &stage) {
    const int column = (t.first_head + t.h) * C;
    const uint32_t q_full = L::barrier(base, L::Q_FULL + stage.at),
                   dout_full = L::barrier(base, L::DOUT_FULL + stage.at),
                   facts = base + L::FACTS_AT + stage.at * FACTS_BYTES;
    mbarrier_wait(L::barrier(base, L::Q_EMPTY + stage.at), stage.parity ^ 1);
    mbarrier_expect_tx(q_full,
                       L::TILE_BYTES + FACTOR_BYTES + (p.starts == nullptr ? 0 : START_BYTES));
#pragma unroll
    for (int s = 0; s < C / SLAB_COLUMNS; s++)
        tma_load<1>(base + L::Q_AT + stage.at * L::TILE_BYTES + s * TILE_SLAB, &maps.q, q_full,
                    column + s * SLAB_COLUMNS, t.m * TILE, t.b);
    copy_bulk(facts,
              p.factors + (int64_t)xp_attention_item_index(&p, &t) * (XP_ATTENTION_FACTORS * TILE),
              FACTOR_BYTES, q_full);
    if (p.starts != nullptr)
        copy_bulk(facts + FACTOR_BYTES, p.starts + (int64_t)(t.b * p.n_tiles + t.m) * TILE,
                  START_BYTES, q_full);
    mbarrier_wait(L::barrier(base, L::DOUT_EMPTY + stage.at), stage.parity ^ 1);
    mbarrier_expect_tx(dout_full, L::TILE_BYTES);
#pragma unroll
    for (int s = 0; s < C / SLAB_COLUMNS; s++)
        tma_load<1>(base + L::DOUT_AT + stage.at * L::TILE_BYTES + s * TILE_SLAB, &maps.dout,
                    dout_full, column + s * SLAB_COLUMNS, t.m * TILE, t.b);
}

/* One thread: deals out items and loads what they need. */
template <int C, int S>
static __device__ __forceinline__ void
produce(const xp_attention_hopper &p, const attention_maps &maps, uint32_t base, int32_t *items) {
    typedef attention_layout<C, S> L;
    ring_place<N_SLOTS> slot = {};
    ring_place<S> stage = {};
    ring_place<1> block = {};
    for (;;) {
        mbarrier_wait(L::barrier(base, L::ITEM_EMPTY + slot.at), slot.parity ^ 1);
        const int item = atomicAdd(p.n_taken, 1);
        items[slot.at] = item;
        mbarrier_arrive(L::barrier(base, L::ITEM_FULL + slot.at));
        slot.next();
        if (item >= p.n_items)
            return;
        xp_attention_item t = xp_attention_item_of(&p, item);
#pragma unroll 1
        for (int i = 0; i < t.n_tiles; i++, xp_attention_item_next(&t)) {
            load_queries<C, S, L>(p, maps, t, base, stage);
            stage.next();
            if (i == 0) { /* the first queries load while the last item still reads its keys */
                mbarrier_wait(L::barrier(base, L::KV_EMPTY), block.parity ^ 1);
                load_block<C, L>(maps, t, base);
                block.next();
            }
        }
    }
}

/* Adds half a tile's dq to its sums once the key blocks before have, and tells the next. */
template <class L>
static __device__ __forceinline__ void add_half(const xp_attention_hopper &p, uint32_t base,
                                                const xp_attention_item &t, int half, int full,
                                                uint32_t parity) {
    const int at = xp_attention_item_index(&p, &t) * XP_ATTENTION_HALVES + half,
              before = xp_attention_item_before(&p, &t);
    const uint32_t from = base + L::DQ_AT + half * L::DQ_BYTES;
    float *sums = p.dq_sums + (int64_t)at * (int)(L::DQ_BYTES / 4);
    int32_t *turn = p.turns + at;
    if (before > 0) {
        while (load_acquire(turn) != before) {
        }
        async_global_fence();
    }
    mbarrier_wait(L::barrier(base, L::DQ_FULL + half * N_ADDERS + full), parity);
    if (before > 0)
        add_bulk(sums, from, L::DQ_BYTES);
    else
        store_bulk(sums, from, L::DQ_BYTES);
    bulk_commit();
    bulk_wait_read();
    mbarrier_arrive(L::barrier(base, L::DQ_EMPTY + half));
    bulk_wait();
    store_release(turn, before + 1);
}

/*
 * N_ADDERS threads share the halves of the tiles: thread i takes halves i, i + N_ADDERS, ... Key
 * blocks add in the order in which they are dealt out: `turns` counts those that have. The first
 * stores, so that nothing need be zero before. An item waits only for items dealt out before it,
 * so the oldest unfinished one never waits.
 */
template <int C, int S>
static __device__ __forceinline__ void add_dq(const xp_attention_hopper &p, uint32_t base,
                                              const int32_t *items, int adder) {
    typedef attention_layout<C, S> L;
    item_reader<L, false> reader = {};
    ring_place<N_ADDERS> tile = {};
    int turn = 0; /* the adder of the tile's first half */
    for (int item; (item = reader.read(p, base, items, true)) >= 0;) {
        xp_attention_item t = xp_attention_item_of(&p, item);
#pragma unroll 1
        for (int i = 0; i < t.n_tiles; i++, xp_attention_item_next(&t)) {
            const int half = (adder - turn + N_ADDERS) % N_ADDERS;
            if (half < N_CONSUMERS)
                add_half<L>(p, base, t, half, tile.at, tile.parity);
            tile.next();
            turn = (turn + N_CONSUMERS) % N_ADDERS;
        }
    }
}

#endif
#endif
