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
 *   wgrad    a: rows, m contiguous              b: rows, n contiguous; rows are the depth, and
 *            those of one side are not gathered (TMA, but for an expert's last slice)
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
    A_BYTES = TILE_M * DEPTH * 2,
    B_BYTES = TILE_N * DEPTH * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    BARRIERS_AT = N_STAGES * STAGE_BYTES,
    OFFSETS_AT = BARRIERS_AT + 2 * N_STAGES * 8,
    SHARED_BYTES = OFFSETS_AT + (XP_HOPPER_MAX_EXPERTS + 1) * 4 + XP_HOPPER_ATOM_BYTES,
    COPY_REGISTERS = 56,
    MULTIPLY_REGISTERS = 224
};

/* setmaxnreg takes from what the block was given when it started: the file's 64 K registers over
 * the threads, rounded down to 8 a thread. Asking for more waits for ever. */
static_assert(COPY_THREADS * COPY_REGISTERS + 2 * GROUP * MULTIPLY_REGISTERS <=
                  65536 / N_THREADS / 8 * 8 * N_THREADS,
              "the warpgroups' registers fit what the block has");

enum product { FORWARD, DGRAD, WGRAD };

/* The block's place in the list of all tiles; column tiles run fastest, then row tiles. */
struct walk {
    int64_t index, start; /* of this tile; of the expert's first */
    int expert;
    int64_t first_row, n_rows;
    int64_t m0, n0;
    int n_slices;
};

template <product P>
static __device__ __forceinline__ bool find(walk &w, const xp_tile_args &p,
                                            const int32_t *offsets) {
    const int64_t columns = (p.n + TILE_N - 1) / TILE_N;
    for (; w.expert < p.n_experts; w.expert++) {
        const int64_t n_rows = offsets[w.expert + 1] - offsets[w.expert];
        const int64_t rows = P == WGRAD ? p.m : n_rows;
        const int64_t n_tiles = (rows + TILE_M - 1) / TILE_M * columns;
        if (w.index < w.start + n_tiles) {
            const int64_t tile = w.index - w.start;
            w.first_row = offsets[w.expert];
            w.n_rows = n_rows;
            w.m0 = tile / columns * TILE_M;
            w.n0 = tile % columns * TILE_N;
            w.n_slices = (int)(((P == WGRAD ? n_rows : p.k) + DEPTH - 1) / DEPTH);
            return true;
        }
        w.start += n_tiles;
    }
    return false;
}

/* The side that TMA copies, where all 64 rows of a slice are the expert's. (Beyond them are another
 * expert's, or nobody's, which may be NaN: zeros on the other side would not help.) */
static __host__ __device__ __forceinline__ bool boxes_are_b(const xp_tile_args &p) {
    return p.gather_b == nullptr;
}
static __host__ __device__ __forceinline__ bool has_boxes(const xp_tile_args &p) {
    return p.gather_a == nullptr || p.gather_b == nullptr;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ int row_at(const int32_t *gather, int64_t row) {
    return gather != nullptr ? gather[row] : (int)row;
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

/* 64 rows of `n_slabs` x 64 columns, rows contiguous along m or n: slabs of [64 rows][64]. A thread
 * copies one chunk of every 16th row. */
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

static __device__ __forceinline__ void
load_depth_rows(int (&rows)[DEPTH_LINES], const int32_t *gather, const walk &w, int slice) {
#pragma unroll
    for (int i = 0; i < DEPTH_LINES; i++) {
        const int64_t row = (int64_t)slice * DEPTH + (int)threadIdx.x / 8 + LINES * i;
        rows[i] = row < w.n_rows ? row_at(gather, w.first_row + row) : -1;
    }
}

template <product P>
static __device__ __forceinline__ void fill_rows(const xp_tile_args &p, const CUtensorMap *map,
                                                 const walk &w, ring &at) {
    const int chunk = (int)threadIdx.x % 8, line = (int)threadIdx.x / 8;
    const bf16 *a = (const bf16 *)p.a;
    int rows[A_LINES];
#pragma unroll
    for (int i = 0; i < A_LINES; i++) {
        const int64_t row = w.m0 + line + LINES * i;
        rows[i] = row < w.n_rows ? row_at(p.gather_a, w.first_row + row) : -1;
    }
    for (int s = 0; s < w.n_slices; s++) {
        const int64_t k0 = (int64_t)s * DEPTH, k = k0 + 8 * chunk;
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect(at.full(), B_BYTES);
            if (P == FORWARD)
                copy_box(at.b(), map, at.full(), (int)k0, (int)w.n0, w.expert);
            else
                for (int j = 0; j < TILE_N / 64; j++)
                    copy_box(at.b() + j * XP_HOPPER_SLAB_BYTES, map, at.full(), (int)w.n0 + 64 * j,
                             (int)k0, w.expert);
        }
#pragma unroll
        for (int i = 0; i < A_LINES; i++) {
            const bool valid = rows[i] >= 0 && k < p.k;
            copy_chunk(at.a() + xp_hopper_chunk(line + LINES * i, chunk),
                       valid ? a + (int64_t)rows[i] * p.lda + k : a, valid);
        }
        copy_arrive(at.full());
        at.next();
    }
}

static __device__ __forceinline__ void fill_depth(const xp_tile_args &p, const CUtensorMap *map,
                                                  const walk &w, ring &at) {
    int rows_a[DEPTH_LINES], rows_b[DEPTH_LINES];
    load_depth_rows(rows_a, p.gather_a, w, 0);
    load_depth_rows(rows_b, p.gather_b, w, 0);
    for (int s = 0; s < w.n_slices; s++) {
        int next_a[DEPTH_LINES], next_b[DEPTH_LINES]; /* one slice ahead of their use */
        load_depth_rows(next_a, p.gather_a, w, s + 1);
        load_depth_rows(next_b, p.gather_b, w, s + 1);
        const bool boxes = has_boxes(p) && (int64_t)(s + 1) * DEPTH <= w.n_rows;
        const bool of_b = boxes_are_b(p);
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0 && !boxes)
            mbarrier_arrive(at.full());
        if (threadIdx.x == 0 && boxes) {
            mbarrier_expect(at.full(), of_b ? B_BYTES : A_BYTES);
            const int row = (int)w.first_row + s * DEPTH;
            for (int j = 0; j < (of_b ? TILE_N : TILE_M) / 64; j++)
                copy_box((of_b ? at.b() : at.a()) + j * XP_HOPPER_SLAB_BYTES, map, at.full(),
                         (int)(of_b ? w.n0 : w.m0) + 64 * j, row, 0);
        }
        if (!boxes || of_b)
            copy_depth_rows<TILE_M / 64>(at.a(), (const bf16 *)p.a, p.lda, rows_a, w.m0, p.m);
        if (!boxes || !of_b)
            copy_depth_rows<TILE_N / 64>(at.b(), (const bf16 *)p.b, p.ldb, rows_b, w.n0, p.n);
        copy_arrive(at.full());
        at.next();
#pragma unroll
        for (int i = 0; i < DEPTH_LINES; i++) {
            rows_a[i] = next_a[i];
            rows_b[i] = next_b[i];
        }
    }
}

template <product P>
static __device__ __forceinline__ void copy_all(const xp_tile_args &p, const CUtensorMap *map,
                                                const int32_t *offsets, uint32_t base) {
    ring at = {base, 0, 0};
    walk w = {};
    for (w.index = blockIdx.x; find<P>(w, p, offsets); w.index += gridDim.x) {
        if (P == WGRAD)
            fill_depth(p, map, w, at);
        else
            fill_rows<P>(p, map, w, at);
    }
}

template <product P>
static __device__ __forceinline__ void multiply_all(const xp_tile_args &p, const int32_t *offsets,
                                                    uint32_t base) {
    constexpr int MN_A = P == WGRAD, MN_B = P != FORWARD;
    const int group = ((int)threadIdx.x - COPY_THREADS) / GROUP,
              warp = (int)threadIdx.x % GROUP / 32, lane = (int)threadIdx.x % 32;
    const bool elected = threadIdx.x % GROUP == 0;
    /* 64 rows of 128 bytes, or one slab: the same distance. */
    const uint32_t own_a = (uint32_t)group * XP_HOPPER_SLAB_BYTES;
    ring at = {base, 0, 0};
    walk w = {};
    for (w.index = blockIdx.x; find<P>(w, p, offsets); w.index += gridDim.x) {
        float d[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            d[i] = 0;
        uint32_t before = 0;
        for (int s = 0; s < w.n_slices; s++) {
            mbarrier_wait(at.full(), at.parity);
            async_proxy_fence(); /* cp.async writes are ordinary ones, wgmma reads through the async
                                    proxy */
            __syncwarp();        /* wgmma wants the warp together */
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++)
                wgmma_64x256<MN_A, MN_B>(d, xp_hopper_operand(at.a() + own_a, step, !MN_A),
                                         xp_hopper_operand(at.b(), step, !MN_B));
            wgmma_commit();
            wgmma_wait<1>(); /* the slice before this one has been read */
            if (s > 0 && elected)
                mbarrier_arrive(before);
            before = at.empty();
            at.next();
        }
        wgmma_wait<0>();
        if (w.n_slices > 0 && elected)
            mbarrier_arrive(before);
        const int64_t row = w.m0 + 64 * group + 16 * warp + lane / 4;
        const int64_t n_rows = P == WGRAD ? p.m : w.n_rows;
        const int64_t c0 = P == WGRAD ? (int64_t)w.expert * p.c_expert : w.first_row * p.ldc;
        if (P == WGRAD && (p.c_f32 || p.acc))
            put_pairs(p, d, c0, row, n_rows, w.n0);
        else
            put_bf16(p, d, (bf16 *)p.c + c0, row, n_rows, w.n0);
    }
}

#endif

template <product P>
static __global__ void __launch_bounds__(N_THREADS, 1)
    hopper_kernel(const xp_tile_args p, const __grid_constant__ CUtensorMap map) {
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
            mbarrier_init(full + N_STAGES * 8, 2); /* a thread of each warpgroup that multiplies */
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < COPY_THREADS) {
        registers_give<COPY_REGISTERS>();
        copy_all<P>(p, &map, offsets, base);
    } else {
        registers_take<MULTIPLY_REGISTERS>();
        multiply_all<P>(p, offsets, base);
    }
#endif
}

template <product P>
static xp_status launch(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p,
                        const CUtensorMap *map) {
    XP_TRY(xp_cuda_check(cudaFuncSetAttribute((const void *)hopper_kernel<P>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              SHARED_BYTES),
                         "grouped_hopper"));
    hopper_kernel<P><<<(unsigned)device->n_sms, N_THREADS, SHARED_BYTES, stream>>>(*p, *map);
    return xp_cuda_check(cudaGetLastError(), "grouped_hopper");
}

bool xp_cuda_hopper_is_built(void) {
    /* Code for sm_90a or nothing: what a driver makes of other targets has empty kernels. */
    struct cudaFuncAttributes facts;
    const bool known =
        cudaFuncGetAttributes(&facts, (const void *)hopper_kernel<FORWARD>) == cudaSuccess;
    return known && facts.ptxVersion == 90;
}

xp_status xp_cuda_grouped_hopper(xp_cuda_device *device, cudaStream_t stream,
                                 const xp_tile_args *p) {
    CUtensorMap map = {};
    if (!p->rows_are_m) {
        if (has_boxes(*p) && p->k > 0) /* without rows there are no slices, and TMA takes no empty
                                          tensor */
            XP_TRY(xp_cuda_hopper_rows_map(p, boxes_are_b(*p), &map));
        return launch<WGRAD>(device, stream, p, &map);
    }
    XP_TRY(xp_cuda_hopper_weights_map(p, p->trans_b ? TILE_N : DEPTH, &map));
    return p->trans_b ? launch<FORWARD>(device, stream, p, &map)
                      : launch<DGRAD>(device, stream, p, &map);
}
