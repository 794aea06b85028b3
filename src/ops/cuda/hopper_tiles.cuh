/**
 * Hopper grouped GEMM: sizes, the tile scheduler, the pipeline of stages in shared memory. See
 * grouped_hopper.cu.
 */
#ifndef XP_OPS_CUDA_HOPPER_TILES_CUH
#define XP_OPS_CUDA_HOPPER_TILES_CUH

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/tile_groups.cuh"

enum {
    TILE_M = 128,
    TILE_N = 256,
    TILE_K = 64,
    N_STAGES = 4,
    WARPGROUP = 128,
    PRODUCER_THREADS =
        WARPGROUP, /* one warpgroup: two would leave the consumers too few registers */
    N_THREADS = PRODUCER_THREADS + 2 * WARPGROUP,
    LINES = PRODUCER_THREADS / 8, /* rows that the producer copies at a time: 8 threads a row */
    A_LINES = TILE_M / LINES,     /* rows of an a tile of which a thread copies 16 bytes */
    K_LINES = TILE_K / LINES,
    LIST_K_TILES = 2, /* k tiles whose row numbers (16 a warp) fill a register a lane */
    LIST_PAIR = 2,    /* such registers in use, and as many prefetched */
    A_BYTES = TILE_M * TILE_K * 2,
    B_BYTES = TILE_N * TILE_K * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    CHUNK_BYTES = 8192, /* of results on their way from registers to a TMA store: two a warpgroup */
    CHUNKS_AT = N_STAGES * STAGE_BYTES,
    BARRIERS_AT = CHUNKS_AT + 2 * 2 * CHUNK_BYTES,
    N_TILE_SLOTS = 4, /* of the ring through which a cluster hands on the tiles it takes */
    TILE_BARRIERS_AT = BARRIERS_AT + 2 * N_STAGES * 8,
    TILES_AT = TILE_BARRIERS_AT + 2 * N_TILE_SLOTS * 8,
    OFFSETS_AT = TILES_AT + N_TILE_SLOTS * 4,
    ORDER_AT = OFFSETS_AT + (XP_HOPPER_MAX_EXPERTS + 1) * 4,
    SORTED_EXPERTS = 256, /* wgrad takes at most so many by size, more as they come */
    RANGED_EXPERTS = 240, /* whose row ranges fit behind the offsets (forward, dgrad) */
    SHARED_BYTES = OFFSETS_AT + (3 * RANGED_EXPERTS + 1) * 4,
    PRODUCER_REGISTERS = 88,
    CONSUMER_REGISTERS = 208,
    CLUSTER_CTAS = 2,
    /* 2-CTA clusters from this many rows an expert (max_rows / experts) on: where an expert ends,
     * half of a cluster's tile can be empty. */
    CLUSTER_MIN_ROWS = 512
};

static_assert(SHARED_BYTES <= 227 * 1024, "what a block may use");
static_assert(ORDER_AT + SORTED_EXPERTS <= SHARED_BYTES, "the offsets and the order fit");
static_assert(LIST_K_TILES * K_LINES * LINES / 4 == 32, "a list fills a warp");

/* setmaxnreg redistributes the registers that the block was launched with: 64 K over its threads,
 * rounded down to a multiple of 8 per thread. Asking for more than that blocks forever. */
static_assert(PRODUCER_THREADS * PRODUCER_REGISTERS + 2 * WARPGROUP * CONSUMER_REGISTERS <=
                  65536 / N_THREADS / 8 * 8 * N_THREADS,
              "the warpgroups' registers fit what the block has");

enum gemm_kind { FORWARD, DGRAD, WGRAD };
enum epilogue { PLAIN, SILU }; /* SILU: with the experts' activation, see hopper_silu.cuh */

/* Persistent tile scheduler over the list of all experts' tiles, each N_CTAS * TILE_M x TILE_N;
 * within an expert, column tiles run fastest. A cluster takes tile numbers in ascending order from a
 * counter in device memory (take_tile). The CTAs of a cluster differ in m0 alone.
 *
 * A tile of wgrad takes as long as its expert has rows, so the list begins with the expert that has
 * most (longest processing time first, Graham 1969): what the last clusters still do is short. */
struct tile_scheduler {
    uint32_t index, start; /* of this tile; of the expert's first tile */
    int place;             /* of the expert in the list */
    int expert;
    int first_row, n_rows; /* of the expert, or of the segment of its rows that the tile is in */
    int m0, n0;
    int n_k_tiles;
    bool has_rows; /* this CTA's part of the tile has rows of c; else the CTA only loads b */
};

struct tma_maps {
    CUtensorMap a, b;     /* a: forward and dgrad without a gather list */
    CUtensorMap c;        /* of boxes that hold a chunk of results (bf16), or half of one (fp32) */
    CUtensorMap gate, up; /* with an activation: each half of [rows, 2F], F columns */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ uint32_t n_parts(uint32_t n, uint32_t size) {
    return (n + size - 1) / size;
}

/* All threads, once offsets are there: order[i] is the expert with the (i + 1)-th most rows; of equal
 * ones the first comes first. */
static __device__ __forceinline__ void sort_experts(const int32_t *offsets, int n_experts,
                                                    uint8_t *order) {
    for (int e = (int)threadIdx.x; e < n_experts; e += N_THREADS) {
        const int n_rows = offsets[e + 1] - offsets[e];
        int place = 0;
        for (int other = 0; other < n_experts; other++) {
            const int others = offsets[other + 1] - offsets[other];
            place += others > n_rows || (others == n_rows && other < e);
        }
        order[place] = (uint8_t)e;
    }
}

template <gemm_kind P>
static __device__ __forceinline__ int expert_at(const xp_tile_args &p, const int32_t *offsets,
                                                int place) {
    const uint8_t *order = (const uint8_t *)(offsets + XP_HOPPER_MAX_EXPERTS + 1);
    return P == WGRAD && p.n_experts <= SORTED_EXPERTS ? order[place] : place;
}

/* Cut an expert's rows to those that the call computes. The ranges lie behind the offsets: a load from
 * global memory would wait behind all copies of the producer that are on their way. */
static __device__ __forceinline__ void cut_rows(const xp_tile_args &p, const int32_t *offsets,
                                                int expert, xp_segment &rows, xp_segment &more) {
    if (p.n_experts <= RANGED_EXPERTS) {
        const int32_t *range = offsets + p.n_experts + 1 + 2 * expert;
        xp_cut_rows(p, range[0], range[1], rows, more);
    } else {
        xp_cut_rows(p, p.row_range[2 * expert], p.row_range[2 * expert + 1], rows, more);
    }
}

template <gemm_kind P, int N_CTAS>
static __device__ __forceinline__ bool find_tile(tile_scheduler &tile, const xp_tile_args &p,
                                                 const int32_t *offsets) {
    constexpr int HEIGHT = N_CTAS * TILE_M;
    const uint32_t columns = n_parts((uint32_t)p.n, TILE_N);
    for (; tile.place < p.n_experts; tile.place++) {
        tile.expert = expert_at<P>(p, offsets, tile.place);
        xp_segment rows = {offsets[tile.expert], offsets[tile.expert + 1] - offsets[tile.expert]},
                   more = {0, 0};
        if (P != WGRAD && p.row_range != nullptr)
            cut_rows(p, offsets, tile.expert, rows, more);
        const uint32_t m = P == WGRAD ? (uint32_t)p.m : (uint32_t)rows.n_rows;
        /* adding nothing: c is neither read nor written */
        const bool adds_nothing = P == WGRAD && p.acc && rows.n_rows == 0;
        const uint32_t n_first = adds_nothing ? 0 : n_parts(m, HEIGHT) * columns,
                       n_tiles =
                           n_first +
                           (P == WGRAD ? 0 : n_parts((uint32_t)more.n_rows, HEIGHT) * columns);
        if (tile.index < tile.start + n_tiles) {
            uint32_t own = tile.index - tile.start;
            if (P != WGRAD && own >= n_first) {
                own -= n_first;
                rows = more;
            }
            tile.first_row = rows.first;
            tile.n_rows = rows.n_rows;
            tile.m0 = (int)(own / columns) * HEIGHT + (N_CTAS > 1 ? cta_rank() * TILE_M : 0);
            tile.n0 = (int)(own % columns) * TILE_N;
            tile.has_rows = tile.m0 < (P == WGRAD ? (int)p.m : rows.n_rows);
            /* An expert without rows has one k tile, of zeros; k of forward and dgrad is not 0. */
            tile.n_k_tiles = P == WGRAD ? max((int)n_parts((uint32_t)rows.n_rows, TILE_K), 1)
                                        : (int)n_parts((uint32_t)p.k, TILE_K);
            return true;
        }
        tile.start += n_tiles;
    }
    return false;
}

/*
 * Ring of tile numbers in each CTA's shared memory. The scheduler thread, thread 0 of the cluster's
 * first CTA, stores a tile's number to the same slot of each CTA when it starts to produce the tile
 * before (publish_tile), and asks the counter for the one after, so that neither is waited for. Every
 * warp of the cluster reads every number (take_tile).
 *
 *   full()   clusters: one arrival, by thread 0 of this CTA, at the start and as soon as the slot's
 *            number before has been read; and the bytes of the number. Single CTAs, which are not
 *            launched as clusters (st.async is illegal there): the scheduler thread arrives
 *   empty()  in the first CTA alone: one arrival of each warp of the cluster once it has read the slot
 */
struct tile_ring {
    uint32_t base, position; /* of the next number, counted from the start */
    __device__ __forceinline__ uint32_t parity() const {
        return position / N_TILE_SLOTS % 2;
    }
    __device__ __forceinline__ uint32_t number() const {
        return base + TILES_AT + position % N_TILE_SLOTS * 4;
    }
    __device__ __forceinline__ uint32_t full() const {
        return base + TILE_BARRIERS_AT + position % N_TILE_SLOTS * 8;
    }
    __device__ __forceinline__ uint32_t empty() const {
        return full() + N_TILE_SLOTS * 8;
    }
};

/* Before the CTAs synchronise; by thread 0 of each. */
template <int N_CTAS> static __device__ __forceinline__ void init_tile_ring(uint32_t base) {
    for (tile_ring ring = {base, 0}; ring.position < N_TILE_SLOTS; ring.position++) {
        mbarrier_init(ring.full(), 1);
        mbarrier_init(ring.empty(), N_CTAS * (N_THREADS / 32));
        if (N_CTAS > 1)
            mbarrier_expect_tx(ring.full(), 4);
    }
}

/* The next tile number of this cluster: from the counter, or `in_order` without one. */
static __device__ __forceinline__ uint32_t claim_tile(const xp_tile_args &p, uint32_t in_order) {
    return p.counter != nullptr ? atomicAdd(p.counter, 1u) : in_order;
}

/* Scheduler thread: hand `number` to all warps of the cluster as the next tile. */
template <int N_CTAS>
static __device__ __forceinline__ void publish_tile(const tile_ring &ring, uint32_t number) {
    mbarrier_wait(ring.empty(), ring.parity() ^ 1);
    if (N_CTAS == 1) {
        store_shared(ring.number(), number);
        mbarrier_arrive(ring.full());
    } else {
#pragma unroll
        for (int i = 0; i < N_CTAS; i++)
            st_async(cta_shared_address(ring.number(), i), number,
                     cta_shared_address(ring.full(), i));
    }
}

/* Every warp, all lanes: the next tile number. Lane 0 alone reads the slot and then gives it back. */
template <int N_CTAS> static __device__ __forceinline__ uint32_t take_tile(tile_ring &ring) {
    if (N_CTAS > 1)
        mbarrier_wait_cluster(ring.full(), ring.parity());
    else
        mbarrier_wait(ring.full(), ring.parity());
    const bool elected = threadIdx.x % 32 == 0;
    const uint32_t number = __shfl_sync(0xffffffffu, elected ? load_shared(ring.number()) : 0, 0);
    if (N_CTAS > 1 && threadIdx.x == 0)
        mbarrier_expect_tx(ring.full(), 4); /* of the slot's next number */
    if (elected) {
        if (N_CTAS > 1)
            mbarrier_arrive_remote(cta_shared_address(ring.empty(), 0));
        else
            mbarrier_arrive(ring.empty());
    }
    ring.position++;
    return number;
}

/* Scheduler thread, at the end, with its last number. Every cluster has got two past the n_tiles by
 * then; the cluster with the last one of all sets the counter back for the stream's next launch. */
template <int N_CTAS>
static __device__ __forceinline__ void reset_counter(const xp_tile_args &p, uint32_t last,
                                                     uint32_t n_tiles) {
    if (p.counter != nullptr && last == n_tiles + 2 * (gridDim.x / N_CTAS) - 1)
        *p.counter = 0;
}

/* Position in the circular buffer of stages. Producer and consumers advance through the same k
 * tiles in the same order, over all tiles. full(): TMA bytes and producer arrivals. empty():
 * consumer arrivals. */
struct pipeline_state {
    uint32_t base;
    int stage;
    uint32_t parity;
    __device__ __forceinline__ void next() {
        if (++stage == N_STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ uint32_t a() const {
        return base + (uint32_t)stage * STAGE_BYTES;
    }
    __device__ __forceinline__ uint32_t b() const {
        return a() + A_BYTES;
    }
    __device__ __forceinline__ uint32_t full() const {
        return base + BARRIERS_AT + (uint32_t)stage * 8;
    }
    __device__ __forceinline__ uint32_t empty() const {
        return full() + N_STAGES * 8;
    }
};

/* Signal a stage empty to every CTA that writes to it. */
template <int N_CTAS> static __device__ __forceinline__ void release_stage(uint32_t empty) {
    mbarrier_arrive(empty);
    if (N_CTAS > 1)
        mbarrier_arrive_remote(cta_shared_address(empty, cta_rank() ^ 1));
}

#endif

#endif
