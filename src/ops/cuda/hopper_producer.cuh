/** Producer warpgroup of the Hopper grouped GEMM: how a stage is filled. See grouped_hopper.cu. */
#ifndef XP_OPS_CUDA_HOPPER_PRODUCER_CUH
#define XP_OPS_CUDA_HOPPER_PRODUCER_CUH

#include "ops/cuda/hopper_tiles.cuh"
#include "ops/cuda/vector.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* First row of w13[e] that half `half` of a b tile has, where the tile is 128 rows of gate and the same
 * of up. A box may hold rows of up in place of gate's past F: no result. */
static __device__ __forceinline__ int gate_up_row(const xp_tile_args &p, const tile_scheduler &tile,
                                                  int half) {
    return tile.n0 / 2 + half * (int)p.silu.width;
}

/* Load this CTA's 1 / N_CTAS of the stage's b tile; TMA multicasts it to every CTA of the cluster.
 * FORWARD: rows of w[e]; else slabs of 64 columns. */
template <gemm_kind P, int N_CTAS, epilogue E = PLAIN>
static __device__ __forceinline__ void load_b(const xp_tile_args &p, const tile_scheduler &tile,
                                              const CUtensorMap *map, const pipeline_state &at,
                                              int depth, int plane) {
    const int block = N_CTAS > 1 ? cta_rank() : 0;
    if (P == FORWARD && E == SILU) {
        for (int half = block; half < 2; half += N_CTAS)
            tma_load<N_CTAS>(at.b() + half * (B_BYTES / 2), map, at.full(), depth,
                             gate_up_row(p, tile, half), plane);
    } else if (P == FORWARD) {
        tma_load<N_CTAS>(at.b() + block * (B_BYTES / N_CTAS), map, at.full(), depth,
                         tile.n0 + block * (TILE_N / N_CTAS), plane);
    } else {
        constexpr int N_SLABS = TILE_N / 64 / N_CTAS;
#pragma unroll
        for (int i = 0; i < N_SLABS; i++) {
            const int slab = block * N_SLABS + i;
            tma_load<N_CTAS>(at.b() + slab * XP_HOPPER_SLAB_BYTES, map, at.full(),
                             tile.n0 + 64 * slab, depth, plane);
        }
    }
}

/* Producer loop of forward and dgrad for one tile, rows in order: one thread loads a and b by TMA. Boxes
 * may hold rows of the next expert: no result. */
template <gemm_kind P, int N_CTAS, epilogue E>
static __device__ __forceinline__ void produce_in_order(const xp_tile_args &p, const tma_maps &maps,
                                                        const tile_scheduler &tile,
                                                        pipeline_state &at) {
    const int row = tile.first_row + tile.m0;
    for (int s = 0; s < tile.n_k_tiles; s++) {
        const int k0 = s * TILE_K;
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect_tx(at.full(), B_BYTES + (tile.has_rows ? A_BYTES : 0));
            load_b<P, N_CTAS, E>(p, tile, &maps.b, at, k0, tile.expert);
            if (tile.has_rows)
                tma_load<1>(at.a(), &maps.a, at.full(), k0, row, 0);
        }
        mbarrier_arrive(at.full());
        at.next();
    }
}

/* The same for gathered rows, by cp.async; b by TMA. Each thread copies 16 bytes of each of A_LINES rows,
 * whose addresses stay in registers for the whole tile. Rows past the expert's last copy that one: no
 * result. */
template <gemm_kind P, int N_CTAS, epilogue E>
static __device__ __forceinline__ void produce_gathered(const xp_tile_args &p, const tma_maps &maps,
                                                        const tile_scheduler &tile,
                                                        pipeline_state &at) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
    const uint32_t own = xp_hopper_chunk((uint32_t)line, (uint32_t)chunk);
    const bf16 *from[A_LINES];
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
        const int row = min(tile.m0 + line + LINES * i, tile.n_rows - 1);
        from[i] =
            (const bf16 *)p.a + (int64_t)p.gather_a[tile.first_row + row] * (int)p.lda + 8 * chunk;
    }
    for (int s = 0; s < tile.n_k_tiles; s++) {
        const int k0 = s * TILE_K;
        const bool inside = k0 + 8 * chunk < (int)p.k;
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect_tx(at.full(), B_BYTES);
            load_b<P, N_CTAS, E>(p, tile, &maps.b, at, k0, tile.expert);
        }
        if (tile.has_rows) {
#pragma unroll
            for (int i = 0; i < A_LINES; i++) {
                cp_async_16(at.a() + own + i * LINES * XP_HOPPER_ROW_BYTES, from[i], inside);
                from[i] += TILE_K;
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
                                                   const int (&rows)[K_LINES], int column,
                                                   int n_columns) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
#pragma unroll
    for (int i = 0; i < K_LINES; i++) {
        const bf16 *row = data + (int64_t)rows[i] * ld;
#pragma unroll
        for (int s = 0; s < N_SLABS; s++) {
            const int at = column + 64 * s + 8 * chunk;
            const bool valid = rows[i] >= 0 && at < n_columns;
            cp_async_16(to + s * XP_HOPPER_SLAB_BYTES + xp_hopper_chunk(line + LINES * i, chunk),
                        valid ? row + at : data, valid);
        }
    }
}

/* The same for rows that all exist: one address a row, 32-bit distances. */
template <int N_SLABS>
static __device__ __forceinline__ void copy_whole_rows(uint32_t to, const bf16 *data, int ld,
                                                       const int (&rows)[K_LINES], int column,
                                                       int n_columns) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8, at = column + 8 * chunk;
    const uint32_t own = to + xp_hopper_chunk((uint32_t)line, (uint32_t)chunk);
#pragma unroll
    for (int i = 0; i < K_LINES; i++) {
        const bf16 *row = data + (int64_t)rows[i] * ld + at;
#pragma unroll
        for (int s = 0; s < N_SLABS; s++)
            cp_async_16(own + i * LINES * XP_HOPPER_ROW_BYTES + s * XP_HOPPER_SLAB_BYTES,
                        row + 64 * s, at + 64 * s < n_columns);
    }
}

/* Row numbers that a warp needs for k tiles 2 i and 2 i + 1, one per lane; -1 past the expert's rows.
 * They are prefetched, because the consumers take no longer for a k tile than such a load. */
static __device__ __forceinline__ int load_list(const int32_t *gather, const tile_scheduler &tile,
                                                int i) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int row =
        (LIST_K_TILES * i + lane / 16) * TILE_K + lane % 16 / 4 * LINES + 4 * warp + lane % 4;
    if (row >= tile.n_rows)
        return -1;
    return gather != nullptr ? gather[tile.first_row + row] : tile.first_row + row;
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
        const int row = k_tile * TILE_K + (int)threadIdx.x / 8 + LINES * i;
        rows[i] = row >= tile.n_rows  ? -1
                  : gather != nullptr ? gather[tile.first_row + row]
                                      : tile.first_row + row;
    }
}

/* One thread: the b rows of a k tile by TMA. */
template <int N_CTAS>
static __device__ __forceinline__ void load_k_rows_of_b(const xp_tile_args &p, const tma_maps &maps,
                                                        const tile_scheduler &tile, int k_tile,
                                                        const pipeline_state &at) {
    mbarrier_expect_tx(at.full(), B_BYTES);
    load_b<WGRAD, N_CTAS>(p, tile, &maps.b, at, tile.first_row + k_tile * TILE_K, 0);
}

/* One k tile whose b rows are contiguous: b by TMA, a by cp.async. */
template <int N_CTAS>
static __device__ __forceinline__ void
produce_by_tma(const xp_tile_args &p, const tma_maps &maps, const tile_scheduler &tile, int k_tile,
               const int (&rows)[K_LINES], pipeline_state &at) {
    mbarrier_wait(at.empty(), at.parity ^ 1);
    if (threadIdx.x == 0)
        load_k_rows_of_b<N_CTAS>(p, maps, tile, k_tile, at);
    if (tile.has_rows)
        copy_whole_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, (int)p.lda, rows, tile.m0,
                                     (int)p.m);
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
        copy_k_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows_a, tile.m0, (int)p.m);
        copy_k_rows<TILE_N / 64>(at.b(), (const bf16 *)p.b, p.ldb, rows_b, tile.n0, (int)p.n);
    }
    cp_async_arrive(at.full());
    at.next();
}

/* Producer loop of wgrad for one tile. Row numbers are loaded LIST_PAIR lists at a time, when the pair before
 * begins to be used: a load takes as long as the row copies ahead of it, and the first read of a register waits
 * for all loads that are on their way, so none may have started shortly before. */
template <int N_CTAS>
static __device__ __forceinline__ void produce_wgrad(const xp_tile_args &p, const tma_maps &maps,
                                                     const tile_scheduler &tile,
                                                     pipeline_state &at) {
    constexpr int K_TILES = LIST_PAIR * LIST_K_TILES;
    const int n_whole_tiles = p.gather_b != nullptr ? 0 : tile.n_rows / TILE_K;
    int lists[LIST_PAIR], next[LIST_PAIR];
#pragma unroll
    for (int i = 0; i < LIST_PAIR; i++)
        lists[i] = load_list(p.gather_a, tile, i);
    for (int first = 0; first < n_whole_tiles; first += K_TILES) {
#pragma unroll
        for (int i = 0; i < LIST_PAIR; i++)
            next[i] = load_list(p.gather_a, tile, first / LIST_K_TILES + LIST_PAIR + i);
#pragma unroll
        for (int i = 0; i < K_TILES; i++) {
            int rows[K_LINES];
            if (first + i >= n_whole_tiles)
                break;
            read_row_numbers(lists[i / LIST_K_TILES], i % LIST_K_TILES, rows);
            produce_by_tma<N_CTAS>(p, maps, tile, first + i, rows, at);
        }
#pragma unroll
        for (int i = 0; i < LIST_PAIR; i++)
            lists[i] = next[i];
    }
    for (int k_tile = n_whole_tiles; k_tile < tile.n_k_tiles; k_tile++)
        produce_by_cp_async(p, tile, k_tile, at);
}

#endif

#endif
