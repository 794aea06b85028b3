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
 * TMA, which writes them to both. Single blocks do forward and dgrad where max_rows leaves few rows
 * an expert, and wgrad where m is one tile; every element is summed in the same order, so the
 * results are the same bits.
 */
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/hopper_fill.cuh"
#include "ops/cuda/hopper_store.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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

/* Tiles without rows: as if they had been read. One thread does it, and the warpgroup meets
 * afterwards: a warp that came later than the next use of a stage would wait for a parity that
 * means another phase. (Where there are products wgmma keeps the warps together.) */
template <int N_BLOCKS>
static __device__ __forceinline__ void skip_slices(const walk &w, int group, bool elected,
                                                   ring &at) {
    for (int s = 0; s < w.n_slices; s++) {
        if (elected) {
            mbarrier_wait(at.full(), at.parity);
            release<N_BLOCKS>(at.empty());
        }
        at.next();
    }
    group_sync(1 + group, GROUP);
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
            skip_slices<N_BLOCKS>(w, group, elected, at);
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

static xp_status map_of(const xp_hopper_boxes &boxes, CUtensorMap *map) {
    return xp_cuda_hopper_map(&boxes, map);
}

template <int N_BLOCKS>
static xp_status run(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p) {
    box_maps maps = {};
    if (!p->rows_are_m) {
        if (p->gather_b == nullptr && p->k > 0) /* without rows there are no slices, and TMA takes
                                                   no empty tensor */
            XP_TRY(map_of({p->b, p->n, p->ldb, p->k, 1, 64}, &maps.b));
        return launch<WGRAD, N_BLOCKS>(device, stream, p, &maps);
    }
    const int box_rows = p->trans_b ? TILE_N / N_BLOCKS : DEPTH;
    XP_TRY(map_of({p->b, p->ldb, p->ldb, p->b_expert / p->ldb, p->n_experts, box_rows}, &maps.b));
    if (p->gather_a == nullptr)
        XP_TRY(map_of({p->a, p->k, p->lda, p->m, 1, TILE_M}, &maps.a));
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
