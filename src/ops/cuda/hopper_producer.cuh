/**
 * Producer warpgroup of the Hopper grouped GEMM: the tile scheduler, the pipeline of stages in
 * shared memory, and how a stage is filled. See grouped_hopper.cu.
 */
#ifndef XP_OPS_CUDA_HOPPER_PRODUCER_CUH
#define XP_OPS_CUDA_HOPPER_PRODUCER_CUH

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/vector.cuh"

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
    LISTS = 3,        /* such registers: one in use, the others prefetched */
    A_BYTES = TILE_M * TILE_K * 2,
    B_BYTES = TILE_N * TILE_K * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    BARRIERS_AT = N_STAGES * STAGE_BYTES,
    OFFSETS_AT = BARRIERS_AT + 2 * N_STAGES * 8,
    SHARED_BYTES = OFFSETS_AT + (XP_HOPPER_MAX_EXPERTS + 1) * 4 + XP_HOPPER_ATOM_BYTES,
    PRODUCER_REGISTERS = 56,
    CONSUMER_REGISTERS = 224,
    CLUSTER_CTAS = 2,
    /* 2-CTA clusters from this many rows an expert (max_rows / experts) on: where an expert ends,
     * half of a cluster's tile can be empty. */
    CLUSTER_MIN_ROWS = 512
};

static_assert(LIST_K_TILES * K_LINES * LINES / 4 == 32, "a list fills a warp");

/* setmaxnreg redistributes the registers that the block was launched with: 64 K over its threads,
 * rounded down to a multiple of 8 per thread. Asking for more than that blocks forever. */
static_assert(PRODUCER_THREADS * PRODUCER_REGISTERS + 2 * WARPGROUP * CONSUMER_REGISTERS <=
                  65536 / N_THREADS / 8 * 8 * N_THREADS,
              "the warpgroups' registers fit what the block has");

enum gemm_kind { FORWARD, DGRAD, WGRAD };

/* Persistent tile scheduler. Cluster c of C takes tiles c, c + C, c + 2C, ... of the list of all
 * experts' tiles, each N_CTAS * TILE_M x TILE_N; within an expert, column tiles run fastest. The
 * CTAs of a cluster differ in m0 alone. */
struct tile_scheduler {
    int64_t index, start; /* of this tile; of the expert's first tile */
    int expert;
    int64_t first_row, n_rows;
    int64_t m0, n0;
    int n_k_tiles;
    bool has_rows; /* this CTA's part of the tile has rows of c; else the CTA only loads b */
};

struct tma_maps {
    CUtensorMap a, b; /* a: forward and dgrad without a gather list */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <gemm_kind P, int N_CTAS>
static __device__ __forceinline__ bool find_tile(tile_scheduler &tile, const xp_tile_args &p,
                                                 const int32_t *offsets) {
    constexpr int HEIGHT = N_CTAS * TILE_M;
    const int64_t columns = (p.n + TILE_N - 1) / TILE_N;
    for (; tile.expert < p.n_experts; tile.expert++) {
        const int64_t n_rows = offsets[tile.expert + 1] - offsets[tile.expert];
        const int64_t rows = P == WGRAD ? p.m : n_rows;
        const int64_t n_tiles = (rows + HEIGHT - 1) / HEIGHT * columns;
        if (tile.index < tile.start + n_tiles) {
            const int64_t own = tile.index - tile.start;
            tile.first_row = offsets[tile.expert];
            tile.n_rows = n_rows;
            tile.m0 = own / columns * HEIGHT + (N_CTAS > 1 ? cta_rank() * TILE_M : 0);
            tile.n0 = own % columns * TILE_N;
            tile.has_rows = tile.m0 < rows;
            tile.n_k_tiles = (int)(((P == WGRAD ? n_rows : p.k) + TILE_K - 1) / TILE_K);
            return true;
        }
        tile.start += n_tiles;
    }
    return false;
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

/* Load this CTA's 1 / N_CTAS of the stage's b tile; TMA multicasts it to every CTA of the cluster.
 * FORWARD: rows of w[e]; else slabs of 64 columns. */
template <gemm_kind P, int N_CTAS>
static __device__ __forceinline__ void load_b(const tile_scheduler &tile, const CUtensorMap *map,
                                              const pipeline_state &at, int depth, int plane) {
    const int block = N_CTAS > 1 ? cta_rank() : 0;
    if (P == FORWARD) {
        tma_load<N_CTAS>(at.b() + block * (B_BYTES / N_CTAS), map, at.full(), depth,
                         (int)tile.n0 + block * (TILE_N / N_CTAS), plane);
    } else {
        constexpr int N_SLABS = TILE_N / 64 / N_CTAS;
#pragma unroll
        for (int i = 0; i < N_SLABS; i++) {
            const int slab = block * N_SLABS + i;
            tma_load<N_CTAS>(at.b() + slab * XP_HOPPER_SLAB_BYTES, map, at.full(),
                             (int)tile.n0 + 64 * slab, depth, plane);
        }
    }
}

/* Producer loop of forward and dgrad for one tile: a by TMA, or gathered by cp.async; b by TMA. Each
 * thread gathers from A_LINES rows, whose numbers stay in registers for the whole tile. */
template <gemm_kind P, int N_CTAS>
static __device__ __forceinline__ void produce_rows(const xp_tile_args &p, const tma_maps &maps,
                                                    const tile_scheduler &tile,
                                                    pipeline_state &at) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
    const bool by_tma =
        p.gather_a == nullptr; /* boxes may hold rows of the next expert: no result */
    const bf16 *a = (const bf16 *)p.a;
    int rows[A_LINES];
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
        const int64_t row = tile.m0 + line + LINES * i;
        rows[i] = !by_tma && row < tile.n_rows ? p.gather_a[tile.first_row + row] : -1;
    }
    for (int s = 0; s < tile.n_k_tiles; s++) {
        const int64_t k0 = (int64_t)s * TILE_K, k = k0 + 8 * chunk;
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect_tx(at.full(), B_BYTES + (by_tma && tile.has_rows ? A_BYTES : 0));
            load_b<P, N_CTAS>(tile, &maps.b, at, (int)k0, tile.expert);
            if (by_tma && tile.has_rows)
                tma_load<1>(at.a(), &maps.a, at.full(), (int)k0, (int)(tile.first_row + tile.m0),
                            0);
        }
        if (!by_tma && tile.has_rows) {
#pragma unroll
            for (int i = 0; i < A_LINES; i++) {
                const bool valid = rows[i] >= 0 && k < p.k;
                cp_async_16(at.a() + xp_hopper_chunk(line + LINES * i, chunk),
                            valid ? a + (int64_t)rows[i] * p.lda + k : a, valid);
            }
        }
        cp_async_arrive(at.full());
        at.next();
    }
}

/* ---- wgrad: the expert's rows are k ---- */

/* Copy a k tile (64 rows) of one operand, columns from `column` on, as slabs of [64 rows][64]. A
 * thread copies 16 bytes of every 16th row; a row number below 0 means zeros. */
template <int N_SLABS>
static __device__ __forceinline__ void copy_k_rows(uint32_t to, const bf16 *data, int64_t ld,
                                                   const int (&rows)[K_LINES], int64_t column,
                                                   int64_t n_columns) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
#pragma unroll
    for (int i = 0; i < K_LINES; i++) {
        const bf16 *row = data + (int64_t)rows[i] * ld;
#pragma unroll
        for (int s = 0; s < N_SLABS; s++) {
            const int64_t at = column + 64 * s + 8 * chunk;
            const bool valid = rows[i] >= 0 && at < n_columns;
            cp_async_16(to + s * XP_HOPPER_SLAB_BYTES + xp_hopper_chunk(line + LINES * i, chunk),
                        valid ? row + at : data, valid);
        }
    }
}

/* Row numbers that a warp needs for k tiles 2 i and 2 i + 1, one per lane; -1 past the expert's rows.
 * They are prefetched, because the consumers take no longer for a k tile than such a load. */
static __device__ __forceinline__ int load_list(const int32_t *gather, const tile_scheduler &tile,
                                                int i) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t row = ((int64_t)LIST_K_TILES * i + lane / 16) * TILE_K + lane % 16 / 4 * LINES +
                        4 * warp + lane % 4;
    if (row >= tile.n_rows)
        return -1;
    return gather != nullptr ? gather[tile.first_row + row] : (int)(tile.first_row + row);
}

static __device__ __forceinline__ void read_row_numbers(int list, int half, int (&rows)[K_LINES]) {
    const int line_of_warp = (int)threadIdx.x % 32 / 8;
#pragma unroll
    for (int i = 0; i < K_LINES; i++)
        rows[i] = __shfl_sync(0xffffffffu, list, 16 * half + 4 * i + line_of_warp);
}

static __device__ __forceinline__ void
load_k_rows(const int32_t *gather, const tile_scheduler &tile, int k_tile, int (&rows)[K_LINES]) {
#pragma unroll
    for (int i = 0; i < K_LINES; i++) {
        const int64_t row = (int64_t)k_tile * TILE_K + (int)threadIdx.x / 8 + LINES * i;
        rows[i] = row >= tile.n_rows  ? -1
                  : gather != nullptr ? gather[tile.first_row + row]
                                      : (int)(tile.first_row + row);
    }
}

/* One k tile whose b rows are contiguous: b by TMA, a by cp.async. */
template <int N_CTAS>
static __device__ __forceinline__ void
produce_by_tma(const xp_tile_args &p, const tma_maps &maps, const tile_scheduler &tile, int k_tile,
               const int (&rows)[K_LINES], pipeline_state &at) {
    mbarrier_wait(at.empty(), at.parity ^ 1);
    if (threadIdx.x == 0) {
        mbarrier_expect_tx(at.full(), B_BYTES);
        load_b<WGRAD, N_CTAS>(tile, &maps.b, at, (int)tile.first_row + k_tile * TILE_K, 0);
    }
    if (tile.has_rows)
        copy_k_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows, tile.m0, p.m);
    cp_async_arrive(at.full());
    at.next();
}

/* One k tile with both operands by cp.async: the last, partial k tile of an expert (TMA would load
 * rows past its end, which may be NaN, and zeros in the other operand do not cancel NaN), and all k
 * tiles where both operands are gathered. */
static __device__ __forceinline__ void produce_by_cp_async(const xp_tile_args &p,
                                                           const tile_scheduler &tile, int k_tile,
                                                           pipeline_state &at) {
    int rows_a[K_LINES], rows_b[K_LINES];
    load_k_rows(p.gather_a, tile, k_tile, rows_a);
    load_k_rows(p.gather_b, tile, k_tile, rows_b);
    mbarrier_wait(at.empty(), at.parity ^ 1);
    if (threadIdx.x == 0)
        mbarrier_arrive(at.full());
    if (tile.has_rows) {
        copy_k_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows_a, tile.m0, p.m);
        copy_k_rows<TILE_N / 64>(at.b(), (const bf16 *)p.b, p.ldb, rows_b, tile.n0, p.n);
    }
    cp_async_arrive(at.full());
    at.next();
}

/* Producer loop of wgrad for one tile. */
template <int N_CTAS>
static __device__ __forceinline__ void produce_wgrad(const xp_tile_args &p, const tma_maps &maps,
                                                     const tile_scheduler &tile,
                                                     pipeline_state &at) {
    const int n_whole_tiles = p.gather_b != nullptr ? 0 : (int)(tile.n_rows / TILE_K);
    int lists[LISTS];
#pragma unroll
    for (int i = 0; i < LISTS; i++)
        lists[i] = load_list(p.gather_a, tile, i);
    for (int first = 0; first < n_whole_tiles; first += LISTS * LIST_K_TILES) {
#pragma unroll
        for (int i = 0; i < LISTS; i++) {
#pragma unroll
            for (int half = 0; half < LIST_K_TILES; half++) {
                const int k_tile = first + LIST_K_TILES * i + half;
                int rows[K_LINES];
                if (k_tile >= n_whole_tiles)
                    break;
                read_row_numbers(lists[i], half, rows);
                produce_by_tma<N_CTAS>(p, maps, tile, k_tile, rows, at);
            }
            lists[i] = load_list(p.gather_a, tile, first / LIST_K_TILES + LISTS + i);
        }
    }
    for (int k_tile = n_whole_tiles; k_tile < tile.n_k_tiles; k_tile++)
        produce_by_cp_async(p, tile, k_tile, at);
}

#endif

#endif
