/*
 * The source's half of a plan. One block per tile of tokens; each warp processes a consecutive part
 * of the tile token by token, one lane per assignment. Positions come from counts by tile (route),
 * their prefix sums (totals), and counts by warp inside the tile, so every index is fixed by the
 * routing alone. Kernels follow each other on the stream; nothing else synchronises them.
 */
#include "ep/common/cuda/plan_common.cuh"

/* Kinds of xp_ep_routing_error. */
enum { DUPLICATE = 1, OUT_OF_RANGE = 2 };

static __device__ void refuse(const xp_ep_cuda_plan &p, int64_t token, int kind, int value) {
    const unsigned long long key = (unsigned long long)token << 32 |
                                   (unsigned long long)kind << 28 | ((unsigned)value & 0x0fffffffu);
    atomicMin(p.refused, key);
}

/* A lane's assignment of a token: its expert, -1 without one. */
static __device__ __forceinline__ int load_assignment(const xp_ep_cuda_plan &p, int64_t t,
                                                      int64_t end) {
    return t < end && lane_id() < p.top_k ? p.topk_idx[t * p.top_k + lane_id()] : -1;
}

/* Lanes whose assignments go to the same rank; lanes without an assignment are alone. */
static __device__ __forceinline__ unsigned same_rank(int id, int rank) {
    return __match_any_sync(ALL_LANES, id >= 0 ? rank : -1 - lane_id());
}

static __device__ void count_token(const xp_ep_cuda_plan &p, int64_t t, int id, int *counts) {
    const bool bad = id < -1 || id >= p.n_experts;
    const unsigned any_bad = __ballot_sync(ALL_LANES, bad);
    if (any_bad != 0) {
        if (lane_id() == __ffs((int)any_bad) - 1)
            refuse(p, t, OUT_OF_RANGE, id);
        return;
    }
    const bool selected = id >= 0;
    const unsigned twins = __match_any_sync(ALL_LANES, selected ? id : -1 - lane_id());
    if (selected && lane_id() == __ffs((int)twins) - 1) {
        counts[id]++;
        if ((twins & (twins - 1)) != 0)
            refuse(p, t, DUPLICATE, id);
    }
    const int rank = selected ? id / p.n_local : 0;
    const unsigned peers = same_rank(id, rank);
    if (selected && lane_id() == __ffs((int)peers) - 1)
        counts[p.n_experts + rank]++;
    const bool empty = __ballot_sync(ALL_LANES, selected) == 0;
    if (p.local && empty && lane_id() == 0)
        counts[p.n_experts]++;
    __syncwarp();
}

/* tile_counts[tile] = assignments of each expert, rows to each rank. One block per tile; warps count
 * in shared memory of their own, then the block adds up. */
static __global__ void __launch_bounds__(1024) route_kernel(const xp_ep_cuda_plan p) {
    extern __shared__ int counts[];
    if (is_aborted(p))
        return;
    const int width = p.n_experts + p.n_ranks, n_warps = (int)blockDim.x / 32;
    for (int i = (int)threadIdx.x; i < width * n_warps; i += (int)blockDim.x)
        counts[i] = 0;
    __syncthreads();
    const warp_range range = warp_range_of(0, p.n_tokens, p.tile_tokens);
    int *own = counts + (int)threadIdx.x / 32 * width;
    for (int64_t t = range.begin; t < range.end; t += TOKENS_IN_FLIGHT) {
        int id[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            id[i] = load_assignment(p, t + i, range.end);
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            if (t + i < range.end)
                count_token(p, t + i, id[i], own);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < width; i += (int)blockDim.x) {
        int sum = 0;
        for (int w = 0; w < n_warps; w++)
            sum += counts[w * width + i];
        p.tile_counts[blockIdx.x * (int64_t)width + i] = sum;
    }
}

/* One block: tile counts become exclusive prefix sums, their totals this rank's counts. */
static __global__ void totals_kernel(const xp_ep_cuda_plan p, int64_t n_tiles) {
    const int width = p.n_experts + p.n_ranks, n_warps = (int)blockDim.x / 32;
    const unsigned long long key = *p.refused;
    const bool refused = key != ~0ull || p.bad_kind != 0;
    if (is_aborted(p))
        return;
    for (int i = (int)threadIdx.x / 32; i < width; i += n_warps) {
        const int sum = scan_column(p.tile_counts + i, width, n_tiles);
        if (lane_id() == 0)
            p.own_counts[i] = refused ? 0 : sum;
    }
    if (threadIdx.x == 0) {
        int32_t *error = p.own_counts + width;
        error[0] = !refused ? 0 : p.bad_kind != 0 ? p.bad_kind : (int)(key >> 28 & 15);
        error[1] = refused && p.bad_kind == 0 ? (int)(key >> 32) : 0;
        error[2] = !refused ? 0 : p.bad_kind != 0 ? p.bad_value : (int)((unsigned)key << 4) >> 4;
        error[3] = 0;
    }
}

/* One block: from every rank's counts to prefix sums by rank and the number of rounds. */
static __global__ void derive_kernel(const xp_ep_cuda_plan p) {
    __shared__ int rows[XP_EP_CUDA_MAX_RANKS][XP_EP_CUDA_MAX_RANKS],
        assignments[XP_EP_CUDA_MAX_RANKS][XP_EP_CUDA_MAX_RANKS];
    const int n = p.n_ranks, me = p.rank;
    int bad_rank = -1;
    if (is_aborted(p))
        return;
    for (int r = n - 1; r >= 0; r--)
        if (p.rank_counts[r * p.counts_ints + p.n_experts + n] != 0)
            bad_rank = r;
    for (int i = (int)threadIdx.x / 32; i < n * n; i += (int)blockDim.x / 32) {
        const int s = i / n, d = i % n;
        const int32_t *counts = p.rank_counts + s * p.counts_ints;
        int sum = 0;
        for (int e = lane_id(); e < p.n_local; e += 32)
            sum += counts[d * p.n_local + e];
        sum = __reduce_add_sync(ALL_LANES, sum);
        if (lane_id() == 0) {
            assignments[s][d] = bad_rank >= 0 ? 0 : sum;
            rows[s][d] = bad_rank >= 0 ? 0 : counts[p.n_experts + d];
        }
    }
    for (int e = (int)threadIdx.x; e < p.n_local; e += (int)blockDim.x) {
        int64_t sum = 0;
        for (int r = 0; r < n && bad_rank < 0; r++)
            sum += p.rank_counts[r * p.counts_ints + me * p.n_local + e];
        p.expert_tokens[e] = sum;
    }
    __syncthreads();
    const int r = (int)threadIdx.x;
    if (r < n) { /* this rank's offsets among the others, at r and from r */
        int dest_rows = 0, dest_assignments = 0, source_rows = 0, source_assignments = 0, all = 0;
        int send_rows = 0, send_assignments = 0, recv_rows = 0, recv_assignments = 0;
        for (int i = 0; i < n; i++) {
            dest_rows += i < me ? rows[i][r] : 0;
            dest_assignments += i < me ? assignments[i][r] : 0;
            source_rows += i < me ? rows[r][i] : 0;
            source_assignments += i < me ? assignments[r][i] : 0;
            send_rows += i < r ? rows[me][i] : 0;
            send_assignments += i < r ? assignments[me][i] : 0;
            recv_rows += i < r ? rows[i][me] : 0;
            recv_assignments += i < r ? assignments[i][me] : 0;
            all += assignments[i][r];
        }
        p.dest_row_base[r] = dest_rows, p.dest_assignment_base[r] = dest_assignments;
        p.source_row_base[r] = source_rows, p.source_assignment_base[r] = source_assignments;
        p.send_row_base[r] = send_rows, p.send_assignment_base[r] = send_assignments;
        p.recv_row_base[r] = recv_rows, p.recv_assignment_base[r] = recv_assignments;
        p.totals[TOTAL_TO + r] = all;
        if (r == n - 1) {
            p.send_row_base[n] = send_rows + rows[me][r];
            p.send_assignment_base[n] = send_assignments + assignments[me][r];
            p.recv_row_base[n] = recv_rows + rows[r][me];
            p.recv_assignment_base[n] = recv_assignments + assignments[r][me];
            p.totals[TOTAL_ROWS] = recv_rows + rows[r][me];
            p.totals[TOTAL_ASSIGNMENTS] = recv_assignments + assignments[r][me];
            p.totals[TOTAL_REFUSED] = bad_rank >= 0;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int64_t most = 1;
        for (int i = 0; i < n; i++) {
            const int64_t all = p.totals[TOTAL_TO + i];
            if (all > p.assignment_capacity)
                most = max((long long)most,
                           (long long)((all + p.round_assignments - 1) / p.round_assignments));
        }
        p.totals[TOTAL_ROUNDS] = (int)most;
        if (bad_rank >= 0 && p.status->error[0] == 0) {
            const int32_t *error = p.rank_counts + bad_rank * p.counts_ints + p.n_experts + n;
            p.status->error[1] = bad_rank;
            p.status->error[2] = error[1];
            p.status->error[3] = error[2];
            __threadfence_system(); /* the kind last: it makes the rest valid */
            p.status->error[0] = error[0];
        }
    }
}

/* A warp's cursors: next assignment and next row to each rank. */
struct cursors {
    int *assignment, *row;
};

static __device__ void count_rows(const xp_ep_cuda_plan &p, int id, const cursors &c) {
    const int rank = id >= 0 ? id / p.n_local : 0;
    const unsigned peers = same_rank(id, rank);
    const bool empty = __ballot_sync(ALL_LANES, id >= 0) == 0;
    if (id >= 0 && lane_id() == __ffs((int)peers) - 1) {
        c.row[rank]++;
        c.assignment[rank] += __popc(peers);
    }
    if (p.local && empty && lane_id() == 0)
        c.row[0]++;
    __syncwarp();
}

static __device__ void start_row(const xp_ep_cuda_plan &p, int row, int64_t token, int assignment,
                                 int listed) {
    p.send_token[row] = (int32_t)token;
    p.send_assignment[row] = assignment;
    p.token_row[listed] = row;
    if (p.n_ranks == 1)
        p.recv_assignment[row] =
            assignment; /* rows are this rank's own, also those without assignments */
}

/* Returns how many rows the token has. */
static __device__ int list_token(const xp_ep_cuda_plan &p, int64_t t, int id, float weight,
                                 const cursors &c, int listed) {
    const bool selected = id >= 0;
    const int rank = selected ? id / p.n_local : 0;
    int lower = 0; /* this rank's assignments of lower experts */
    for (int k = 0; k < p.top_k; k++) {
        const int other = __shfl_sync(ALL_LANES, id, k);
        lower += selected && other >= rank * p.n_local && other < id;
    }
    const bool first = selected && lower == 0;
    const unsigned firsts = __ballot_sync(ALL_LANES, first);
    int rows_before = 0;
    for (int k = 0; k < p.top_k; k++) {
        const int other = __shfl_sync(ALL_LANES, id, k);
        rows_before += (firsts >> k & 1) != 0 && other < id;
    }
    const unsigned peers = same_rank(id, rank);
    if (lane_id() == 0)
        p.token_first[t] = listed;
    if (selected) {
        const int assignment = c.assignment[rank] + lower;
        p.assignment_entry[assignment] = (int32_t)(t * p.top_k + lane_id());
        const int to = p.packs_assignments ? assignment
                                           : assignment - p.send_assignment_base[rank] +
                                                 p.dest_assignment_base[rank];
        p.assignments_to[rank][to] = {
            (uint32_t)(id - rank * p.n_local) | (first ? (uint32_t)FIRST_ASSIGNMENT : 0u), weight};
        if (first)
            start_row(p, c.row[rank], t, assignment, listed + rows_before);
    }
    int n_rows = __popc(firsts);
    if (p.local && n_rows == 0) {
        if (lane_id() == 0)
            start_row(p, c.row[0], t, c.assignment[0], listed);
        n_rows = 1;
    }
    __syncwarp();
    if (first) {
        c.row[rank]++;
        c.assignment[rank] += __popc(peers);
    } else if (p.local && firsts == 0 && lane_id() == 0) {
        c.row[0]++;
    }
    __syncwarp();
    return n_rows;
}

/* From counts to the first assignment and row of each warp; the first row in the tokens' lists. */
static __device__ void start_cursors(const xp_ep_cuda_plan &p, int *shared, int *listed) {
    const int n_warps = (int)blockDim.x / 32, n = p.n_ranks;
    const int32_t *before = p.tile_counts + blockIdx.x * (int64_t)(p.n_experts + n);
    for (int r = (int)threadIdx.x / 32; r < n; r += n_warps) {
        int assignments = 0;
        for (int e = lane_id(); e < p.n_local; e += 32)
            assignments += before[r * p.n_local + e];
        assignments = p.send_assignment_base[r] + __reduce_add_sync(ALL_LANES, assignments);
        int rows = p.send_row_base[r] + before[p.n_experts + r];
        for (int w = 0; w < n_warps && lane_id() == 0; w++) {
            int *assignment = shared + w * 2 * n + r, *row = assignment + n;
            const int n_assignments = *assignment, n_rows = *row;
            *assignment = assignments, *row = rows;
            assignments += n_assignments, rows += n_rows;
        }
    }
    __syncthreads();
    /* Rows listed before a warp's: of all ranks, relative to their bases. */
    if (lane_id() == 0) {
        const int *row = shared + (int)threadIdx.x / 32 * 2 * n + n;
        int sum = 0;
        for (int r = 0; r < n; r++)
            sum += row[r] - p.send_row_base[r];
        *listed = sum;
    }
    *listed = __shfl_sync(ALL_LANES, *listed, 0);
    __syncwarp();
}

/* Lists of rows and assignments to send: one block per tile, one warp per part of it. */
static __global__ void __launch_bounds__(1024) send_kernel(const xp_ep_cuda_plan p) {
    extern __shared__ int shared[];
    const int n = p.n_ranks, n_warps = (int)blockDim.x / 32;
    const warp_range range = warp_range_of(0, p.n_tokens, p.tile_tokens);
    if (is_aborted(p))
        return;
    const bool refused = p.totals[TOTAL_REFUSED] != 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        p.token_first[p.n_tokens] = p.send_row_base[n];
        p.send_assignment[p.send_row_base[n]] = p.send_assignment_base[n];
        if (n == 1)
            p.recv_assignment[p.send_row_base[n]] = p.send_assignment_base[n];
    }
    if (refused) {
        for (int64_t t = range.begin + lane_id(); t < range.end; t += 32)
            p.token_first[t] = 0;
        return;
    }
    if (p.n_tokens == 0) /* and no tile has been counted */
        return;
    for (int i = (int)threadIdx.x; i < 2 * n * n_warps; i += (int)blockDim.x)
        shared[i] = 0;
    __syncthreads();
    int *own = shared + (int)threadIdx.x / 32 * 2 * n;
    const cursors c = {own, own + n};
    for (int64_t t = range.begin; t < range.end; t += TOKENS_IN_FLIGHT) {
        int id[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            id[i] = load_assignment(p, t + i, range.end);
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            if (t + i < range.end)
                count_rows(p, id[i], c);
    }
    __syncthreads();
    int listed = 0;
    start_cursors(p, shared, &listed);
    for (int64_t t = range.begin; t < range.end; t += TOKENS_IN_FLIGHT) {
        int id[TOKENS_IN_FLIGHT];
        float weight[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++) {
            id[i] = load_assignment(p, t + i, range.end);
            weight[i] = id[i] >= 0 && p.topk_weight != nullptr
                            ? p.topk_weight[(t + i) * p.top_k + lane_id()]
                            : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            if (t + i < range.end)
                listed += list_token(p, t + i, id[i], weight[i], c, listed);
    }
}

xp_status xp_ep_cuda_route(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    const int width = p->n_experts + p->n_ranks, n_warps = warps_for(width);
    const int64_t n_tiles = tiles_of(p->n_tokens, p->tile_tokens);
    XP_TRY(xp_cuda_check(cudaMemsetAsync(p->refused, 0xff, sizeof *p->refused, stream),
                         "expert parallel plan"));
    if (n_tiles > 0)
        route_kernel<<<(unsigned)n_tiles, n_warps * 32, (size_t)(width * n_warps) * 4, stream>>>(
            *p);
    totals_kernel<<<1, 1024, 0, stream>>>(*p, n_tiles);
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: counts");
}

xp_status xp_ep_cuda_build_send(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    const int n_warps = warps_for(2 * p->n_ranks);
    const int64_t n_tiles = tiles_of(p->n_tokens, p->tile_tokens);
    derive_kernel<<<1, 256, 0, stream>>>(*p);
    /* Without tokens one block still ends the lists. */
    send_kernel<<<(unsigned)(n_tiles > 0 ? n_tiles : 1), n_warps * 32,
                  (size_t)(2 * p->n_ranks * n_warps) * 4, stream>>>(*p);
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: rows to send");
}

xp_status xp_ep_cuda_load_plan_send(void) {
    return load_kernels(route_kernel, totals_kernel, derive_kernel, send_kernel);
}
