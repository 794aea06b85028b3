/*
 * The plan of a group of one rank whose assignments fit one round, behind xp_ep_cuda_route(): row t is token
 * t, so nothing need be found, and two kernels write what the general ones (ep/common/cuda) write in seven.
 * The bytes are the same.
 */
#include "ep/common/cuda/plan_common.cuh"
#include "ep/local/cuda/kernels.h"

/* What the routing is refused for, in the words of own_counts; false: nothing. */
static __device__ bool read_refusal(const xp_ep_cuda_plan &p, int32_t error[3]) {
    const unsigned long long key = *p.refused;
    const bool by_host = p.bad_kind != 0, refused = by_host || key != ~0ull;
    error[0] = !refused ? 0 : by_host ? p.bad_kind : (int)(key >> 28 & 15);
    error[1] = refused && !by_host ? (int)(key >> 32) : 0;
    error[2] = !refused ? 0 : by_host ? p.bad_value : (int)((unsigned)key << 4) >> 4;
    return refused;
}

/* The numbers that do not depend on the tile: one thread. */
static __device__ void write_sums(const xp_ep_cuda_plan &p, bool refused, const int32_t error[3],
                                  int n_rows, int n_assignments) {
    int32_t *counts_error = p.own_counts + p.n_experts + 1;
    for (int i = 0; i < 3; i++)
        counts_error[i] = error[i];
    counts_error[3] = 0;
    p.dest_row_base[0] = p.dest_assignment_base[0] = 0;
    p.source_row_base[0] = p.source_assignment_base[0] = 0;
    p.send_row_base[0] = p.recv_row_base[0] = 0;
    p.send_row_base[1] = p.recv_row_base[1] = n_rows;
    p.send_assignment_base[0] = p.recv_assignment_base[0] = 0;
    p.send_assignment_base[1] = p.recv_assignment_base[1] = n_assignments;
    p.totals[TOTAL_ROUNDS] = 1;
    p.totals[TOTAL_ROWS] = n_rows;
    p.totals[TOTAL_ASSIGNMENTS] = p.totals[TOTAL_TO] = n_assignments;
    p.totals[TOTAL_REFUSED] = refused;
    p.send_round[0] = p.round_row[0] = 0;
    p.send_round[1] = p.round_row[1] = p.n_recv[0] = n_rows;
    p.token_first[p.n_tokens] = n_rows;
    p.send_assignment[n_rows] = p.recv_assignment[n_rows] = n_assignments;
    if (refused && p.status->error[0] == 0) {
        p.status->error[1] = 0;
        p.status->error[2] = error[1];
        p.status->error[3] = error[2];
        __threadfence_system(); /* the kind last: it makes the rest valid */
        p.status->error[0] = error[0];
    }
}

/* One block, a warp a column: tile counts become exclusive prefix sums, their totals the counts of experts,
 * whose prefix sums are the experts' offsets. */
static __global__ void __launch_bounds__(1024)
    local_totals_kernel(const xp_ep_cuda_plan p, int64_t n_tiles) {
    const int width = p.n_experts + 1, n_warps = (int)blockDim.x / 32;
    int32_t error[3];
    const bool refused = read_refusal(p, error);
    for (int i = (int)threadIdx.x / 32; i < width; i += n_warps) {
        const int all = scan_column(p.tile_counts + i, width, n_tiles), sum = refused ? 0 : all;
        if (lane_id() != 0)
            continue;
        p.own_counts[i] = sum;
        if (i < p.n_experts) {
            p.offsets[i] = sum;
            p.expert_tokens[i] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    const int n_assignments = scan_column(p.offsets, 1, p.n_experts);
    if (threadIdx.x != 0)
        return;
    p.offsets[p.n_experts] = n_assignments;
    write_sums(p, refused, error, p.own_counts[p.n_experts], n_assignments);
}

/* The lists of token t: its assignments in ascending expert order from `first` on, each behind its expert's
 * cursor. A lane an assignment; a token's experts differ, so no two lanes collide. Returns their number. */
static __device__ int list_local_token(const xp_ep_cuda_plan &p, int64_t t, int id, float weight,
                                       int first, int *cursor) {
    const bool selected = id >= 0;
    int lower = 0;
    for (int k = 0; k < p.top_k; k++) {
        const int other = __shfl_sync(ALL_LANES, id, k);
        lower += other >= 0 && other < id;
    }
    if (lane_id() == 0) {
        p.token_first[t] = p.token_row[t] = p.send_token[t] = (int32_t)t;
        p.send_assignment[t] = p.recv_assignment[t] = first;
    }
    if (selected) {
        const int assignment = first + lower, to = cursor[id]++;
        p.assignment_entry[assignment] = (int32_t)(t * p.top_k + lane_id());
        p.assignments_to[0][assignment] = {
            (uint32_t)id | (lower == 0 ? (uint32_t)FIRST_ASSIGNMENT : 0u), weight};
        p.assignment_pos[assignment] = to;
        p.gather[to] = (int32_t)t;
        p.weight[to] = weight;
    }
    __syncwarp();
    return __popc(__ballot_sync(ALL_LANES, selected));
}

static __device__ __forceinline__ int load_local(const xp_ep_cuda_plan &p, int64_t t, int64_t end) {
    return t < end && lane_id() < p.top_k ? p.topk_idx[t * p.top_k + lane_id()] : -1;
}

/* Counts of this warp's tokens by expert; returns how many assignments they have. */
static __device__ int count_local(const xp_ep_cuda_plan &p, const warp_range &range, int *counts) {
    int n = 0;
    for (int64_t t = range.begin; t < range.end; t += TOKENS_IN_FLIGHT) {
        int id[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            id[i] = load_local(p, t + i, range.end);
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++) {
            if (id[i] >= 0)
                counts[id[i]]++;
            n += __popc(__ballot_sync(ALL_LANES, id[i] >= 0));
            __syncwarp();
        }
    }
    return n;
}

/* One block a tile of tokens, each warp a consecutive part of it. Warps count, the counts become cursors,
 * then each warp writes its part in order. */
static __global__ void __launch_bounds__(1024) local_lists_kernel(const xp_ep_cuda_plan p) {
    extern __shared__ int shared[]; /* [n_warps, E], then the warps' assignments [n_warps + 1] */
    const int n_warps = (int)blockDim.x / 32, n = p.n_experts, warp = (int)threadIdx.x / 32;
    const warp_range range = warp_range_of(0, p.n_tokens, p.tile_tokens);
    if (p.totals[TOTAL_REFUSED] != 0) {
        for (int64_t t = range.begin + lane_id(); t < range.end; t += 32)
            p.token_first[t] = 0;
        return;
    }
    int *own = shared + warp * n, *of_warps = shared + n_warps * n;
    for (int i = (int)threadIdx.x; i < n_warps * n; i += (int)blockDim.x)
        shared[i] = 0;
    if (threadIdx.x == 0)
        of_warps[n_warps] = 0;
    __syncthreads();
    const int n_own = count_local(p, range, own);
    if (lane_id() == 0)
        of_warps[warp] = n_own;
    const int32_t *before = p.tile_counts + blockIdx.x * (int64_t)(n + 1);
    __syncthreads();
    int of_tiles = 0; /* assignments of the tiles before */
    for (int e = (int)threadIdx.x; e < n; e += (int)blockDim.x) {
        int at = p.offsets[e] + before[e];
        of_tiles += before[e];
        for (int w = 0; w < n_warps; w++) {
            const int count = shared[w * n + e];
            shared[w * n + e] = at;
            at += count;
        }
    }
    of_tiles = __reduce_add_sync(ALL_LANES, of_tiles);
    if (lane_id() == 0 && of_tiles != 0)
        atomicAdd(&of_warps[n_warps], of_tiles);
    __syncthreads();
    int first = of_warps[n_warps];
    for (int w = 0; w < warp; w++)
        first += of_warps[w];
    for (int64_t t = range.begin; t < range.end; t += TOKENS_IN_FLIGHT) {
        int id[TOKENS_IN_FLIGHT];
        float weight[TOKENS_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++) {
            id[i] = load_local(p, t + i, range.end);
            weight[i] = id[i] >= 0 && p.topk_weight != nullptr
                            ? p.topk_weight[(t + i) * p.top_k + lane_id()]
                            : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < TOKENS_IN_FLIGHT; i++)
            if (t + i < range.end)
                first += list_local_token(p, t + i, id[i], weight[i], first, own);
    }
}

bool xp_ep_cuda_local_is_one_round(const xp_ep_cuda_plan *p) {
    return p->n_ranks == 1 && p->local && p->max_rounds == 1 && p->aborted == nullptr &&
           p->own_counts == p->rank_counts;
}

xp_status xp_ep_cuda_local_lists(cudaStream_t stream, const xp_ep_cuda_plan *p) {
    const int n_warps = warps_for(p->n_experts + 2);
    const int64_t n_tiles = tiles_of(p->n_tokens, p->tile_tokens);
    local_totals_kernel<<<1, 1024, 0, stream>>>(*p, n_tiles);
    if (n_tiles > 0)
        local_lists_kernel<<<(unsigned)n_tiles, n_warps * 32,
                             (size_t)(n_warps * p->n_experts + n_warps + 1) * 4, stream>>>(*p);
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan: one rank");
}

xp_status xp_ep_cuda_load_local_plan(void) {
    return load_kernels(local_totals_kernel, local_lists_kernel);
}
