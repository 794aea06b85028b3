/*
 * Dispatch by bulk copies: global memory -> shared memory -> the destination's memory. Each warp has a
 * ring of its own, which one lane drives, LOADS loads ahead of the stores. Warps take chunks of rows of
 * one destination in turns. Half of the warps of a block send to the other ranks, the other half copies
 * this rank's own rows, which do not wait for the link.
 *
 * Between processes on GPUs of their own that other half then also takes arrived rows out of the window,
 * chunk by chunk, while later ones are on their way: a sender tells the destination of each chunk once
 * its stores are complete. Senders wait for nobody, and they share chunks among those that run: one
 * resident block of a rank sends all that its peers wait for. Elsewhere nothing here waits for another rank; barriers stand before and after.
 *
 * Order. A chunk's stores are complete and visible to the lane that issued them (wait_group, bulk.cuh); it
 * then sets the chunk's word with a release of system scope, which covers them. The receiver's lane
 * reads the word with an acquire; a proxy fence puts its bulk loads behind that.
 */
#include "ep/p2p/cuda/bulk.cuh"
#include "ep/p2p/cuda/dispatch_tokens.cuh"
#include "ep/p2p/cuda/flag_wait.cuh"
#include "ep/p2p/cuda/rows_bulk.h"

enum {
    WARPS = XP_EP_BULK_WARPS,
    SENDERS = WARPS / 2,
    STAGES = XP_EP_BULK_STAGES,
    STAGE_BYTES = XP_EP_BULK_STAGE_BYTES,
    CHUNK_ROWS = 4 * XP_EP_CUDA_CHUNK_ROWS,
    LOADS = 4,    /* in flight; the other stages are being stored */
    TELL_LAG = 6, /* a chunk is told of when so many later stores have been issued */
};

#if __CUDA_ARCH__ >= 900

/* Chunks of rows by destination, the ranks behind this one first, this one last: at any time ranks send
 * to different ranks. */
struct destinations {
    int before[XP_EP_CUDA_MAX_RANKS + 1]; /* chunks to earlier destinations */
    int first[XP_EP_CUDA_MAX_RANKS], n_rows[XP_EP_CUDA_MAX_RANKS]; /* send rows */
    char *to[XP_EP_CUDA_MAX_RANKS];       /* where the first row is written */
    uint32_t *told[XP_EP_CUDA_MAX_RANKS]; /* NULL: nobody waits for the chunks */
    bool aligned;                         /* all `to` are multiples of 16 bytes */
};

/* Chunks of rows by source, in the order in which they send to this rank. */
struct arriving {
    int before[XP_EP_CUDA_MAX_RANKS + 1];
    int first[XP_EP_CUDA_MAX_RANKS], n_rows[XP_EP_CUDA_MAX_RANKS]; /* rows of the window */
    const uint32_t *arrived[XP_EP_CUDA_MAX_RANKS];
};

/* before[i + 1] = chunks of the rows of lanes 0 to i. One warp. */
static __device__ __forceinline__ void count_chunks(int n_rows, int n, int *before) {
    int sum = (n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane_id() >= step ? other : 0;
    }
    if (lane_id() < n)
        before[lane_id() + 1] = sum;
    if (lane_id() == 0)
        before[0] = 0;
}

/* One warp. */
static __device__ void find_destinations(const xp_ep_cuda_plan &p, const xp_ep_cuda_peers &peers,
                                         const xp_ep_cuda_arrivals &arrivals, int64_t round,
                                         int64_t row_bytes, destinations *all) {
    const int n = p.n_ranks, i = lane_id(), d = (p.rank + 1 + i) % n;
    int n_rows = 0;
    bool aligned = true;
    if (i < n) {
        const int first = p.send_round[round * n + d];
        n_rows = p.send_round[(round + 1) * n + d] - first;
        char *to = recv_of(p, peers, d) + p.dest_slot[round * n + d] * row_bytes;
        aligned = n_rows == 0 || (uintptr_t)to % 16 == 0;
        all->first[i] = first;
        all->n_rows[i] = n_rows;
        all->to[i] = to;
        all->told[i] = d != p.rank ? arrivals.told[d] : nullptr;
    }
    count_chunks(n_rows, n, all->before);
    aligned = __all_sync(ALL_LANES, aligned);
    if (i == 0)
        all->aligned = aligned;
}

/* One warp. */
static __device__ void find_arriving(const xp_ep_cuda_plan &p, const xp_ep_cuda_arrivals &arrivals,
                                     int64_t round, arriving *all) {
    const int n = p.n_ranks, i = lane_id(), s = (p.rank + 2 * n - 1 - i) % n;
    int n_rows = 0;
    if (i < n - 1) {
        const int begin = p.round_row[round], end = p.round_row[round + 1];
        const int low = p.recv_row_base[s], high = p.recv_row_base[s + 1];
        const int first = min(max(begin, low), high);
        n_rows = min(max(end, low), high) - first;
        all->first[i] = first - begin;
        all->n_rows[i] = n_rows;
        all->arrived[i] = arrivals.arrived + s * arrivals.n_words;
    }
    count_chunks(n_rows, n - 1, all->before);
}

/* A warp's ring; one lane calls what follows. Copy i uses stage i % STAGES. */
struct copy_ring {
    uint32_t stages, bars; /* shared memory */
    char **to;             /* [STAGES] */
    uint32_t *n_bytes;     /* [STAGES] */
    uint32_t n, n_stored;  /* loads and stores issued; a store is a bulk group */
    uint32_t *told;        /* the word of a chunk whose stores may be incomplete, or NULL */
    uint32_t told_end;     /* copies up to that chunk's last */
    uint32_t epoch;
};

/* What is known to be complete: see the order above. */
static __device__ __forceinline__ void tell(copy_ring &r) {
    store_release(r.told, r.epoch);
    r.told = nullptr;
}

static __device__ __forceinline__ void store_next(copy_ring &r) {
    const uint32_t i = r.n_stored++, stage = i % STAGES;
    mbarrier_wait(r.bars + stage * 8, i / STAGES & 1);
    /* Loaded and stored by the same proxy: the wait for the load orders the two. */
    bulk_store(r.to[stage], r.stages + stage * STAGE_BYTES, r.n_bytes[stage]);
    if (r.told != nullptr && r.n_stored >= r.told_end + TELL_LAG) {
        bulk_wait<TELL_LAG>();
        tell(r);
    }
}

/* At least n - LOADS stores have been issued before. That of the stage's last copy, n - STAGES, has
 * STAGES - 1 - LOADS groups behind it, or more. */
static __device__ __forceinline__ void add_copy(copy_ring &r, const char *from, char *to,
                                                uint32_t n_bytes) {
    const uint32_t stage = r.n % STAGES;
    if (r.n >= STAGES)
        bulk_wait_read<STAGES - 1 - LOADS>();
    r.to[stage] = to;
    r.n_bytes[stage] = n_bytes;
    bulk_load(r.stages + stage * STAGE_BYTES, from, n_bytes, r.bars + stage * 8);
    r.n++;
    if (r.n - r.n_stored > LOADS)
        store_next(r);
}

static __device__ __forceinline__ void add_copies(copy_ring &r, const char *from, char *to,
                                                  int64_t n_bytes) {
    for (int64_t at = 0; at < n_bytes; at += STAGE_BYTES)
        add_copy(r, from + at, to + at,
                 (uint32_t)min((long long)STAGE_BYTES, (long long)(n_bytes - at)));
}

static __device__ __forceinline__ void end_copies(copy_ring &r) {
    while (r.n_stored < r.n)
        store_next(r);
    bulk_wait<0>();
    if (r.told != nullptr)
        tell(r);
    __threadfence_system();
}

/* All copies so far are a chunk that somebody waits for. Only short chunks, the last ones of a
 * destination, follow so closely that the one before has not been told of. */
static __device__ __forceinline__ void end_chunk(copy_ring &r, uint32_t *told) {
    while (r.told != nullptr && r.n_stored < r.told_end)
        store_next(r);
    if (r.told != nullptr) {
        bulk_wait<0>();
        tell(r);
    }
    r.told = told;
    r.told_end = r.n;
}

/* Which chunks a warp takes: in turns, or the next one that nobody has taken. */
struct chunk_turns {
    int at, step;
    uint32_t *taken; /* NULL: in turns */
};

static __device__ __forceinline__ int next_chunk(chunk_turns &turns, int begin) {
    int c = turns.at;
    turns.at += turns.step;
    if (turns.taken == nullptr)
        return begin + c;
    if (lane_id() == 0)
        c = (int)atomicAdd(turns.taken, 1u);
    return begin + __shfl_sync(ALL_LANES, c, 0);
}

/* The token of this lane's row of chunk c. */
static __device__ __forceinline__ int chunk_token(const xp_ep_cuda_plan &p, const destinations &all,
                                                  int c, int end) {
    if (c >= end)
        return 0;
    const int at = owner_of(all.before, c), row = (c - all.before[at]) * CHUNK_ROWS + lane_id();
    return lane_id() < CHUNK_ROWS && row < all.n_rows[at] ? p.send_token[all.first[at] + row] : 0;
}

/* Chunks begin to end - 1. All lanes; the tokens of a warp's next chunk are loaded while it copies one. */
static __device__ void send_chunks(const xp_ep_cuda_plan &p, const destinations &all,
                                   copy_ring &ring, const char *x, int64_t row_bytes, int begin,
                                   int end, chunk_turns turns) {
    int next_c = next_chunk(turns, begin);
    int next = chunk_token(p, all, next_c, end);
    for (int c = next_c; c < end; c = next_c) {
        const int token = next, at = owner_of(all.before, c), k = c - all.before[at];
        const int n = min((int)CHUNK_ROWS, all.n_rows[at] - k * CHUNK_ROWS);
        char *to = all.to[at] + k * CHUNK_ROWS * row_bytes;
        next_c = next_chunk(turns, begin);
        next = chunk_token(p, all, next_c, end);
        for (int i = 0; i < n; i++) {
            const char *from = x + __shfl_sync(ALL_LANES, token, i) * row_bytes;
            if (lane_id() == 0)
                add_copies(ring, from, to + i * row_bytes, row_bytes);
            __syncwarp();
        }
        if (lane_id() == 0 && all.told[at] != nullptr)
            end_chunk(ring, all.told[at] + k);
        __syncwarp();
    }
}

/* Rows of other ranks from the window to where they are wanted. One lane. */
static __device__ void receive_chunks(const xp_ep_cuda_plan &p, const xp_ep_cuda_arrivals &arrivals,
                                      const arriving &all, copy_ring &ring, int64_t row_bytes,
                                      int worker, int n_workers) {
    for (int c = worker; c < all.before[p.n_ranks - 1]; c += n_workers) {
        const int at = owner_of(all.before, c), k = c - all.before[at];
        const int row = k * CHUNK_ROWS, n = min((int)CHUNK_ROWS, all.n_rows[at] - row);
        const int64_t offset = (all.first[at] + row) * row_bytes;
        const int source = (p.rank + 2 * p.n_ranks - 1 - at) % p.n_ranks;
        if (!wait_for_arrival(p, arrivals, all.arrived[at] + k, source))
            return;
        add_copies(ring, arrivals.from + offset, arrivals.to + offset, n * row_bytes);
    }
}

#endif

static __global__ void __launch_bounds__(WARPS * 32, 1)
    dispatch_bulk_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers,
                         const xp_ep_cuda_arrivals arrivals, int64_t round, int64_t row_bytes,
                         const char *x) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ destinations all;
    __shared__ arriving in;
    __shared__ uint64_t bars[WARPS][STAGES];
    __shared__ char *to[WARPS][STAGES];
    __shared__ uint32_t n_bytes[WARPS][STAGES];
    const int warp = (int)threadIdx.x / 32;
    if (is_aborted(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    if (warp == 0)
        find_destinations(p, peers, arrivals, round, row_bytes, &all);
    if (warp == 1 && arrivals.arrived != nullptr)
        find_arriving(p, arrivals, round, &in);
    if (lane_id() == 0) {
        for (int i = 0; i < STAGES; i++)
            mbarrier_init(hopper_shared(&bars[warp][i]), 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (all.aligned) {
        const int n_remote = all.before[p.n_ranks - 1], n_all = all.before[p.n_ranks];
        copy_ring ring = {hopper_shared(shared) + (uint32_t)(warp * STAGES * STAGE_BYTES),
                          hopper_shared(bars[warp]),
                          to[warp],
                          n_bytes[warp],
                          0,
                          0,
                          nullptr,
                          0,
                          arrivals.epoch};
        const bool sends = warp < SENDERS;
        const int n_each = sends ? SENDERS : WARPS - SENDERS;
        const int worker = (int)blockIdx.x * n_each + warp % SENDERS;
        const int n_workers = (int)gridDim.x * n_each;
        uint32_t *taken = sends && arrivals.abort != nullptr ? &arrivals.abort->n_taken : nullptr;
        send_chunks(p, all, ring, x, row_bytes, sends ? 0 : n_remote, sends ? n_remote : n_all,
                    {worker, n_workers, taken});
        if (lane_id() == 0) {
            if (!sends && arrivals.arrived != nullptr)
                receive_chunks(p, arrivals, in, ring, row_bytes, worker, n_workers);
            end_copies(ring);
        }
    } else { /* a destination's rows at an odd address; nobody waits for chunks then */
        dispatch_tokens(p, peers, round, row_bytes / 16, (const int4 *)x);
    }
    if (blockIdx.x == 0 && warp == 0)
        count_dispatched(p, round);
#endif
}

xp_status xp_ep_cuda_dispatch_rows_bulk(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                        const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                        const xp_ep_cuda_arrivals *arrivals, const void *x) {
    const int64_t n_rows = arrivals != NULL ? p->recv_capacity : p->n_tokens;
    const xp_ep_cuda_arrivals none = {};
    dispatch_bulk_kernel<<<bulk_blocks(rows, n_rows), WARPS * 32, XP_EP_BULK_SHARED_BYTES,
                           stream>>>(*p, *peers, arrivals != NULL ? *arrivals : none, rows->round,
                                     (int64_t)rows->row_bytes, (const char *)x);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

/* n_each words a chunk. One block. */
static __global__ void tell_all_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_arrivals arrivals,
                                       int64_t round, bool combine, int chunk_rows, int n_each) {
    const int n = p.n_ranks;
    if (is_aborted(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    __threadfence_system();
    for (int r = 0; r < n; r++) {
        const int n_rows = combine
                               ? p.recv_row_base[r + 1] - p.recv_row_base[r]
                               : p.send_round[(round + 1) * n + r] - p.send_round[round * n + r];
        const int n_words = (n_rows + chunk_rows - 1) / chunk_rows * n_each;
        for (int i = (int)threadIdx.x; i < n_words && r != p.rank; i += (int)blockDim.x)
            store_release(arrivals.told[r] + i, arrivals.epoch);
    }
}

xp_status xp_ep_cuda_tell_all(cudaStream_t stream, const xp_ep_cuda_plan *p,
                              const xp_ep_cuda_rows *rows, bool combine,
                              const xp_ep_cuda_arrivals *arrivals) {
    const int n_pieces = (int)((rows->row_bytes + STAGE_BYTES - 1) / STAGE_BYTES);
    tell_all_kernel<<<1, 256, 0, stream>>>(*p, *arrivals, rows->round, combine,
                                           combine ? XP_EP_CUDA_CHUNK_ROWS : (int)CHUNK_ROWS,
                                           combine ? n_pieces : 1);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

xp_status xp_ep_cuda_load_dispatch_bulk(bool *usable) {
    XP_TRY(load_kernels(tell_all_kernel));
    return load_bulk_kernel((const void *)dispatch_bulk_kernel, usable);
}
