/**
 * The expert rank's half of a plan. With one round, the other ranks' assignments go where their sources
 * say, one thread each. With several, this rank counts and places all assignments by round itself: one
 * block per tile of a round's rows, each warp a consecutive part of it row by row, one lane per
 * assignment.
 */
#ifndef XP_EP_COMMON_CUDA_PLAN_RECV_CUH
#define XP_EP_COMMON_CUDA_PLAN_RECV_CUH

#include "ep/common/cuda/plan_lists.cuh"

enum { PLACE_THREADS = 1024, ROUND_THREADS = 1024 };

/** Where this rank's assignments from rank s begin. */
static __device__ __forceinline__ const xp_ep_gpu_assignment *
assignments_from(const xp_ep_cuda_plan &p, int s) {
    return p.assignments_in[s] +
           (p.pulls ? p.source_assignment_base[s] : p.recv_assignment_base[s]);
}

/** Received assignments as one list, in shared memory. */
struct recv_list {
    int base[XP_EP_CUDA_MAX_RANKS + 1]; /* recv_assignment_base */
    const xp_ep_gpu_assignment *from[XP_EP_CUDA_MAX_RANKS];
};

/* All threads. */
static __device__ __forceinline__ void find_recv_list(const xp_ep_cuda_plan &p, recv_list &list) {
    for (int s = (int)threadIdx.x; s <= p.n_ranks; s += (int)blockDim.x) {
        list.base[s] = p.recv_assignment_base[s];
        if (s < p.n_ranks)
            list.from[s] = assignments_from(p, s);
    }
    __syncthreads();
}

static __device__ __forceinline__ xp_ep_gpu_assignment load_recv(const recv_list &list, int i) {
    const int s = owner_of(list.base, i);
    const int4 word = *(const int4 *)(list.from[s] + (i - list.base[s]));
    return {word.x, (uint32_t)word.y, __int_as_float(word.z), 0};
}

/* ---- rounds --------------------------------------------------------------------------------- */

/* The first of [low, high) whose assignment is not below `start`. */
static __device__ int first_row_at(const int32_t *assignment_of_row, int low, int high,
                                   int64_t start, int64_t shift) {
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (assignment_of_row[middle] + shift < start)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* xp_ep_shape_round_start() */
static __device__ int64_t round_start(const xp_ep_cuda_plan &p, int64_t n_assignments,
                                      int64_t round) {
    if (round == 0)
        return 0;
    return n_assignments <= p.assignment_capacity
               ? n_assignments
               : min((long long)(round * p.round_assignments), (long long)n_assignments);
}

/* What other ranks must know of each round: where their rows start in it. Where the host makes the
 * exchange, also the first assignment to and from each rank. */
static __device__ void publish_rounds(const xp_ep_cuda_plan &p) {
    const int n = p.n_ranks;
    for (int64_t i = threadIdx.x; i < (p.max_rounds + 1) * n; i += blockDim.x) {
        const int64_t r = i / n;
        const int s = (int)(i % n), low = p.recv_row_base[s], high = p.recv_row_base[s + 1];
        const int row = min(max(p.round_row[r], low), high);
        if (r < p.max_rounds)
            p.dest_slot[s * p.max_rounds + r] = row - p.round_row[r];
        p.first_assignments[r * 2 * n + s] = p.send_assignment[p.send_round[i]];
        p.first_assignments[r * 2 * n + n + s] = p.recv_assignment[row];
    }
}

/** One block: where each round starts, for each destination and here. Rounds that this routing does not
 * need are empty. */
static __device__ void find_rounds(const xp_ep_cuda_plan &p) {
    const int n = p.n_ranks, n_rounds = p.totals[TOTAL_ROUNDS], n_rows = p.totals[TOTAL_ROWS];
    for (int64_t i = threadIdx.x; i < (p.max_rounds + 1) * n; i += blockDim.x) {
        const int64_t r = i / n;
        const int d = (int)(i % n), base = p.send_row_base[d], end = p.send_row_base[d + 1];
        int row = r == 0 ? base : end;
        if (r > 0 && r < n_rounds)
            row = first_row_at(p.send_assignment, base, end,
                               round_start(p, p.totals[TOTAL_TO + d], r),
                               (int64_t)p.dest_assignment_base[d] - p.send_assignment_base[d]);
        p.send_round[i] = row;
    }
    for (int64_t r = threadIdx.x; r <= p.max_rounds; r += blockDim.x) {
        int row = r == 0 ? 0 : n_rows;
        if (r > 0 && r < n_rounds)
            row = first_row_at(p.recv_assignment, 0, n_rows,
                               round_start(p, p.totals[TOTAL_ASSIGNMENTS], r), 0);
        p.round_row[r] = row;
    }
    __syncthreads();
    for (int64_t r = threadIdx.x; r < p.max_rounds; r += blockDim.x)
        p.n_recv[r] = p.round_row[r + 1] - p.round_row[r];
    publish_rounds(p);
    if (threadIdx.x == 0) {
        const int later = p.totals[TOTAL_ASSIGNMENTS] - p.recv_assignment[p.round_row[1]];
        if (later > 0)
            atomicAdd(&p.status->overflow_rows, (unsigned long long)later);
    }
    __syncthreads();
}

/** Assignments of other ranks: to the experts' lists, or with several rounds their rows only. The block
 * that is done last finds the rounds then. */
template <typename Exchange>
static __global__ void __launch_bounds__(PLACE_THREADS)
    place_kernel(const xp_ep_cuda_plan p, const Exchange exchange) {
    __shared__ recv_list list;
    if (is_aborted(p) || !exchange.wait(p))
        return;
    const bool one_round = p.totals[TOTAL_ROUNDS] == 1;
    find_recv_list(p, list);
    const int own = list.base[p.rank], n_own = list.base[p.rank + 1] - own;
    const int n_others = list.base[p.n_ranks] - n_own;
    for (int other = (int)(blockIdx.x * blockDim.x + threadIdx.x); other < n_others;
         other += (int)(gridDim.x * blockDim.x)) {
        const int i = other < own ? other : other + n_own;
        const xp_ep_gpu_assignment a = load_recv(list, i);
        if ((a.to & (uint32_t)FIRST_ASSIGNMENT) != 0)
            p.recv_assignment[a.row] = i;
        if (one_round)
            place_assignment(p, i, (int)(a.to & ~(uint32_t)FIRST_ASSIGNMENT), a.row, a.weight);
    }
    if (one_round || !is_last_block(p))
        return;
    find_rounds(p);
    exchange.tell(p);
}

/* ---- several rounds ------------------------------------------------------------------------- */

/** A tile of a round's rows. Tiles of all rounds are numbered with gaps: those of a round begin at its
 * first row over tile_tokens, plus the rounds before. */
struct round_tile {
    int64_t round, first, n_rows, tile;
    bool is_empty;
};

static __device__ __forceinline__ int64_t first_tile(const xp_ep_cuda_plan &p, int64_t round) {
    return p.round_row[round] / p.tile_tokens + round;
}

static __device__ round_tile find_round_tile(const xp_ep_cuda_plan &p, int64_t index) {
    round_tile t = {0, 0, 0, 0, true};
    const int64_t n_rounds = p.totals[TOTAL_ROUNDS];
    while (t.round + 1 < n_rounds && first_tile(p, t.round + 1) <= index)
        t.round++;
    t.first = p.round_row[t.round];
    t.n_rows = p.round_row[t.round + 1] - t.first;
    t.tile = index - first_tile(p, t.round);
    t.is_empty = t.tile * p.tile_tokens >= t.n_rows;
    return t;
}

static __device__ __forceinline__ int64_t n_round_tiles(const xp_ep_cuda_plan &p) {
    return p.totals[TOTAL_ROWS] / p.tile_tokens + p.totals[TOTAL_ROUNDS];
}

/* One block: tile counts become exclusive prefix sums, their totals the experts' offsets. */
static __device__ void scan_rounds(const xp_ep_cuda_plan &p) {
    const int warp = (int)threadIdx.x / 32, n_warps = (int)blockDim.x / 32, n = p.n_local;
    for (int64_t i = warp; i < p.max_rounds * n; i += n_warps) {
        const int64_t r = i / n, e = i % n;
        const int64_t n_rows = p.round_row[r + 1] - p.round_row[r];
        const int sum = scan_column(p.round_counts + first_tile(p, r) * n + e, n,
                                    (n_rows + p.tile_tokens - 1) / p.tile_tokens);
        if (lane_id() == 0)
            p.offsets[r * (n + 1) + e] = sum;
    }
    __syncthreads();
    for (int64_t r = warp; r < p.max_rounds; r += n_warps) {
        int32_t *offsets = p.offsets + r * (n + 1);
        const int all = scan_column(offsets, 1, n);
        if (lane_id() == 0)
            offsets[n] = all;
        __syncwarp();
        for (int e = lane_id(); e < n; e += 32) /* all rows count as remote */
            p.own_rows[2 * (r * n + e)] = p.own_rows[2 * (r * n + e) + 1] = offsets[e];
    }
}

/** round_counts[tile] = assignments of each local expert. Counting has no order. */
static __global__ void __launch_bounds__(ROUND_THREADS)
    count_rounds_kernel(const xp_ep_cuda_plan p) {
    extern __shared__ int counts[];
    __shared__ recv_list list;
    if (is_aborted(p) || p.totals[TOTAL_ROUNDS] == 1)
        return;
    find_recv_list(p, list);
    for (int64_t index = blockIdx.x; index < n_round_tiles(p); index += gridDim.x) {
        const round_tile t = find_round_tile(p, index);
        if (t.is_empty)
            continue;
        for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x)
            counts[e] = 0;
        __syncthreads();
        const int64_t begin = t.first + t.tile * p.tile_tokens;
        const int64_t end =
            min((long long)(begin + p.tile_tokens), (long long)(t.first + t.n_rows));
        const int last = p.recv_assignment[end];
        for (int i = p.recv_assignment[begin] + (int)threadIdx.x; i < last; i += (int)blockDim.x)
            atomicAdd(&counts[load_recv(list, i).to & ~(uint32_t)FIRST_ASSIGNMENT], 1);
        __syncthreads();
        for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x)
            p.round_counts[index * p.n_local + e] = counts[e];
        __syncthreads();
    }
    if (is_last_block(p))
        scan_rounds(p);
}

/* A warp's rows to their experts' rows, in order; cursor [L] is the warp's. */
static __device__ void place_rows(const xp_ep_cuda_plan &p, const recv_list &list,
                                  const round_tile &t, const warp_range &range, int *cursor) {
    int32_t *gather = p.gather + t.round * p.assignment_capacity;
    float *weight = p.weight + t.round * p.assignment_capacity;
    for (int64_t row = range.begin; row < range.end; row += ROWS_IN_FLIGHT) {
        xp_ep_gpu_assignment assignment[ROWS_IN_FLIGHT];
        int at[ROWS_IN_FLIGHT];
        bool mine[ROWS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
            mine[i] = false;
            at[i] = 0;
            if (row + i < range.end) {
                at[i] = p.recv_assignment[row + i] + lane_id();
                mine[i] = at[i] < p.recv_assignment[row + i + 1];
            }
            if (mine[i])
                assignment[i] = load_recv(list, at[i]);
        }
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++) { /* a row's experts differ: no lanes collide */
            if (mine[i]) {
                const int to = cursor[assignment[i].to & ~(uint32_t)FIRST_ASSIGNMENT]++;
                p.assignment_pos[at[i]] = to;
                gather[to] = (int32_t)(row + i - t.first);
                weight[to] = assignment[i].weight;
            }
            __syncwarp();
        }
    }
}

/** With several rounds, where this rank's rows start at each destination: only the receiver knows which
 * rows of others share the round. One block. */
static __device__ void set_dest_slots(const xp_ep_cuda_plan &p, const int32_t *starts) {
    const int n = p.n_ranks, n_rounds = p.totals[TOTAL_ROUNDS];
    for (int64_t i = threadIdx.x; i < n_rounds * (int64_t)n; i += blockDim.x)
        p.dest_slot[i] = starts[i % n * p.max_rounds + i / n];
}

/** Every assignment to its expert-major row, rows ascending. Warps count in shared memory, the counts
 * become cursors, then each warp writes its part in order. Block 0 also takes what the exchange has
 * brought of where rounds start. */
template <typename Exchange>
static __global__ void __launch_bounds__(ROUND_THREADS)
    place_rounds_kernel(const xp_ep_cuda_plan p, const int32_t *starts, const Exchange exchange) {
    extern __shared__ int shared[];
    __shared__ recv_list list;
    if (is_aborted(p) || p.totals[TOTAL_ROUNDS] == 1)
        return;
    find_recv_list(p, list);
    const int n_warps = (int)blockDim.x / 32, n = p.n_local;
    int *cursor = shared + (int)threadIdx.x / 32 * n;
    for (int64_t index = blockIdx.x; index < n_round_tiles(p); index += gridDim.x) {
        const round_tile t = find_round_tile(p, index);
        if (t.is_empty)
            continue;
        const warp_range range = warp_range_of(t.first, t.n_rows, p.tile_tokens, t.tile);
        for (int i = (int)threadIdx.x; i < n * n_warps; i += (int)blockDim.x)
            shared[i] = 0;
        __syncthreads();
        if (range.begin < range.end) {
            const int last = p.recv_assignment[range.end];
            for (int i = p.recv_assignment[range.begin] + lane_id(); i < last; i += 32)
                atomicAdd(&cursor[load_recv(list, i).to & ~(uint32_t)FIRST_ASSIGNMENT], 1);
        }
        __syncthreads();
        const int32_t *offsets = p.offsets + t.round * (n + 1),
                      *before = p.round_counts + index * n;
        for (int e = (int)threadIdx.x; e < n; e += (int)blockDim.x) {
            int at = offsets[e] + before[e];
            for (int w = 0; w < n_warps; w++) {
                const int own = shared[w * n + e];
                shared[w * n + e] = at;
                at += own;
            }
        }
        __syncthreads();
        place_rows(p, list, t, range, cursor);
        __syncthreads();
    }
    if (blockIdx.x == 0 && starts != nullptr && exchange.wait(p))
        set_dest_slots(p, starts);
}

template <typename Exchange>
static inline void launch_place(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                const Exchange &exchange) {
    const int64_t most = p->n_ranks * p->max_tokens * p->row_assignments;
    if (p->n_ranks > 1 || p->max_rounds > 1)
        place_kernel<<<plan_blocks(p, tiles_of(most, PLACE_THREADS)), PLACE_THREADS, 0, stream>>>(
            *p, exchange);
}

/** @param starts  where rounds start at each destination, or NULL: set_dest_slots comes later */
template <typename Exchange>
static inline void launch_rounds(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                 const int32_t *starts, const Exchange &exchange) {
    const int n_warps = warps_for(p->n_local);
    if (p->max_rounds == 1)
        return;
    const unsigned n_blocks =
        plan_blocks(p, tiles_of(p->n_ranks * p->max_tokens, p->tile_tokens) + p->max_rounds);
    count_rounds_kernel<<<n_blocks, ROUND_THREADS, (size_t)p->n_local * 4, stream>>>(*p);
    place_rounds_kernel<<<n_blocks, n_warps * 32, (size_t)(p->n_local * n_warps) * 4, stream>>>(
        *p, starts, exchange);
}

#endif
