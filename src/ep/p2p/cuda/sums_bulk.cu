/*
 * Combine's first level by bulk copies: the expert rows of a token come into shared memory, are added in
 * fp32, ascending expert, and the sum goes from shared memory into the window of the token's source.
 * A unit is one column piece of UNIT_ROWS consecutive recv rows; warps take units in turns. Each warp
 * has LOAD_STAGES stages for expert rows and one for the sum, and fills the stages ahead of the
 * additions, past the ends of rows and units. Nothing synchronises warps, and no kernel waits for
 * another rank; the stores are complete when the kernel ends (bulk.cuh).
 */
#include "ep/common/cuda/rows.cuh"
#include "ep/p2p/cuda/bulk.cuh"
#include "ep/p2p/cuda/dispatch_tokens.cuh"
#include "ep/p2p/cuda/rows_bulk.h"

enum {
    WARPS = XP_EP_BULK_WARPS,
    LOAD_STAGES = XP_EP_BULK_STAGES - 1,
    STAGE_BYTES = XP_EP_BULK_STAGE_BYTES,
    UNIT_ROWS = 4,
    VECTORS = STAGE_BYTES / 16 / 32, /* 16-byte vectors a lane of a full stage */
};

#if __CUDA_ARCH__ >= 900

/* What the low bits of a target address say about a load. */
enum { FIRST_OF_ROW = 1, LAST_OF_ROW = 2, LAST_PIECE = 4, TARGET_BITS = 7 };

/* Where the sums of recv row r go: to[s] + r * row_bytes, s being its source. */
struct sum_targets {
    int first[XP_EP_CUDA_MAX_RANKS + 1]; /* recv_row_base */
    char *to[XP_EP_CUDA_MAX_RANKS];
};

/* Recv rows of this round: two runs, around those that this rank does not send. */
struct row_runs {
    int begin[2], end[2];
};

struct sum_units {
    row_runs runs;
    int64_t n, n_first; /* of both runs, of the first */
    int n_pieces;
    uint32_t piece_bytes, last_bytes;
};

struct unit {
    int row, n_rows, piece;
};

static __device__ __forceinline__ int64_t chunks_of(int begin, int end) {
    return (end - begin + UNIT_ROWS - 1) / UNIT_ROWS;
}

static __device__ __forceinline__ sum_units find_units(const xp_ep_cuda_plan &p, int64_t round,
                                                       int64_t row_bytes) {
    const int begin = p.round_row[round], end = p.round_row[round + 1];
    sum_units u = {{{begin, end}, {end, end}}, 0, 0, 0, 0, 0};
    if (p.totals[TOTAL_ROUNDS] == 1) { /* this rank's own rows are summed where they are wanted */
        u.runs.end[0] = min(max(p.recv_row_base[p.rank], begin), end);
        u.runs.begin[1] = min(max(p.recv_row_base[p.rank + 1], begin), end);
    }
    u.n_pieces = (int)((row_bytes + STAGE_BYTES - 1) / STAGE_BYTES);
    u.piece_bytes = (uint32_t)((row_bytes / 16 + u.n_pieces - 1) / u.n_pieces * 16);
    u.last_bytes = (uint32_t)(row_bytes - (int64_t)(u.n_pieces - 1) * u.piece_bytes);
    u.n_first = chunks_of(u.runs.begin[0], u.runs.end[0]) * u.n_pieces;
    u.n = u.n_first + chunks_of(u.runs.begin[1], u.runs.end[1]) * u.n_pieces;
    return u;
}

static __device__ __forceinline__ unit unit_of(const sum_units &u, int64_t i) {
    const int run = i >= u.n_first;
    const int64_t at = run ? i - u.n_first : i;
    const int row = u.runs.begin[run] + (int)(at / u.n_pieces) * UNIT_ROWS;
    return {row, min(UNIT_ROWS, u.runs.end[run] - row), (int)(at % u.n_pieces)};
}

/* The loads of a warp in order: a batch of up to 32, one a lane, is being issued while the numbers of
 * the next are on their way. */
struct load_list {
    const char *from; /* this lane's load of the batch */
    uint64_t target;  /* where the sum of its row goes, and the bits above */
    int n, next;      /* of the batch */
    /* The batch behind it: */
    unit of;
    int starts;        /* first assignment of row of.row + lane */
    int first, n_more; /* its first assignment, how many */
    int rest_end;      /* end of the unit's assignments */
    int position;      /* expert row of assignment first + lane */
    /* The unit behind that: */
    int64_t unit_index;
    int next_starts;
};

static __device__ __forceinline__ int load_starts(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  int64_t index) {
    if (index >= u.n)
        return 0;
    const unit at = unit_of(u, index);
    return p.recv_assignment[at.row + min(lane_id(), at.n_rows)];
}

/* Look the next batch up; n_more = 0: there is none. */
static __device__ __forceinline__ void look_ahead(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  int64_t n_workers, load_list &l) {
    l.first += l.n_more;
    if (l.first >= l.rest_end) {
        l.n_more = 0;
        if (l.unit_index >= u.n)
            return;
        l.of = unit_of(u, l.unit_index);
        l.starts = l.next_starts;
        l.unit_index += n_workers;
        l.next_starts = load_starts(p, u, l.unit_index);
        l.first = __shfl_sync(ALL_LANES, l.starts, 0);
        l.rest_end = __shfl_sync(ALL_LANES, l.starts, l.of.n_rows);
    }
    l.n_more = min(32, l.rest_end - l.first);
    if (lane_id() < l.n_more)
        l.position = p.assignment_pos[l.first + lane_id()];
}

/* The batch that was looked up becomes the one to issue. */
static __device__ __forceinline__ void next_batch(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  const sum_targets &targets, const char *y,
                                                  int64_t row_bytes, int64_t n_workers,
                                                  load_list &l) {
    const int assignment = l.first + lane_id();
    int row = l.of.row - 1;
    uint64_t bits = l.of.piece == u.n_pieces - 1 ? LAST_PIECE : 0;
    for (int i = 0; i <= UNIT_ROWS; i++) {
        const int start = __shfl_sync(ALL_LANES, l.starts, i);
        if (i < l.of.n_rows && start <= assignment) {
            row++;
            bits |= start == assignment ? FIRST_OF_ROW : 0;
        }
        if (i > 0 && i <= l.of.n_rows && start == assignment + 1)
            bits |= LAST_OF_ROW;
    }
    const int64_t column = (int64_t)l.of.piece * u.piece_bytes;
    l.n = l.n_more;
    l.next = 0;
    if (lane_id() < l.n) {
        l.from = y + l.position * row_bytes + column;
        l.target =
            (uint64_t)(targets.to[owner_of(targets.first, row)] + row * row_bytes + column) | bits;
    }
    look_ahead(p, u, n_workers, l);
}

/* A warp's stages. Lane i holds the target of the load in stage i. */
struct sum_ring {
    char *stages; /* LOAD_STAGES, then one for the sum */
    uint32_t bars;
    uint64_t target;
};

static __device__ __forceinline__ uint32_t bytes_of(const sum_units &u, uint64_t target) {
    return (target & LAST_PIECE) != 0 ? u.last_bytes : u.piece_bytes;
}

/* The list's next load into a stage that all lanes have read. */
static __device__ __forceinline__ void issue_load(const sum_units &u, load_list &l, int stage,
                                                  sum_ring &ring) {
    const uint64_t from = __shfl_sync(ALL_LANES, (unsigned long long)l.from, l.next),
                   target = __shfl_sync(ALL_LANES, (unsigned long long)l.target, l.next);
    l.next++;
    if (lane_id() == stage)
        ring.target = target;
    if (lane_id() == 0)
        bulk_load(hopper_shared(ring.stages + stage * STAGE_BYTES), (const void *)from,
                  bytes_of(u, target), ring.bars + (uint32_t)stage * 8);
}

template <typename T>
static __device__ __forceinline__ void add_stage(float (&sum)[VECTORS][xp_wide<T>()],
                                                 const char *stage, int n_vectors, bool first) {
    constexpr int N = xp_wide<T>();
    vec<T, N> piece[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (k * 32 + lane_id() < n_vectors)
            piece[k] = load_vec<T, N>((const T *)(stage + (k * 32 + lane_id()) * 16));
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        if (k * 32 + lane_id() >= n_vectors)
            continue;
        float value[N];
        unpack(piece[k], value);
        if (first) {
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[k][i] = value[i];
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                sum[k][i] += value[i];
        }
    }
}

/* The sum of a row's piece, rounded, to its source. */
template <typename T>
static __device__ __forceinline__ void send_sum(const float (&sum)[VECTORS][xp_wide<T>()],
                                                char *stage, uint64_t target, uint32_t n_bytes) {
    constexpr int N = xp_wide<T>();
    if (lane_id() == 0)
        bulk_wait_read<0>(); /* the sum before this one has left the stage */
    __syncwarp();
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (k * 32 + lane_id() < (int)n_bytes / 16)
            store_vec<T, N>((T *)(stage + (k * 32 + lane_id()) * 16), sum[k]);
    /* Each lane's writes become visible to the async proxy, then one lane, ordered behind all by the
     * warp's barrier, issues the store that reads them. */
    async_proxy_fence();
    __syncwarp();
    if (lane_id() == 0)
        bulk_store((void *)(target & ~(uint64_t)TARGET_BITS), hopper_shared(stage), n_bytes);
}

template <typename T>
static __device__ __forceinline__ void sum_all(const xp_ep_cuda_plan &p, const sum_units &u,
                                               const sum_targets &targets, const char *y,
                                               int64_t row_bytes, sum_ring &ring) {
    const int64_t n_workers = warp_count();
    load_list l = {};
    l.unit_index = warp_id();
    l.next_starts = load_starts(p, u, l.unit_index);
    look_ahead(p, u, n_workers, l);
    next_batch(p, u, targets, y, row_bytes, n_workers, l);
    int n_full = 0;
    for (; n_full < LOAD_STAGES && l.next < l.n; n_full++) {
        issue_load(u, l, n_full, ring);
        if (l.next == l.n)
            next_batch(p, u, targets, y, row_bytes, n_workers, l);
    }
    float sum[VECTORS][xp_wide<T>()];
    for (uint32_t stage = 0, parity = 0; n_full > 0; n_full--) {
        const char *at = ring.stages + stage * STAGE_BYTES;
        const uint64_t target =
            __shfl_sync(ALL_LANES, (unsigned long long)ring.target, (int)stage);
        const uint32_t n_bytes = bytes_of(u, target);
        mbarrier_wait(ring.bars + stage * 8, parity);
        add_stage<T>(sum, at, (int)n_bytes / 16, (target & FIRST_OF_ROW) != 0);
        __syncwarp(); /* all lanes have read the stage */
        if (l.next < l.n) {
            issue_load(u, l, (int)stage, ring);
            n_full++;
            if (l.next == l.n)
                next_batch(p, u, targets, y, row_bytes, n_workers, l);
        }
        if ((target & LAST_OF_ROW) != 0)
            send_sum<T>(sum, ring.stages + LOAD_STAGES * STAGE_BYTES, target, n_bytes);
        stage = stage + 1 < LOAD_STAGES ? stage + 1 : 0;
        parity ^= stage == 0;
    }
    if (lane_id() == 0) {
        bulk_wait<0>();
        __threadfence_system();
    }
}

#endif

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32, 1)
    push_sums_bulk_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                          int64_t row_bytes, const char *y) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ sum_targets targets;
    __shared__ uint64_t bars[WARPS][LOAD_STAGES];
    const int warp = (int)threadIdx.x / 32, n = p.n_ranks;
    if (is_aborted(p))
        return;
    if ((int)threadIdx.x <= n)
        targets.first[threadIdx.x] = p.recv_row_base[threadIdx.x];
    if ((int)threadIdx.x < n)
        targets.to[threadIdx.x] =
            peers.combine_rows[threadIdx.x] +
            (p.source_row_base[threadIdx.x] - p.recv_row_base[threadIdx.x]) * row_bytes;
    if (lane_id() == 0) {
        for (int i = 0; i < LOAD_STAGES; i++)
            mbarrier_init(hopper_shared(&bars[warp][i]), 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    const sum_units units = find_units(p, round, row_bytes);
    sum_ring ring = {shared + warp * XP_EP_BULK_STAGES * STAGE_BYTES, hopper_shared(bars[warp]), 0};
    if (warp_id() < units.n)
        sum_all<T>(p, units, targets, y, row_bytes, ring);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        count_combined(p, p.round_row[round], p.round_row[round + 1]);
#endif
}

xp_status xp_ep_cuda_push_sums_bulk(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                    const void *y) {
    const unsigned n_blocks = bulk_blocks(rows, p->recv_capacity);
    if (rows->bf16)
        push_sums_bulk_kernel<bf16><<<n_blocks, WARPS * 32, XP_EP_BULK_SHARED_BYTES, stream>>>(
            *p, *peers, rows->round, (int64_t)rows->row_bytes, (const char *)y);
    else
        push_sums_bulk_kernel<float><<<n_blocks, WARPS * 32, XP_EP_BULK_SHARED_BYTES, stream>>>(
            *p, *peers, rows->round, (int64_t)rows->row_bytes, (const char *)y);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_load_sums_bulk(bool *usable) {
    XP_TRY(load_bulk_kernel((const void *)push_sums_bulk_kernel<bf16>, usable));
    return load_bulk_kernel((const void *)push_sums_bulk_kernel<float>, usable);
}
