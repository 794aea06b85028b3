/*
 * Dispatch by bulk copies: global memory -> shared memory -> the destination's memory. Each warp has a
 * ring of its own, which one lane drives, LOADS loads ahead of the stores; the other lanes look up
 * which rows are next. Half of the warps of a block send to the other ranks, the other half copies this
 * rank's own rows, which do not wait for the link. No kernel waits for another rank: barriers stand
 * before and after, and the stores are complete when the kernel ends (bulk.cuh).
 */
#include "ep/p2p/cuda/bulk.cuh"
#include "ep/p2p/cuda/dispatch_tokens.cuh"
#include "ep/p2p/cuda/rows_bulk.h"

enum {
    WARPS = XP_EP_BULK_WARPS,
    SENDERS = WARPS / 2,
    STAGES = XP_EP_BULK_STAGES,
    STAGE_BYTES = XP_EP_BULK_STAGE_BYTES,
    LOADS = 4, /* in flight; the other stages are being stored */
};

#if __CUDA_ARCH__ >= 900

/* The rows of this round by destination, the ranks behind this one first, this one last: at any time
 * ranks send to different ranks. */
struct destinations {
    int before[XP_EP_CUDA_MAX_RANKS + 1]; /* rows to earlier destinations */
    int first[XP_EP_CUDA_MAX_RANKS];      /* send row */
    char *to[XP_EP_CUDA_MAX_RANKS];       /* where the first row is written */
    bool aligned;                         /* all `to` are multiples of 16 bytes */
};

/* One warp. */
static __device__ void find_destinations(const xp_ep_cuda_plan &p, const xp_ep_cuda_peers &peers,
                                         int64_t round, int64_t row_bytes, destinations *all) {
    const int n = p.n_ranks, d = (p.rank + 1 + lane_id()) % n;
    int n_rows = 0;
    bool aligned = true;
    if (lane_id() < n) {
        const int first = p.send_round[round * n + d];
        n_rows = p.send_round[(round + 1) * n + d] - first;
        char *to = recv_of(p, peers, d) + p.dest_slot[round * n + d] * row_bytes;
        aligned = n_rows == 0 || (uintptr_t)to % 16 == 0;
        all->first[lane_id()] = first;
        all->to[lane_id()] = to;
    }
    int sum = n_rows;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane_id() >= step ? other : 0;
    }
    if (lane_id() < n)
        all->before[lane_id() + 1] = sum;
    aligned = __all_sync(ALL_LANES, aligned);
    if (lane_id() == 0) {
        all->before[0] = 0;
        all->aligned = aligned;
    }
}

/* A warp's ring; one lane calls what follows. Copy i uses stage i % STAGES. */
struct copy_ring {
    uint32_t stages, bars; /* shared memory */
    char **to;             /* [STAGES] */
    uint32_t *n_bytes;     /* [STAGES] */
    uint32_t n;            /* loads issued */
};

static __device__ __forceinline__ void store_copy(const copy_ring &r, uint32_t i) {
    const uint32_t stage = i % STAGES;
    mbarrier_wait(r.bars + stage * 8, i / STAGES & 1);
    /* Loaded and stored by the same proxy: the wait for the load orders the two. */
    bulk_store(r.to[stage], r.stages + stage * STAGE_BYTES, r.n_bytes[stage]);
}

/* Before this load the stores of copies 0 to n - 1 - LOADS have been issued, a group each. That of the
 * stage's last copy, n - STAGES, has STAGES - 1 - LOADS groups behind it. */
static __device__ __forceinline__ void add_copy(copy_ring &r, const char *from, char *to,
                                                uint32_t n_bytes) {
    const uint32_t stage = r.n % STAGES;
    if (r.n >= STAGES)
        bulk_wait_read<STAGES - 1 - LOADS>();
    r.to[stage] = to;
    r.n_bytes[stage] = n_bytes;
    bulk_load(r.stages + stage * STAGE_BYTES, from, n_bytes, r.bars + stage * 8);
    r.n++;
    if (r.n > LOADS)
        store_copy(r, r.n - 1 - LOADS);
}

static __device__ __forceinline__ void end_copies(const copy_ring &r) {
    for (uint32_t i = r.n > LOADS ? r.n - LOADS : 0; i < r.n; i++)
        store_copy(r, i);
    bulk_wait_all();
}

/* A row of the round, by its number among all destinations'. */
struct row_copy {
    int token;
    char *to;
};

static __device__ __forceinline__ row_copy find_row(const xp_ep_cuda_plan &p,
                                                    const destinations &all, int64_t row_bytes,
                                                    int64_t i, int64_t end) {
    if (i >= end)
        return {0, nullptr};
    const int at = owner_of(all.before, (int)i), row = (int)i - all.before[at];
    return {p.send_token[all.first[at] + row], all.to[at] + row * row_bytes};
}

/* Rows begin to end - 1 by n_workers warps in turns. All lanes; the numbers of the next 32 rows are
 * loaded while these are copied. */
static __device__ void copy_rows(const xp_ep_cuda_plan &p, const destinations &all, copy_ring &ring,
                                 const char *x, int64_t row_bytes, int64_t begin, int64_t end,
                                 int worker, int n_workers) {
    int64_t mine = begin + worker + (int64_t)lane_id() * n_workers;
    row_copy next = find_row(p, all, row_bytes, mine, end);
    for (int64_t base = begin + worker; base < end; base += 32 * (int64_t)n_workers) {
        const row_copy now = next;
        mine += 32 * (int64_t)n_workers;
        next = find_row(p, all, row_bytes, mine, end);
        for (int i = 0; i < 32 && base + i * (int64_t)n_workers < end; i++) {
            const char *from = x + __shfl_sync(ALL_LANES, now.token, i) * row_bytes;
            char *to = (char *)__shfl_sync(ALL_LANES, (unsigned long long)now.to, i);
            if (lane_id() == 0)
                for (int64_t at = 0; at < row_bytes; at += STAGE_BYTES)
                    add_copy(ring, from + at, to + at,
                             (uint32_t)min((long long)STAGE_BYTES, (long long)(row_bytes - at)));
            __syncwarp();
        }
    }
    if (lane_id() == 0)
        end_copies(ring);
}

#endif

static __global__ void __launch_bounds__(WARPS * 32, 1)
    dispatch_bulk_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                         int64_t row_bytes, const char *x) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ destinations all;
    __shared__ uint64_t bars[WARPS][STAGES];
    __shared__ char *to[WARPS][STAGES];
    __shared__ uint32_t n_bytes[WARPS][STAGES];
    const int warp = (int)threadIdx.x / 32;
    if (is_aborted(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    if (warp == 0)
        find_destinations(p, peers, round, row_bytes, &all);
    if (lane_id() == 0) {
        for (int i = 0; i < STAGES; i++)
            mbarrier_init(hopper_shared(&bars[warp][i]), 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (all.aligned) {
        const int n_remote = all.before[p.n_ranks - 1], n_rows = all.before[p.n_ranks];
        copy_ring ring = {hopper_shared(shared) + (uint32_t)(warp * STAGES * STAGE_BYTES),
                          hopper_shared(bars[warp]), to[warp], n_bytes[warp], 0};
        const bool sends = warp < SENDERS;
        const int n_each = sends ? SENDERS : WARPS - SENDERS;
        copy_rows(p, all, ring, x, row_bytes, sends ? 0 : n_remote, sends ? n_remote : n_rows,
                  (int)blockIdx.x * n_each + warp % SENDERS, (int)gridDim.x * n_each);
    } else { /* a destination's rows at an odd address */
        dispatch_tokens(p, peers, round, row_bytes / 16, (const int4 *)x);
    }
    if (blockIdx.x == 0 && warp == 0)
        count_dispatched(p, round);
#endif
}

xp_status xp_ep_cuda_dispatch_rows_bulk(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                        const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                        const void *x) {
    dispatch_bulk_kernel<<<bulk_blocks(rows, p->n_tokens), WARPS * 32, XP_EP_BULK_SHARED_BYTES,
                           stream>>>(*p, *peers, rows->round, (int64_t)rows->row_bytes,
                                     (const char *)x);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

xp_status xp_ep_cuda_load_dispatch_bulk(bool *usable) {
    return load_bulk_kernel((const void *)dispatch_bulk_kernel, usable);
}
