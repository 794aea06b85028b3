/*
 * bf16 grouped GEMM for Hopper (sm_90a): persistent, warp-specialised, wgmma. Tiles of c are
 * 128 x 256, k tiles 64, the pipeline has four stages.
 *
 * One CTA per SM loops over the tiles of all experts (tile_scheduler), whose numbers it takes from a
 * counter: a CTA that starts late owes nothing. Warpgroup 0 is the producer:
 * gathered rows by cp.async, contiguous operands by TMA. Warpgroups 1 and 2 are consumers: each
 * computes 64 x 256 of the tile with its accumulators in registers. Each stage has a full barrier
 * (TMA bytes and the producer's arrivals) and an empty barrier (one arrival of each consumer
 * warpgroup). The producer fills stages of the next tile while the consumers run the epilogue.
 *
 *   forward  a: rows, k contiguous (gathered)   b: w[e], k contiguous (TMA)
 *   dgrad    a: rows, k contiguous (gathered)   b: w[e], n contiguous (TMA)
 *   wgrad    a: rows, m contiguous (gathered)   b: rows, n contiguous (TMA, except an expert's last
 *            partial k tile); the rows are k. If only b is gathered, a and b are swapped and the
 *            result is stored transposed
 * With the experts' activation (epilogue SILU) forward and dgrad end as hopper_silu.cuh says.
 *
 * 2-CTA clusters compute 256 x 256 of c: each CTA loads half of every b tile by TMA multicast into
 * both. Single CTAs run forward and dgrad when max_rows / experts is small, and wgrad when m is one
 * tile. Every element is summed in the same order either way, so the bits are the same. The choice
 * does not look at which part of the rows is computed: that is known on the device alone.
 */
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/hopper_producer.cuh"
#include "ops/cuda/hopper_epilogue.cuh"
#include "ops/cuda/hopper_store.cuh"
#include "ops/cuda/hopper_silu.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Every warp: take the next number and find its tile, which must be that of an earlier call or {}. @return
 * false: there are no more */
template <gemm_kind P, int N_CTAS>
static __device__ __forceinline__ bool next_tile(tile_scheduler &tile, tile_ring &ring,
                                                 const xp_tile_args &p, const int32_t *offsets) {
    tile.index = take_tile<N_CTAS>(ring);
    return find_tile<P, N_CTAS>(tile, p, offsets);
}

/* Producer warpgroup: fill the stages of all tiles of this cluster. */
template <gemm_kind P, int N_CTAS, epilogue E>
static __device__ __forceinline__ void produce_all(const xp_tile_args &p, const tma_maps &maps,
                                                   const int32_t *offsets, uint32_t base) {
    const bool schedules = threadIdx.x == 0 && (N_CTAS == 1 || cta_rank() == 0);
    pipeline_state at = {base, 0, 0};
    tile_ring ring = {base, 0};
    tile_scheduler tile = {};
    uint32_t next = 0;
    if (schedules) {
        next = claim_tile(p, blockIdx.x / N_CTAS);
        publish_tile<N_CTAS>(ring, next);
        next = claim_tile(p, next + gridDim.x / N_CTAS);
    }
    for (;;) {
        if (!next_tile<P, N_CTAS>(tile, ring, p, offsets))
            break;
        if (schedules) {
            publish_tile<N_CTAS>(ring, next);
            next = claim_tile(p, next + gridDim.x / N_CTAS);
        }
        if (P == WGRAD)
            produce_wgrad<N_CTAS>(p, maps, tile, at);
        else if (p.gather_a != nullptr)
            produce_gathered<P, N_CTAS, E>(p, maps, tile, at);
        else
            produce_in_order<P, N_CTAS, E>(p, maps, tile, at);
        if (P == DGRAD && E == SILU)
            produce_gate_up(maps, tile, at);
    }
    if (schedules)
        reset_counter<N_CTAS>(p, next, tile.start);
}

/* A tile of the cluster in which this CTA has no rows: release its stages unread. One thread does
 * it; the named barrier then keeps the warpgroup together, because a warp that falls behind by a
 * whole round of the buffer would wait for the parity of another phase. (Where the warps compute,
 * wgmma keeps them together.) */
template <int N_CTAS>
static __device__ __forceinline__ void skip_stages(int n_stages, int group, bool elected,
                                                   pipeline_state &at) {
    for (int s = 0; s < n_stages; s++) {
        if (elected) {
            mbarrier_wait(at.full(), at.parity);
            release_stage<N_CTAS>(at.empty());
        }
        at.next();
    }
    named_barrier_sync(1 + group, WARPGROUP);
}

/* First row of the warp, counted as tile.m0 is. */
static __device__ __forceinline__ int warp_row(const tile_scheduler &tile, int group) {
    return tile.m0 + 64 * group + (int)threadIdx.x % WARPGROUP / 32 * 16;
}

/* Forward and dgrad: store the warp's 16 rows of the tile. */
static __device__ __forceinline__ void store_rows(const xp_tile_args &p, const tma_maps &maps,
                                                  const tile_scheduler &tile, const float (&d)[128],
                                                  int group, warp_chunks &chunks) {
    const int row = warp_row(tile, group);
    if (row + 16 <= tile.n_rows)
        store_whole_rows(p, d, &maps.c, chunks, tile.first_row + row, tile.n0);
    else if (row < tile.n_rows)
        store_bf16(p, d, (bf16 *)p.c + (int64_t)tile.first_row * p.ldc,
                   row + (int)threadIdx.x % 32 / 4, tile.n_rows, tile.n0);
}

/* wgrad: store a consumer warpgroup's 64 x 256 of the tile. */
static __device__ __forceinline__ void store_wgrad(const xp_tile_args &p, const tma_maps &maps,
                                                   const tile_scheduler &tile,
                                                   const float (&d)[128], chunk_buffers &chunks) {
    const int m = tile.m0 + 64 * chunks.group;
    const int64_t n_rows = p.m, row = warp_row(tile, chunks.group);
    if (m >= n_rows)
        return;
    const int64_t c0 = (int64_t)tile.expert * p.c_expert;
    if (p.c_f32 && p.trans_c)
        store_f32<true>(p, d, &maps.c, chunks, m, tile.n0, tile.expert);
    else if (p.c_f32)
        store_f32<false>(p, d, &maps.c, chunks, m, tile.n0, tile.expert);
    else if (p.acc && p.trans_c)
        add_transposed_bf16(p, d, c0, row, n_rows, tile.n0);
    else if (p.acc)
        add_bf16(p, d, c0, row + (int)threadIdx.x % 32 / 4, n_rows, tile.n0);
    else if (p.trans_c)
        store_bf16_chunks<true>(p, d, &maps.c, chunks, m, tile.n0, tile.expert);
    else
        store_bf16_chunks<false>(p, d, &maps.c, chunks, m, tile.n0, tile.expert);
}

/* A consumer warpgroup: wait for the k tile at `at` and issue its wgmmas. FIRST: of the tile. */
template <gemm_kind P, bool FIRST>
static __device__ __forceinline__ void start_k_tile(float (&d)[128], const pipeline_state &at,
                                                    int group, bool by_cp_async) {
    constexpr int MN_A = P == WGRAD, MN_B = P != FORWARD;
    /* 64 rows of 128 bytes or one slab: the same offset. */
    const uint32_t a = at.a() + (uint32_t)group * XP_HOPPER_SLAB_BYTES;
    mbarrier_wait(at.full(), at.parity);
    if (by_cp_async)
        async_proxy_fence();
    __syncwarp(); /* wgmma needs converged warps */
    wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < TILE_K / 16; step++) {
        const uint64_t op_a = xp_hopper_operand(a, step, !MN_A),
                       op_b = xp_hopper_operand(at.b(), step, !MN_B);
        if (FIRST && step == 0)
            wgmma_64x256_first<MN_A, MN_B>(d, op_a, op_b);
        else
            wgmma_64x256<MN_A, MN_B>(d, op_a, op_b);
    }
    wgmma_commit();
}

/* A consumer warpgroup: wait for each k tile, issue its wgmmas, release the stage once the wgmmas
 * that read it are complete; after the last k tile store the accumulators. */
template <gemm_kind P, int N_CTAS, epilogue E>
static __device__ __forceinline__ void consume_all(const xp_tile_args &p, const tma_maps &maps,
                                                   const int32_t *offsets, uint32_t base) {
    const int group = ((int)threadIdx.x - PRODUCER_THREADS) / WARPGROUP;
    const bool elected = threadIdx.x % WARPGROUP == 0;
    /* cp.async writes through the generic proxy, wgmma reads through the async proxy */
    const bool by_cp_async = P == WGRAD || p.gather_a != nullptr;
    chunk_buffers chunks = make_chunk_buffers(base, group, elected);
    warp_chunks own_chunks = make_warp_chunks(base, group);
    pipeline_state at = {base, 0, 0};
    tile_ring ring = {base, 0};
    /* The next tile is looked up early; with an activation not, whose epilogue leaves no registers for two. */
    tile_scheduler tile = {}, early = {};
    tile_scheduler &next = E == PLAIN ? early : tile;
    bool more = next_tile<P, N_CTAS>(next, ring, p, offsets);
    while (more) {
        if (E == PLAIN)
            tile = early;
        if (N_CTAS > 1 && !tile.has_rows) {
            skip_stages<N_CTAS>(tile.n_k_tiles + (P == DGRAD && E == SILU ? SILU_STAGES : 0), group,
                                elected, at);
            more = next_tile<P, N_CTAS>(next, ring, p, offsets);
            continue;
        }
        float prob[2];
        if (E == SILU)
            load_prob(p, tile, group, prob);
        float d[128];
        uint32_t before = at.empty();
        start_k_tile<P, true>(d, at, group, by_cp_async);
        at.next();
        for (int s = 1; s < tile.n_k_tiles; s++) {
            start_k_tile<P, false>(d, at, group, by_cp_async);
            wgmma_wait<1>(); /* the wgmmas of the previous k tile are complete */
            if (elected)
                release_stage<N_CTAS>(before);
            before = at.empty();
            at.next();
        }
        /* While the last wgmmas run. The next tile's number is there: the producer published it when it
         * started this tile. */
        if (E == PLAIN)
            more = next_tile<P, N_CTAS>(next, ring, p, offsets);
        wgmma_wait<0>();
        if (elected)
            release_stage<N_CTAS>(before);
        if (P == FORWARD && E == SILU)
            silu_forward_tile(p, maps, tile, d, prob, own_chunks, group);
        else if (P == DGRAD && E == SILU)
            silu_backward_tile<N_CTAS>(p, tile, d, prob, group, at);
        else if (P == WGRAD)
            store_wgrad(p, maps, tile, d, chunks);
        else
            store_rows(p, maps, tile, d, group, own_chunks);
        if (E != PLAIN)
            more = next_tile<P, N_CTAS>(next, ring, p, offsets);
    }
    if (threadIdx.x % 32 == 0)
        bulk_wait(); /* shared memory is read, and c is written */
}

#endif

template <gemm_kind P, int N_CTAS, epilogue E>
static __global__ void __launch_bounds__(N_THREADS, 1)
    hopper_kernel(const xp_tile_args p, const __grid_constant__ tma_maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(XP_HOPPER_ATOM_BYTES) uint8_t shared[];
    const uint32_t base = hopper_shared(shared);
    int32_t *offsets = (int32_t *)(shared + OFFSETS_AT);
    for (int i = (int)threadIdx.x; i <= p.n_experts; i += N_THREADS)
        offsets[i] = p.offsets[i];
    if (P != WGRAD && p.row_range != nullptr && p.n_experts <= RANGED_EXPERTS)
        for (int i = (int)threadIdx.x; i < 2 * p.n_experts; i += N_THREADS)
            offsets[p.n_experts + 1 + i] = p.row_range[i];
    if (threadIdx.x == 0) {
        for (int s = 0; s < N_STAGES; s++) {
            const uint32_t full = base + BARRIERS_AT + (uint32_t)s * 8;
            mbarrier_init(full, PRODUCER_THREADS + 1); /* plus the bytes of TMA */
            /* one thread of each consumer warpgroup of the cluster */
            mbarrier_init(full + N_STAGES * 8, 2 * N_CTAS);
        }
        init_tile_ring<N_CTAS>(base);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (P == WGRAD && p.n_experts <= SORTED_EXPERTS) {
        sort_experts(offsets, p.n_experts, shared + ORDER_AT);
        __syncthreads();
    }
    if (N_CTAS > 1)
        cluster_sync(); /* the other CTA's barriers are initialised */
    if (threadIdx.x < PRODUCER_THREADS) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        produce_all<P, N_CTAS, E>(p, maps, offsets, base);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        consume_all<P, N_CTAS, E>(p, maps, offsets, base);
    }
    if (N_CTAS > 1)
        cluster_sync(); /* no CTA exits while the other may write to its shared memory */
#endif
}

template <gemm_kind P, int N_CTAS, epilogue E = PLAIN>
static xp_status launch(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p,
                        const tma_maps *maps) {
    const void *kernel = (const void *)hopper_kernel<P, N_CTAS, E>;
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
        "grouped_hopper"));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = N_CTAS;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)xp_cuda_hopper_ctas(device, p, N_CTAS));
    config.blockDim = dim3(N_THREADS);
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = N_CTAS > 1;
    return xp_cuda_check(cudaLaunchKernelEx(&config, hopper_kernel<P, N_CTAS, E>, *p, *maps),
                         "grouped_hopper");
}

static xp_status map_of(const xp_hopper_boxes &by_tma, CUtensorMap *map) {
    return xp_cuda_hopper_map(&by_tma, map);
}

/* Rows in order; those of gather lists are not loaded by TMA. */
static xp_status map_a(const xp_tile_args *p, CUtensorMap *map) {
    return p->gather_a != nullptr ? XP_OK
                                  : map_of({p->a, p->k, p->lda, p->m, 1, TILE_M, false}, map);
}

/* With an activation: gate and up in boxes of a chunk (forward, stored) or of a CTA's rows (dgrad,
 * loaded). */
template <int N_CTAS>
static xp_status run_silu(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p) {
    tma_maps maps = {};
    const int64_t f = p->silu.width;
    const int weight_rows = p->trans_b ? TILE_N / 2 : TILE_K, rows = p->trans_b ? 16 : TILE_M;
    XP_TRY(map_of({p->b, p->ldb, p->ldb, p->b_expert / p->ldb, p->n_experts, weight_rows, false},
                  &maps.b));
    XP_TRY(map_of({p->silu.gate_up, f, 2 * f, p->m, 1, rows, false}, &maps.gate));
    XP_TRY(map_of({(const bf16 *)p->silu.gate_up + f, f, 2 * f, p->m, 1, rows, false}, &maps.up));
    XP_TRY(map_of({p->silu.h, f, f, p->m, 1, 16, false}, &maps.c));
    XP_TRY(map_a(p, &maps.a));
    return p->trans_b ? launch<FORWARD, N_CTAS, SILU>(device, stream, p, &maps)
                      : launch<DGRAD, N_CTAS, SILU>(device, stream, p, &maps);
}

template <int N_CTAS>
static xp_status run(xp_cuda_device *device, cudaStream_t stream, const xp_tile_args *p) {
    if (p->silu.width > 0)
        return run_silu<N_CTAS>(device, stream, p);
    tma_maps maps = {};
    if (!p->rows_are_m) {
        if (p->gather_b == nullptr && p->k > 0) /* TMA refuses an empty tensor */
            XP_TRY(map_of({p->b, p->n, p->ldb, p->k, 1, 64, false}, &maps.b));
        const int64_t rows = p->trans_c ? p->n : p->m, columns = p->trans_c ? p->m : p->n;
        XP_TRY(map_of({p->c, columns, p->ldc, rows, p->n_experts, p->c_f32 ? 32 : 64, p->c_f32},
                      &maps.c));
        return launch<WGRAD, N_CTAS>(device, stream, p, &maps);
    }
    const int box_rows = p->trans_b ? TILE_N / N_CTAS : TILE_K;
    XP_TRY(map_of({p->b, p->ldb, p->ldb, p->b_expert / p->ldb, p->n_experts, box_rows, false},
                  &maps.b));
    XP_TRY(map_of({p->c, p->n, p->ldc, p->m, 1, 16, false}, &maps.c));
    XP_TRY(map_a(p, &maps.a));
    return p->trans_b ? launch<FORWARD, N_CTAS>(device, stream, p, &maps)
                      : launch<DGRAD, N_CTAS>(device, stream, p, &maps);
}

bool xp_cuda_hopper_is_built(void) {
    /* Only sm_90a code has the kernel's body; what a driver compiles from other PTX is empty. */
    struct cudaFuncAttributes facts;
    const bool known = cudaFuncGetAttributes(
                           &facts, (const void *)hopper_kernel<FORWARD, 1, PLAIN>) == cudaSuccess;
    return known && facts.ptxVersion == 90;
}

/* wgrad with a and b swapped: c^T = op(b)^T op(a), stored transposed. */
static xp_tile_args transposed(const xp_tile_args *p) {
    xp_tile_args t = *p;
    t.a = p->b, t.lda = p->ldb, t.gather_a = p->gather_b, t.m = p->n;
    t.b = p->a, t.ldb = p->lda, t.gather_b = p->gather_a, t.n = p->m;
    t.trans_c = true;
    return t;
}

xp_status xp_cuda_grouped_hopper(xp_cuda_device *device, cudaStream_t stream,
                                 const xp_tile_args *problem) {
    const bool swapped =
        !problem->rows_are_m && problem->gather_b != nullptr && problem->gather_a == nullptr;
    const xp_tile_args p = swapped ? transposed(problem) : *problem;
    const bool clusters =
        p.rows_are_m ? p.m >= (int64_t)CLUSTER_MIN_ROWS * p.n_experts : p.m > TILE_M;
    return clusters ? run<CLUSTER_CTAS>(device, stream, &p) : run<1>(device, stream, &p);
}
