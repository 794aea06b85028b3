/**
 * The copying half of the Hopper products: which tiles a block works on, the ring of slices in
 * shared memory, and how a slice is filled. See grouped_hopper.cu.
 */
#ifndef XP_OPS_CUDA_HOPPER_FILL_CUH
#define XP_OPS_CUDA_HOPPER_FILL_CUH

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/vector.cuh"

enum {
    TILE_M = 128,
    TILE_N = 256,
    DEPTH = 64,
    N_STAGES = 4,
    GROUP = 128,
    COPY_THREADS = GROUP, /* 512 threads would have too few registers each for 64 x 256 sums */
    N_THREADS = COPY_THREADS + 2 * GROUP,
    LINES = COPY_THREADS / 8, /* rows that all copying threads take at a time, 8 chunks each */
    A_LINES = TILE_M / LINES, /* rows of a slice that a thread copies a chunk of */
    DEPTH_LINES = DEPTH / LINES,
    LIST_SLICES = 2, /* slices whose row numbers of a warp, 16 each, fit a register a lane */
    LISTS = 3,       /* such registers: the one in use, the others on their way */
    A_BYTES = TILE_M * DEPTH * 2,
    B_BYTES = TILE_N * DEPTH * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    BARRIERS_AT = N_STAGES * STAGE_BYTES,
    OFFSETS_AT = BARRIERS_AT + 2 * N_STAGES * 8,
    SHARED_BYTES = OFFSETS_AT + (XP_HOPPER_MAX_EXPERTS + 1) * 4 + XP_HOPPER_ATOM_BYTES,
    COPY_REGISTERS = 56,
    MULTIPLY_REGISTERS = 224,
    PAIR = 2,
    PAIR_ROWS = 512 /* max_rows an expert from which pairs are worth it: where an expert's rows end
                       half a pair's work can be lost */
};

static_assert(LIST_SLICES * DEPTH_LINES * LINES / 4 == 32, "a list fills a warp");

/* setmaxnreg takes from what the block was given when it started: the file's 64 K registers over
 * the threads, rounded down to 8 a thread. Asking for more waits for ever. */
static_assert(COPY_THREADS * COPY_REGISTERS + 2 * GROUP * MULTIPLY_REGISTERS <=
                  65536 / N_THREADS / 8 * 8 * N_THREADS,
              "the warpgroups' registers fit what the block has");

enum product { FORWARD, DGRAD, WGRAD };

/* The cluster's place in the list of all tiles, N_BLOCKS high; column tiles run fastest, then row
 * tiles. Blocks of a cluster differ in m0 alone. */
struct walk {
    int64_t index, start; /* of this tile; of the expert's first */
    int expert;
    int64_t first_row, n_rows;
    int64_t m0, n0;
    int n_slices;
    bool any; /* of the block's rows of c; without, it only takes part in the pair's copies */
};

struct box_maps {
    CUtensorMap a, b; /* a: only where its rows lie in order, not in wgrad */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <product P, int N_BLOCKS>
static __device__ __forceinline__ bool find(walk &w, const xp_tile_args &p,
                                            const int32_t *offsets) {
    constexpr int HEIGHT = N_BLOCKS * TILE_M;
    const int64_t columns = (p.n + TILE_N - 1) / TILE_N;
    for (; w.expert < p.n_experts; w.expert++) {
        const int64_t n_rows = offsets[w.expert + 1] - offsets[w.expert];
        const int64_t rows = P == WGRAD ? p.m : n_rows;
        const int64_t n_tiles = (rows + HEIGHT - 1) / HEIGHT * columns;
        if (w.index < w.start + n_tiles) {
            const int64_t tile = w.index - w.start;
            w.first_row = offsets[w.expert];
            w.n_rows = n_rows;
            w.m0 = tile / columns * HEIGHT + (N_BLOCKS > 1 ? block_in_cluster() * TILE_M : 0);
            w.n0 = tile % columns * TILE_N;
            w.any = w.m0 < rows;
            w.n_slices = (int)(((P == WGRAD ? n_rows : p.k) + DEPTH - 1) / DEPTH);
            return true;
        }
        w.start += n_tiles;
    }
    return false;
}

/* Slices in the order in which they are filled and used, over all tiles. */
struct ring {
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

/* This block's share of b's slice, which TMA writes to every block of the cluster. FORWARD: rows of
 * w[e]; else slabs of 64 columns. */
template <product P, int N_BLOCKS>
static __device__ __forceinline__ void copy_b(const walk &w, const CUtensorMap *map, const ring &at,
                                              int depth, int plane) {
    const int block = N_BLOCKS > 1 ? block_in_cluster() : 0;
    if (P == FORWARD) {
        copy_box<N_BLOCKS>(at.b() + block * (B_BYTES / N_BLOCKS), map, at.full(), depth,
                           (int)w.n0 + block * (TILE_N / N_BLOCKS), plane);
    } else {
        constexpr int N_SLABS = TILE_N / 64 / N_BLOCKS;
#pragma unroll
        for (int i = 0; i < N_SLABS; i++) {
            const int slab = block * N_SLABS + i;
            copy_box<N_BLOCKS>(at.b() + slab * XP_HOPPER_SLAB_BYTES, map, at.full(),
                               (int)w.n0 + 64 * slab, depth, plane);
        }
    }
}

template <product P, int N_BLOCKS>
static __device__ __forceinline__ void fill_rows(const xp_tile_args &p, const box_maps &maps,
                                                 const walk &w, ring &at) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
    const bool boxes = p.gather_a == nullptr; /* rows of other experts in them reach no result */
    const bf16 *a = (const bf16 *)p.a;
    int rows[A_LINES];
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
        const int64_t row = w.m0 + line + LINES * i;
        rows[i] = !boxes && row < w.n_rows ? p.gather_a[w.first_row + row] : -1;
    }
    for (int s = 0; s < w.n_slices; s++) {
        const int64_t k0 = (int64_t)s * DEPTH, k = k0 + 8 * chunk;
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect(at.full(), B_BYTES + (boxes && w.any ? A_BYTES : 0));
            copy_b<P, N_BLOCKS>(w, &maps.b, at, (int)k0, w.expert);
            if (boxes && w.any)
                copy_box<1>(at.a(), &maps.a, at.full(), (int)k0, (int)(w.first_row + w.m0), 0);
        }
        if (!boxes && w.any) {
#pragma unroll
            for (int i = 0; i < A_LINES; i++) {
                const bool valid = rows[i] >= 0 && k < p.k;
                copy_chunk(at.a() + xp_hopper_chunk(line + LINES * i, chunk),
                           valid ? a + (int64_t)rows[i] * p.lda + k : a, valid);
            }
        }
        copy_arrive(at.full());
        at.next();
    }
}

/* ---- wgrad: rows are the depth ---- */

/* Rows [64] of a slice, `columns` of them from `column` on, as slabs of [64 rows][64]. A thread
 * copies one chunk of every 16th row; a row below 0 is zeros. */
template <int N_SLABS>
static __device__ __forceinline__ void copy_depth_rows(uint32_t to, const bf16 *data, int64_t ld,
                                                       const int (&rows)[DEPTH_LINES],
                                                       int64_t column, int64_t n_columns) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
#pragma unroll
    for (int i = 0; i < DEPTH_LINES; i++) {
        const bf16 *row = data + (int64_t)rows[i] * ld;
#pragma unroll
        for (int s = 0; s < N_SLABS; s++) {
            const int64_t at = column + 64 * s + 8 * chunk;
            const bool valid = rows[i] >= 0 && at < n_columns;
            copy_chunk(to + s * XP_HOPPER_SLAB_BYTES + xp_hopper_chunk(line + LINES * i, chunk),
                       valid ? row + at : data, valid);
        }
    }
}

/* The numbers of a warp's rows in slices 2 i and 2 i + 1, one a lane: loaded long before their use,
 * because a slice lasts no longer than a load. -1 past the expert's rows. */
static __device__ __forceinline__ int load_list(const int32_t *gather, const walk &w, int i) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t row = ((int64_t)LIST_SLICES * i + lane / 16) * DEPTH + lane % 16 / 4 * LINES +
                        4 * warp + lane % 4;
    if (row >= w.n_rows)
        return -1;
    return gather != nullptr ? gather[w.first_row + row] : (int)(w.first_row + row);
}

static __device__ __forceinline__ void take_rows(int list, int half, int (&rows)[DEPTH_LINES]) {
    const int line_of_warp = (int)threadIdx.x % 32 / 8;
#pragma unroll
    for (int i = 0; i < DEPTH_LINES; i++)
        rows[i] = __shfl_sync(0xffffffffu, list, 16 * half + 4 * i + line_of_warp);
}

static __device__ __forceinline__ void load_depth_rows(const int32_t *gather, const walk &w,
                                                       int slice, int (&rows)[DEPTH_LINES]) {
#pragma unroll
    for (int i = 0; i < DEPTH_LINES; i++) {
        const int64_t row = (int64_t)slice * DEPTH + (int)threadIdx.x / 8 + LINES * i;
        rows[i] = row >= w.n_rows     ? -1
                  : gather != nullptr ? gather[w.first_row + row]
                                      : (int)(w.first_row + row);
    }
}

/* A slice whose b lies in order. */
template <int N_BLOCKS>
static __device__ __forceinline__ void fill_with_boxes(const xp_tile_args &p, const box_maps &maps,
                                                       const walk &w, int slice,
                                                       const int (&rows)[DEPTH_LINES], ring &at) {
    mbarrier_wait(at.empty(), at.parity ^ 1);
    if (threadIdx.x == 0) {
        mbarrier_expect(at.full(), B_BYTES);
        copy_b<WGRAD, N_BLOCKS>(w, &maps.b, at, (int)w.first_row + slice * DEPTH, 0);
    }
    if (w.any)
        copy_depth_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows, w.m0, p.m);
    copy_arrive(at.full());
    at.next();
}

/* Both sides in chunks: where an expert's rows end inside a slice (below them are another expert's,
 * or nobody's, which may be NaN: zeros on the other side would not help), and where both sides are
 * gathered. */
static __device__ __forceinline__ void fill_with_chunks(const xp_tile_args &p, const walk &w,
                                                        int slice, ring &at) {
    int rows_a[DEPTH_LINES], rows_b[DEPTH_LINES];
    load_depth_rows(p.gather_a, w, slice, rows_a);
    load_depth_rows(p.gather_b, w, slice, rows_b);
    mbarrier_wait(at.empty(), at.parity ^ 1);
    if (threadIdx.x == 0)
        mbarrier_arrive(at.full());
    if (w.any) {
        copy_depth_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows_a, w.m0, p.m);
        copy_depth_rows<TILE_N / 64>(at.b(), (const bf16 *)p.b, p.ldb, rows_b, w.n0, p.n);
    }
    copy_arrive(at.full());
    at.next();
}

template <int N_BLOCKS>
static __device__ __forceinline__ void fill_depth(const xp_tile_args &p, const box_maps &maps,
                                                  const walk &w, ring &at) {
    const int n_whole = p.gather_b != nullptr ? 0 : (int)(w.n_rows / DEPTH);
    int lists[LISTS];
#pragma unroll
    for (int i = 0; i < LISTS; i++)
        lists[i] = load_list(p.gather_a, w, i);
    for (int first = 0; first < n_whole; first += LISTS * LIST_SLICES) {
#pragma unroll
        for (int i = 0; i < LISTS; i++) {
#pragma unroll
            for (int half = 0; half < LIST_SLICES; half++) {
                const int slice = first + LIST_SLICES * i + half;
                int rows[DEPTH_LINES];
                if (slice >= n_whole)
                    break;
                take_rows(lists[i], half, rows);
                fill_with_boxes<N_BLOCKS>(p, maps, w, slice, rows, at);
            }
            lists[i] = load_list(p.gather_a, w, first / LIST_SLICES + LISTS + i);
        }
    }
    for (int slice = n_whole; slice < w.n_slices; slice++)
        fill_with_chunks(p, w, slice, at);
}

#endif

#endif
