/*
 * The expert rank's half of a plan: rounds, then for each round the experts' lists. One block per
 * tile of the round's rows; each warp processes a consecutive part of it row by row, one lane per
 * assignment. Kernels follow each other on the stream; nothing else synchronises them.
 */
#include "ep/common/cuda/plan_common.cuh"

enum { FIND_WARPS = 16, COUNT_THREADS = 1024 };

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

static __device__ __forceinline__ bool starts_row(const xp_ep_cuda_plan &p, int64_t assignment) {
    return assignment < p.totals[TOTAL_ASSIGNMENTS] &&
           (p.assignments[assignment].expert & (uint32_t)FIRST_ASSIGNMENT) != 0;
}

/* tile_counts[tile] = rows that start among the tile's assignments. */
static __global__ void count_rows_kernel(const xp_ep_cuda_plan p, int64_t tile_assignments) {
    __shared__ int n_rows;
    if (is_aborted(p))
        return;
    if (threadIdx.x == 0)
        n_rows = 0;
    __syncthreads();
    int own = 0;
    for (int64_t i = threadIdx.x; i < tile_assignments; i += blockDim.x)
        own += starts_row(p, blockIdx.x * tile_assignments + i);
    own = __reduce_add_sync(ALL_LANES, own);
    if (lane_id() == 0)
        atomicAdd(&n_rows, own);
    __syncthreads();
    if (threadIdx.x == 0)
        p.tile_counts[blockIdx.x] = n_rows;
}

/* One warp: the tiles' first rows. */
static __global__ void scan_rows_kernel(const xp_ep_cuda_plan p, int64_t n_tiles) {
    if (is_aborted(p))
        return;
    scan_column(p.tile_counts, 1, n_tiles);
    if (lane_id() == 0)
        p.recv_assignment[p.totals[TOTAL_ROWS]] = p.totals[TOTAL_ASSIGNMENTS];
}

/* recv_assignment: the first assignment of each row. A block goes through its tile in steps of one
 * assignment per thread. */
static __global__ void find_rows_kernel(const xp_ep_cuda_plan p, int64_t tile_assignments) {
    __shared__ int before[FIND_WARPS];
    if (is_aborted(p))
        return;
    int row = p.tile_counts[blockIdx.x];
    for (int64_t i = threadIdx.x; i - threadIdx.x < tile_assignments; i += blockDim.x) {
        const int64_t assignment = blockIdx.x * tile_assignments + i;
        const bool first = i < tile_assignments && starts_row(p, assignment);
        const unsigned firsts = __ballot_sync(ALL_LANES, first);
        if (lane_id() == 0)
            before[threadIdx.x / 32] = __popc(firsts);
        __syncthreads();
        int at = row + __popc(firsts & ((1u << lane_id()) - 1));
        for (int w = 0; w < FIND_WARPS; w++) {
            at += w < (int)threadIdx.x / 32 ? before[w] : 0;
            row += before[w];
        }
        if (first)
            p.recv_assignment[at] = (int32_t)assignment;
        __syncthreads();
    }
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

/* One block: where each round starts, for each destination and here. Rounds that this routing does
 * not need are empty. */
static __global__ void rounds_kernel(const xp_ep_cuda_plan p) {
    const int n = p.n_ranks, n_rounds = p.totals[TOTAL_ROUNDS], n_rows = p.totals[TOTAL_ROWS];
    if (is_aborted(p))
        return;
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
    if (n > 1)
        publish_rounds(p);
    if (threadIdx.x == 0) {
        const int later = p.totals[TOTAL_ASSIGNMENTS] - p.recv_assignment[p.round_row[1]];
        if (later > 0)
            atomicAdd(&p.status->overflow_rows, (unsigned long long)later);
    }
}

/* tile_counts[tile] = assignments of each local expert. Counting has no order. */
static __global__ void count_kernel(const xp_ep_cuda_plan p, int64_t round) {
    extern __shared__ int counts[];
    if (is_aborted(p))
        return;
    const int64_t first = p.round_row[round], n_rows = p.round_row[round + 1] - first;
    for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x)
        counts[e] = 0;
    __syncthreads();
    const int64_t begin = min((long long)(blockIdx.x * p.tile_tokens), (long long)n_rows),
                  end = min((long long)(begin + p.tile_tokens), (long long)n_rows);
    const int last = p.recv_assignment[first + end];
    for (int i = p.recv_assignment[first + begin] + (int)threadIdx.x; i < last;
         i += (int)blockDim.x)
        atomicAdd(&counts[p.assignments[i].expert & ~(uint32_t)FIRST_ASSIGNMENT], 1);
    __syncthreads();
    for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x)
        p.tile_counts[blockIdx.x * (int64_t)p.n_local + e] = counts[e];
}

/* own_rows of a round whose offsets are known: within an expert rows are ordered by source. In more than
 * one round all rows count as remote. */
static __device__ void find_own_rows(const xp_ep_cuda_plan &p, int64_t round,
                                     const int32_t *offsets) {
    const bool one_round = p.totals[TOTAL_ROUNDS] == 1 && p.totals[TOTAL_REFUSED] == 0;
    int32_t *own_rows = p.own_rows + round * p.n_local * 2;
    for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x) {
        const int32_t *counts = p.rank_counts + p.rank * p.n_local + e;
        int first = offsets[e], n = 0;
        if (one_round && round == 0) {
            for (int s = 0; s < p.rank; s++)
                first += counts[s * p.counts_ints];
            n = counts[p.rank * p.counts_ints];
        }
        own_rows[2 * e] = first;
        own_rows[2 * e + 1] = first + n;
    }
}

/* One block: tile counts become exclusive prefix sums, their totals the experts' offsets. */
static __global__ void scan_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_tiles) {
    int32_t *offsets = p.offsets + round * (p.n_local + 1);
    if (is_aborted(p))
        return;
    for (int e = (int)threadIdx.x / 32; e < p.n_local; e += (int)blockDim.x / 32) {
        const int sum = scan_column(p.tile_counts + e, p.n_local, n_tiles);
        if (lane_id() == 0)
            offsets[e] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const int all = scan_column(offsets, 1, p.n_local);
        if (threadIdx.x == 0)
            offsets[p.n_local] = all;
    }
    __syncthreads();
    find_own_rows(p, round, offsets);
}

/* The token of a recv row of this rank's own, in a plan of one round; -1: another's. */
static __device__ __forceinline__ int own_token_of(const xp_ep_cuda_plan &p, int64_t row) {
    const int64_t own = row - p.recv_row_base[p.rank];
    return own >= 0 && row < p.recv_row_base[p.rank + 1] && p.totals[TOTAL_ROUNDS] == 1
               ? p.send_token[p.send_row_base[p.rank] + own]
               : -1;
}

/* Every assignment to its expert-major row, rows ascending. Warps count in shared memory, the counts
 * become cursors, then each warp writes its part in order. */
static __global__ void __launch_bounds__(1024)
    scatter_kernel(const xp_ep_cuda_plan p, int64_t round) {
    extern __shared__ int shared[];
    if (is_aborted(p))
        return;
    const int64_t first = p.round_row[round], n_rows = p.round_row[round + 1] - first;
    if ((int64_t)blockIdx.x * p.tile_tokens >= n_rows)
        return;
    const int n_warps = (int)blockDim.x / 32, n = p.n_local;
    const warp_range range = warp_range_of(first, n_rows, p.tile_tokens);
    int *cursor = shared + (int)threadIdx.x / 32 * n;
    for (int i = (int)threadIdx.x; i < n * n_warps; i += (int)blockDim.x)
        shared[i] = 0;
    __syncthreads();
    if (range.begin < range.end) {
        const int last = p.recv_assignment[range.end];
        for (int i = p.recv_assignment[range.begin] + lane_id(); i < last; i += 32)
            atomicAdd(&cursor[p.assignments[i].expert & ~(uint32_t)FIRST_ASSIGNMENT], 1);
    }
    __syncthreads();
    const int32_t *offsets = p.offsets + round * (n + 1),
                  *before = p.tile_counts + blockIdx.x * (int64_t)n;
    for (int e = (int)threadIdx.x; e < n; e += (int)blockDim.x) {
        int at = offsets[e] + before[e];
        for (int w = 0; w < n_warps; w++) {
            const int own = shared[w * n + e];
            shared[w * n + e] = at;
            at += own;
        }
    }
    __syncthreads();
    int32_t *gather = p.gather + round * p.assignment_capacity;
    float *weight = p.weight + round * p.assignment_capacity;
    for (int64_t row = range.begin; row < range.end; row += TOKENS_IN_FLIGHT) {
        xp_ep_assignment assignment[TOKENS_IN_FLIGHT];
        int at[TOKENS_IN_FLIGHT], token[TOKENS_IN_FLIGHT];
        bool mine[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++) {
            mine[i] = false;
            at[i] = 0;
            token[i] = -1;
            if (row + i < range.end) {
                token[i] = own_token_of(p, row + i);
                at[i] = p.recv_assignment[row + i] + lane_id();
                mine[i] = at[i] < p.recv_assignment[row + i + 1];
            }
            assignment[i] = mine[i] ? p.assignments[at[i]] : xp_ep_assignment{0, 0};
        }
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT;
             i++) { /* a row's experts differ: no two lanes collide */
            if (mine[i]) {
                const int to = cursor[assignment[i].expert & ~(uint32_t)FIRST_ASSIGNMENT]++;
                p.assignment_pos[at[i]] = to;
                gather[to] = (int32_t)(row + i - first);
                weight[to] = assignment[i].weight;
                if (token[i] >= 0)
                    p.own_token[to] = token[i];
            }
            __syncwarp();
        }
    }
}

/* The rows of a rank among several are known by the first assignment of each. */
static void find_rows(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    const int64_t tile_assignments = p->tile_tokens * p->row_assignments;
    const int64_t n_tiles = tiles_of(p->n_ranks * p->max_tokens, p->tile_tokens);
    count_rows_kernel<<<(unsigned)n_tiles, FIND_WARPS * 32, 0, stream>>>(*p, tile_assignments);
    scan_rows_kernel<<<1, 32, 0, stream>>>(*p, n_tiles);
    find_rows_kernel<<<(unsigned)n_tiles, FIND_WARPS * 32, 0, stream>>>(*p, tile_assignments);
}

xp_status xp_ep_cuda_build_recv(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    const int n_warps = warps_for(p->n_local);
    const int64_t n_tiles = tiles_of(p->recv_capacity, p->tile_tokens);
    if (p->n_ranks > 1)
        find_rows(stream, p);
    rounds_kernel<<<1, 256, 0, stream>>>(*p);
    for (int64_t round = 0; round < p->max_rounds; round++) {
        count_kernel<<<(unsigned)n_tiles, COUNT_THREADS, (size_t)p->n_local * 4, stream>>>(*p,
                                                                                           round);
        scan_kernel<<<1, 1024, 0, stream>>>(*p, round, n_tiles);
        scatter_kernel<<<(unsigned)n_tiles, n_warps * 32, (size_t)(p->n_local * n_warps) * 4,
                         stream>>>(*p, round);
    }
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: experts' rows");
}

/* With one round this rank's rows start behind those of the ranks before it, which the counts tell.
 * With several, only the receiver knows which rows of others share the round. */
static __global__ void dest_slots_kernel(const xp_ep_cuda_plan p, const int32_t *starts) {
    const int n = p.n_ranks, n_rounds = p.totals[TOTAL_ROUNDS];
    if (is_aborted(p))
        return;
    for (int64_t i = threadIdx.x; i < n_rounds * (int64_t)n; i += blockDim.x) {
        const int64_t r = i / n, d = i % n;
        p.dest_slot[i] = n_rounds == 1 ? p.dest_row_base[d] : starts[d * p.max_rounds + r];
    }
}

xp_status xp_ep_cuda_set_dest_slots(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const int32_t *starts) {
    dest_slots_kernel<<<1, 256, 0, stream>>>(*p, starts);
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: rounds");
}

xp_status xp_ep_cuda_load_plan_recv(void) {
    return load_kernels(count_rows_kernel, scan_rows_kernel, find_rows_kernel, rounds_kernel,
                        count_kernel, scan_kernel, scatter_kernel, dest_slots_kernel);
}
