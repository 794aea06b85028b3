/*
 * bf16 products over experts on Hopper: 128 x 256 tiles of c, slices of depth 64, four in flight.
 *
 * One block an SM walks the tiles of all experts. Warpgroup 0 fills the slices: gathered rows
 * through 16-byte copies, whatever lies in order through TMA. Warpgroups 1 and 2 multiply 64 x 256
 * each; their sums stay in registers. While they write a tile the copies of the next one are
 * already under way.
 *
 *   forward  a: rows, k contiguous (gathered)   b: w[e], k contiguous (TMA)
 *   dgrad    a: rows, k contiguous (gathered)   b: w[e], n contiguous (TMA)
 *   wgrad    a: rows, m contiguous (gathered)   b: rows, n contiguous (TMA, but for an expert's
 *            last slice); rows are the depth. Where only b is gathered the sides trade places and
 *            the result is written transposed
 *
 * Blocks work in pairs (clusters of two) on 256 x 256 of c: each takes half of b's slices through
 * TMA, which writes them to both. Groups too small for that are done by single blocks; every
 * element is summed in the same order, so the results are the same bits.
 */
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_store.cuh"

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
    PAIR_ROWS = 512 /* rows of an expert, on average, from which pairs are worth it: where its rows
                       end half a pair's work is lost */
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

template <product P, int N_BLOCKS>
static __device__ __forceinline__ void copy_all(const xp_tile_args &p, const box_maps &maps,
                                                const int32_t *offsets, uint32_t base) {
    ring at = {base, 0, 0};
    walk w = {};
    for (w.index = blockIdx.x / N_BLOCKS; find<P, N_BLOCKS>(w, p, offsets);
         w.index += gridDim.x / N_BLOCKS) {
        if (P == WGRAD)
            fill_depth<N_BLOCKS>(p, maps, w, at);
        else
            fill_rows<P, N_BLOCKS>(p, maps, w, at);
    }
}

/* The slice has been read: every block that writes to it may know. */
template <int N_BLOCKS> static __device__ __forceinline__ void release(uint32_t empty) {
    mbarrier_arrive(empty);
    if (N_BLOCKS > 1)
        mbarrier_arrive_remote(in_block(empty, block_in_cluster() ^ 1));
}

/* Tiles without rows: as if they had been read. */
template <int N_BLOCKS>
static __device__ __forceinline__ void skip_slices(const walk &w, bool elected, ring &at) {
    for (int s = 0; s < w.n_slices; s++) {
        mbarrier_wait(at.full(), at.parity);
        if (elected)
            release<N_BLOCKS>(at.empty());
        at.next();
    }
}

template <product P, int N_BLOCKS>
static __device__ __forceinline__ void multiply_all(const xp_tile_args &p, const int32_t *offsets,
                                                    uint32_t base) {
    constexpr int MN_A = P == WGRAD, MN_B = P != FORWARD;
    const int group = ((int)threadIdx.x - COPY_THREADS) / GROUP,
              warp = (int)threadIdx.x % GROUP / 32, lane = (int)threadIdx.x % 32;
    const bool elected = threadIdx.x % GROUP == 0;
    /* cp.async writes are ordinary ones, wgmma reads through the async proxy, as TMA writes */
    const bool by_chunks = P == WGRAD || p.gather_a != nullptr;
    /* 64 rows of 128 bytes, or one slab: the same distance. */
    const uint32_t own_a = (uint32_t)group * XP_HOPPER_SLAB_BYTES;
    ring at = {base, 0, 0};
    walk w = {};
    for (w.index = blockIdx.x / N_BLOCKS; find<P, N_BLOCKS>(w, p, offsets);
         w.index += gridDim.x / N_BLOCKS) {
        if (N_BLOCKS > 1 && !w.any) {
            skip_slices<N_BLOCKS>(w, elected, at);
            continue;
        }
        float d[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            d[i] = 0;
        uint32_t before = 0;
        for (int s = 0; s < w.n_slices; s++) {
            mbarrier_wait(at.full(), at.parity);
            if (by_chunks)
                async_proxy_fence();
            __syncwarp(); /* wgmma wants the warp together */
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++)
                wgmma_64x256<MN_A, MN_B>(d, xp_hopper_operand(at.a() + own_a, step, !MN_A),
                                         xp_hopper_operand(at.b(), step, !MN_B));
            wgmma_commit();
            wgmma_wait<1>(); /* the slice before this one has been read */
            if (s > 0 && elected)
                release<N_BLOCKS>(before);
            before = at.empty();
            at.next();
        }
        wgmma_wait<0>();
        if (w.n_slices > 0 && elected)
            release<N_BLOCKS>(before);
        const int64_t row = w.m0 + 64 * group + 16 * warp + lane / 4;
        const int64_t n_rows = P == WGRAD ? p.m : w.n_rows;
        const int64_t c0 = P == WGRAD ? (int64_t)w.expert * p.c_expert : w.first_row * p.ldc;
        if (P == WGRAD && p.trans_c)
            put_transposed(p, d, c0, row - lane / 4, n_rows, w.n0);
        else if (P == WGRAD && (p.c_f32 || p.acc))
            put_pairs(p, d, c0, row, n_rows, w.n0);
        else
            put_bf16(p, d, (bf16 *)p.c + c0, row, n_rows, w.n0);
    }
}

#endif

template <product P, int N_BLOCKS>
static __global__ void __launch_bounds__(N_THREADS, 1)
    hopper_kernel(const xp_tile_args p, const __grid_constant__ box_maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t shared[];
    uint8_t *start =
        shared + (XP_HOPPER_ATOM_BYTES - hopper_shared(shared) % XP_HOPPER_ATOM_BYTES) %
                     XP_HOPPER_ATOM_BYTES;
    const uint32_t base = hopper_shared(start);
    int32_t *offsets = (int32_t *)(start + OFFSETS_AT);
    for (int i = (int)threadIdx.x; i <= p.n_experts; i += N_THREADS)
        offsets[i] = p.offsets[i];
    if (threadIdx.x == 0) {
        for (int s = 0; s < N_STAGES; s++) {
            const uint32_t full = base + BARRIERS_AT + (uint32_t)s * 8;
            mbarrier_init(full, COPY_THREADS + 1); /* and the bytes of TMA */
            /* a thread of each warpgroup that multiplies */
            mbarrier_init(full + N_STAGES * 8, 2 * N_BLOCKS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (N_BLOCKS > 1)
        cluster_sync(); /* the other block's barriers are there */
    if (threadIdx.x < COPY_THREADS) {
        registers_give<COPY_REGISTERS>();
        copy_all<P, N_BLOCKS>(p, maps, offsets, base);
    } else {
        registers_take<MULTIPLY_REGISTERS>();
        multiply_all<P, N_BLOCKS>(p, offsets, base);
    }
    if (N_BLOCKS > 1)
        cluster_sync(); /* nobody writes to a block that has ended */
#endif
}

template <product P, int N_BLOCKS>
static xp_status launch(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p,
                        const box_maps *maps) {
    const void *kernel = (const void *)hopper_kernel<P, N_BLOCKS>;
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
        "grouped_hopper"));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = N_BLOCKS;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(device->n_sms / N_BLOCKS * N_BLOCKS));
    config.blockDim = dim3(N_THREADS);
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = N_BLOCKS > 1;
    return xp_cuda_check(cudaLaunchKernelEx(&config, hopper_kernel<P, N_BLOCKS>, *p, *maps),
                         "grouped_hopper");
}

template <int N_BLOCKS>
static xp_status run(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p) {
    box_maps maps = {};
    if (!p->rows_are_m) {
        if (p->gather_b == nullptr && p->k > 0) /* without rows there are no slices, and TMA takes
                                                   no empty tensor */
            XP_TRY(xp_cuda_hopper_map(p->b, p->n, p->ldb, p->k, 1, 64, &maps.b));
        return launch<WGRAD, N_BLOCKS>(device, stream, p, &maps);
    }
    const int box_rows = p->trans_b ? TILE_N / N_BLOCKS : DEPTH;
    XP_TRY(xp_cuda_hopper_map(p->b, p->ldb, p->ldb, p->b_expert / p->ldb, p->n_experts, box_rows,
                              &maps.b));
    if (p->gather_a == nullptr)
        XP_TRY(xp_cuda_hopper_map(p->a, p->k, p->lda, p->m, 1, TILE_M, &maps.a));
    return p->trans_b ? launch<FORWARD, N_BLOCKS>(device, stream, p, &maps)
                      : launch<DGRAD, N_BLOCKS>(device, stream, p, &maps);
}

bool xp_cuda_hopper_is_built(void) {
    /* Code for sm_90a or nothing: what a driver makes of other targets has empty kernels. */
    struct cudaFuncAttributes facts;
    const bool known =
        cudaFuncGetAttributes(&facts, (const void *)hopper_kernel<FORWARD, 1>) == cudaSuccess;
    return known && facts.ptxVersion == 90;
}

/* wgrad's other way round: op(b)^T op(a), written transposed. */
static xp_tile_args transposed(const xp_tile_args *p) {
    xp_tile_args t = *p;
    t.a = p->b, t.lda = p->ldb, t.gather_a = p->gather_b, t.m = p->n;
    t.b = p->a, t.ldb = p->lda, t.gather_b = p->gather_a, t.n = p->m;
    t.trans_c = true;
    return t;
}

xp_status xp_cuda_grouped_hopper(xp_cuda_device *device, cudaStream_t stream,
                                 const xp_tile_args *problem) {
    const bool trades =
        !problem->rows_are_m && problem->gather_b != nullptr && problem->gather_a == nullptr;
    const xp_tile_args p = trades ? transposed(problem) : *problem;
    const bool pairs = p.rows_are_m ? p.m >= (int64_t)PAIR_ROWS * p.n_experts : p.m > TILE_M;
    return pairs ? run<PAIR>(device, stream, &p) : run<1>(device, stream, &p);
}
