/**
 * The second kernel of a plan: what follows from every rank's counts, then this rank's lists. Each block
 * derives the prefix sums by rank and by expert for itself, so none waits for another; block 0 writes
 * them. Then one block per tile of tokens as in plan_counts.cuh: counts by warp become cursors, and each
 * warp writes its part in order.
 */
#ifndef XP_EP_COMMON_CUDA_PLAN_LISTS_CUH
#define XP_EP_COMMON_CUDA_PLAN_LISTS_CUH

#include "ep/common/cuda/plan_counts.cuh"

/** Prefix sums by rank, in shared memory: as in xp_ep_plan, without `_base`. */
struct plan_bases {
    int rows[XP_EP_CUDA_MAX_RANKS][XP_EP_CUDA_MAX_RANKS]; /* of source, to destination */
    int assignments[XP_EP_CUDA_MAX_RANKS][XP_EP_CUDA_MAX_RANKS];
    int send_row[XP_EP_CUDA_MAX_RANKS + 1], send_assignment[XP_EP_CUDA_MAX_RANKS + 1];
    int recv_row[XP_EP_CUDA_MAX_RANKS + 1], recv_assignment[XP_EP_CUDA_MAX_RANKS + 1];
    int dest_row[XP_EP_CUDA_MAX_RANKS], dest_assignment[XP_EP_CUDA_MAX_RANKS];
    int source_row[XP_EP_CUDA_MAX_RANKS], source_assignment[XP_EP_CUDA_MAX_RANKS];
    int totals[XP_EP_CUDA_MAX_RANKS]; /* assignments of all ranks to each */
    int bad_rank;                     /* the first whose routing is refused, or -1: then all is 0 */
    int n_rounds;
};

/* One thread a rank r. */
static __device__ void add_up_rank(const xp_ep_cuda_plan &p, int r, plan_bases &b) {
    const int n = p.n_ranks, me = p.rank;
    int dest_rows = 0, dest_assignments = 0, source_rows = 0, source_assignments = 0, all = 0;
    int send_rows = 0, send_assignments = 0, recv_rows = 0, recv_assignments = 0;
    for (int i = 0; i < n; i++) {
        dest_rows += i < me ? b.rows[i][r] : 0;
        dest_assignments += i < me ? b.assignments[i][r] : 0;
        source_rows += i < me ? b.rows[r][i] : 0;
        source_assignments += i < me ? b.assignments[r][i] : 0;
        send_rows += i < r ? b.rows[me][i] : 0;
        send_assignments += i < r ? b.assignments[me][i] : 0;
        recv_rows += i < r ? b.rows[i][me] : 0;
        recv_assignments += i < r ? b.assignments[i][me] : 0;
        all += b.assignments[i][r];
    }
    b.dest_row[r] = dest_rows, b.dest_assignment[r] = dest_assignments;
    b.source_row[r] = source_rows, b.source_assignment[r] = source_assignments;
    b.send_row[r] = send_rows, b.send_assignment[r] = send_assignments;
    b.recv_row[r] = recv_rows, b.recv_assignment[r] = recv_assignments;
    b.totals[r] = all;
    if (r == n - 1) {
        b.send_row[n] = send_rows + b.rows[me][r];
        b.send_assignment[n] = send_assignments + b.assignments[me][r];
        b.recv_row[n] = recv_rows + b.rows[r][me];
        b.recv_assignment[n] = recv_assignments + b.assignments[r][me];
    }
}

static __device__ __forceinline__ int rounds_for(const xp_ep_cuda_plan &p, int64_t n_assignments) {
    return n_assignments <= p.assignment_capacity
               ? 1
               : (int)((n_assignments + p.round_assignments - 1) / p.round_assignments);
}

/** From every rank's counts to prefix sums by rank and the number of rounds. All threads. */
static __device__ void derive_bases(const xp_ep_cuda_plan &p, plan_bases &b) {
    const int n = p.n_ranks, warp = (int)threadIdx.x / 32, n_warps = (int)blockDim.x / 32;
    const int lane_rank = lane_id() < n ? lane_id() : n - 1;
    const unsigned bad =
        __ballot_sync(ALL_LANES, p.counts_in[lane_rank * p.counts_ints + p.n_experts + n] != 0);
    for (int i = warp; i < n * n; i += n_warps) {
        const int s = i / n, d = i % n;
        const int32_t *counts = p.counts_in + s * p.counts_ints;
        const int rows = counts[p.n_experts + d];
        int sum = 0;
        for (int e = lane_id(); e < p.n_local; e += 32)
            sum += counts[d * p.n_local + e];
        sum = __reduce_add_sync(ALL_LANES, sum);
        if (lane_id() == 0) {
            b.assignments[s][d] = bad != 0 ? 0 : sum;
            b.rows[s][d] = bad != 0 ? 0 : rows;
        }
    }
    __syncthreads();
    if (warp == 0) {
        if (lane_id() < n)
            add_up_rank(p, lane_id(), b);
        __syncwarp();
        const int rounds = __reduce_max_sync(ALL_LANES, rounds_for(p, b.totals[lane_rank]));
        if (lane_id() == 0) {
            b.bad_rank = __ffs((int)bad) - 1;
            b.n_rounds = rounds;
        }
    }
    __syncthreads();
}

/** An expert's rows in its rank's list, in a plan of one round: where they start, and where those of
 * this rank's tile do. Shared memory [E] each. */
struct expert_rows {
    int *first, *start;
};

/* All threads. */
static __device__ void find_expert_rows(const xp_ep_cuda_plan &p, const expert_rows &rows,
                                        bool refused) {
    const int n_warps = (int)blockDim.x / 32;
    for (int e = (int)threadIdx.x; e < p.n_experts; e += (int)blockDim.x) {
        int all = 0, before = 0;
        for (int s = 0; s < p.n_ranks && !refused; s++) {
            const int n = p.counts_in[s * p.counts_ints + e];
            all += n;
            before += s < p.rank ? n : 0;
        }
        rows.first[e] = all;
        rows.start[e] = before;
    }
    __syncthreads();
    for (int r = (int)threadIdx.x / 32; r < p.n_ranks; r += n_warps)
        scan_column(rows.first + r * p.n_local, 1, p.n_local);
    __syncthreads();
    for (int e = (int)threadIdx.x; e < p.n_experts; e += (int)blockDim.x)
        rows.start[e] += rows.first[e];
    __syncthreads();
}

/* ---- what block 0 writes -------------------------------------------------------------------- */

static __device__ void report_refusal(const xp_ep_cuda_plan &p, int bad_rank) {
    const int32_t *error = p.counts_in + bad_rank * p.counts_ints + p.n_experts + p.n_ranks;
    if (p.status->error[0] != 0)
        return;
    p.status->error[1] = bad_rank;
    p.status->error[2] = error[1];
    p.status->error[3] = error[2];
    __threadfence_system(); /* the kind last: it makes the rest valid */
    p.status->error[0] = error[0];
}

static __device__ void write_bases(const xp_ep_cuda_plan &p, const plan_bases &b) {
    const int n = p.n_ranks, tid = (int)threadIdx.x, n_threads = (int)blockDim.x;
    for (int i = tid; i < n * p.counts_ints && p.counts_in != p.rank_counts; i += n_threads)
        p.rank_counts[i] = p.counts_in[i];
    for (int r = tid; r <= n; r += n_threads) {
        p.send_row_base[r] = b.send_row[r], p.send_assignment_base[r] = b.send_assignment[r];
        p.recv_row_base[r] = b.recv_row[r], p.recv_assignment_base[r] = b.recv_assignment[r];
        if (r == n)
            continue;
        p.dest_row_base[r] = b.dest_row[r], p.dest_assignment_base[r] = b.dest_assignment[r];
        p.source_row_base[r] = b.source_row[r];
        p.source_assignment_base[r] = b.source_assignment[r];
        p.totals[TOTAL_TO + r] = b.totals[r];
    }
    for (int e = tid; e < p.n_local; e += n_threads) {
        int64_t sum = 0;
        for (int r = 0; r < n && b.bad_rank < 0; r++)
            sum += p.counts_in[r * p.counts_ints + p.rank * p.n_local + e];
        p.expert_tokens[e] = sum;
    }
    if (tid == 0) { /* the lists' ends, too */
        p.totals[TOTAL_ROUNDS] = b.n_rounds;
        p.totals[TOTAL_ROWS] = b.recv_row[n];
        p.totals[TOTAL_ASSIGNMENTS] = b.recv_assignment[n];
        p.totals[TOTAL_REFUSED] = b.bad_rank >= 0;
        p.token_first[p.n_tokens] = b.send_row[n];
        p.send_assignment[b.send_row[n]] = b.send_assignment[n];
        p.recv_assignment[b.recv_row[n]] = b.recv_assignment[n];
        if (b.bad_rank >= 0)
            report_refusal(p, b.bad_rank);
    }
}

/* A plan of one round by rounds: all is in round 0, the others are empty. */
static __device__ void write_one_round(const xp_ep_cuda_plan &p, const plan_bases &b,
                                       const expert_rows &rows) {
    const int n = p.n_ranks, n_local = p.n_local, mine = p.rank * n_local;
    const int64_t tid = threadIdx.x, n_threads = blockDim.x;
    for (int64_t i = tid; i < (p.max_rounds + 1) * n; i += n_threads) {
        const int r = (int)(i % n) + (i >= n); /* the rank, or its end */
        const int64_t at = i / n * 2 * n + i % n;
        p.send_round[i] = b.send_row[r];
        p.first_assignments[at] = b.send_assignment[r];
        p.first_assignments[at + n] = b.recv_assignment[r];
    }
    for (int64_t i = tid; i <= p.max_rounds; i += n_threads) {
        p.round_row[i] = i == 0 ? 0 : b.recv_row[n];
        if (i < p.max_rounds)
            p.n_recv[i] = i == 0 ? b.recv_row[n] : 0;
    }
    for (int64_t i = tid; i < n; i += n_threads)
        p.dest_slot[i] = b.dest_row[i];
    for (int64_t i = tid; i < p.max_rounds * (n_local + 1); i += n_threads)
        p.offsets[i] = i > n_local ? 0 : i == n_local ? b.recv_assignment[n] : rows.first[mine + i];
    for (int64_t i = tid; i < p.max_rounds * n_local; i += n_threads) {
        int first = 0, n_own = 0;
        if (i < n_local) {
            first = rows.start[mine + i];
            n_own = b.bad_rank < 0 ? p.counts_in[p.rank * p.counts_ints + mine + i] : 0;
        }
        p.own_rows[2 * i] = first;
        p.own_rows[2 * i + 1] = first + n_own;
    }
}

/* ---- lists ---------------------------------------------------------------------------------- */

/** What a warp writes with: its cursors [plan_width], and what they do not say. */
struct list_state {
    int *cursors; /* next row of each expert's list, send row and send assignment to each rank */
    int listed;   /* rows of the tokens before */
    bool one_round;
};

/** With one round, recv assignment i is known to its rank: its list's row `to`. */
static __device__ __forceinline__ void place_assignment(const xp_ep_cuda_plan &p, int i, int to,
                                                        int recv_row, float weight) {
    p.assignment_pos[i] = to;
    p.gather[to] = recv_row;
    p.weight[to] = weight;
}

/* This lane's assignment: to this rank's lists, or to the other rank. */
static __device__ __forceinline__ void list_assignment(const xp_ep_cuda_plan &p,
                                                       const plan_bases &b, const list_state &state,
                                                       const step_lanes &s, int64_t token, int row,
                                                       int assignment, bool first, float weight) {
    const int recv_row = row - b.send_row[s.rank] + b.dest_row[s.rank];
    const unsigned before = s.same_expert & ((1u << lane_id()) - 1);
    const int to =
        state.one_round ? state.cursors[s.id] + __popc(before) : s.id - s.rank * p.n_local;
    const bool is_own = s.rank == p.rank;
    if (is_own) {
        const int i = assignment - b.send_assignment[p.rank] + b.recv_assignment[p.rank];
        if (first)
            p.recv_assignment[recv_row] = i;
        if (state.one_round) {
            place_assignment(p, i, to, recv_row, weight);
            p.own_token[to] = (int32_t)token;
        }
    }
    if (!is_own || !state.one_round)
        *(int4 *)&p.assignments_out[assignment] = {
            recv_row, (int)((unsigned)to | (first ? (unsigned)FIRST_ASSIGNMENT : 0u)),
            __float_as_int(weight), 0};
}

static __device__ __forceinline__ void start_row(const xp_ep_cuda_plan &p, int row, int64_t token,
                                                 int assignment, int listed) {
    p.send_token[row] = (int32_t)token;
    p.send_assignment[row] = assignment;
    p.token_row[listed] = row;
}

/* The tokens of a step. */
static __device__ void list_step(const xp_ep_cuda_plan &p, const plan_bases &b, list_state &state,
                                 const lane_place &l, const step_lanes &s, int64_t token,
                                 bool is_token, float weight) {
    const int *row_cursor = state.cursors + p.n_experts, *cursor = row_cursor + p.n_ranks;
    int lower = 0; /* this token's assignments to the rank, of lower experts */
    for (int k = 0; k < p.top_k; k++) {
        const int other = __shfl_sync(ALL_LANES, s.selected ? s.id : -1, l.token * l.width + k);
        lower += other >= s.rank * p.n_local && other < s.id;
    }
    unsigned ranks = s.selected ? 1u << s.rank : 0; /* of the token */
    for (int step = 1; step < l.width; step *= 2)
        ranks |= __shfl_xor_sync(ALL_LANES, ranks, step);
    const bool first = s.selected && lower == 0;
    const unsigned firsts = __ballot_sync(ALL_LANES, first),
                   selected = __ballot_sync(ALL_LANES, s.selected);
    const int listed = state.listed + __popc((firsts | s.empties) & l.earlier);
    if (l.k == 0 && is_token)
        p.token_first[token] = listed;
    if (s.selected) {
        const int row = row_cursor[s.rank] + __popc(firsts & s.same_rank & l.earlier) +
                        __popc(s.empties & l.earlier);
        const int assignment = cursor[s.rank] + __popc(s.same_rank & l.earlier) + lower;
        p.assignment_entry[assignment] = (int32_t)(token * p.top_k + l.k);
        list_assignment(p, b, state, s, token, row, assignment, first, weight);
        if (first)
            start_row(p, row, token, assignment, listed + __popc(ranks & ((1u << s.rank) - 1)));
    }
    if ((s.empties >> lane_id() & 1) != 0) { /* local: a row without assignments */
        const int row = row_cursor[0] + __popc((firsts | s.empties) & l.earlier);
        const int assignment = cursor[0] + __popc(selected & l.earlier);
        start_row(p, row, token, assignment, listed);
        p.recv_assignment[row] = assignment;
    }
    __syncwarp();
    count_step(p, s, firsts, state.cursors);
    state.listed += __popc(firsts | s.empties);
}

/* From counts by warp to each warp's cursors. All threads. */
static __device__ void start_cursors(const xp_ep_cuda_plan &p, const plan_bases &b,
                                     const expert_rows &rows, int tile, int *cursors) {
    const int width = plan_width(p), n_warps = (int)blockDim.x / 32;
    const int32_t *before = p.tile_counts + tile * (int64_t)width;
    for (int i = (int)threadIdx.x; i < width; i += (int)blockDim.x) {
        const int r = i - p.n_experts;
        int at = before[i] + (r < 0           ? rows.start[i]
                              : r < p.n_ranks ? b.send_row[r]
                                              : b.send_assignment[r - p.n_ranks]);
        for (int w = 0; w < n_warps; w++) {
            const int own = cursors[w * width + i];
            cursors[w * width + i] = at;
            at += own;
        }
    }
    __syncthreads();
}

/* All threads; `cursors` [n_warps, plan_width] in shared memory. */
static __device__ void list_tile(const xp_ep_cuda_plan &p, const plan_bases &b,
                                 const expert_rows &rows, int tile, int *cursors) {
    const int width = plan_width(p), n_warps = (int)blockDim.x / 32;
    const warp_range range = warp_range_of(0, p.n_tokens, p.tile_tokens, tile);
    const lane_place l = lane_place_of(p);
    for (int i = (int)threadIdx.x; i < width * n_warps; i += (int)blockDim.x)
        cursors[i] = 0;
    __syncthreads();
    list_state state = {cursors + (int)threadIdx.x / 32 * width, 0, b.n_rounds == 1};
    count_range(p, range, state.cursors);
    __syncthreads();
    start_cursors(p, b, rows, tile, cursors);
    if (lane_id() < p.n_ranks)
        state.listed = state.cursors[p.n_experts + lane_id()] - b.send_row[lane_id()];
    state.listed = __reduce_add_sync(ALL_LANES, state.listed);
    for (int64_t t = range.begin; t < range.end; t += l.n_tokens) {
        const int id = load_assignment(p, l, t, range.end);
        const int64_t token = t + l.token;
        const float weight =
            id >= 0 && p.topk_weight != nullptr ? p.topk_weight[token * p.top_k + l.k] : 1.0f;
        const step_lanes s = match_lanes(p, l, t, range.end, id, id >= 0);
        list_step(p, b, state, l, s, token, token < range.end, weight);
    }
    __syncthreads();
}

template <typename Exchange>
static __global__ void __launch_bounds__(1024)
    list_kernel(const xp_ep_cuda_plan p, int n_tiles, const Exchange exchange) {
    extern __shared__ int shared[];
    __shared__ plan_bases b;
    if (is_aborted(p) || !exchange.wait(p))
        return;
    derive_bases(p, b);
    const expert_rows rows = {shared, shared + p.n_experts};
    const bool refused = b.bad_rank >= 0;
    find_expert_rows(p, rows, refused);
    if (blockIdx.x == 0)
        write_bases(p, b);
    if (blockIdx.x == 0 && b.n_rounds == 1)
        write_one_round(p, b, rows);
    const int64_t n_threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; refused && t < p.n_tokens;
         t += n_threads)
        p.token_first[t] = 0;
    for (int tile = (int)blockIdx.x; tile < n_tiles && !refused; tile += (int)gridDim.x)
        list_tile(p, b, rows, tile, shared + 2 * p.n_experts);
    if (Exchange::TELLS && is_last_block(p))
        exchange.tell(p);
}

/** Dynamic shared memory of list_kernel. */
static inline size_t list_shared_bytes(const xp_ep_cuda_plan *p, int n_warps) {
    return (size_t)(2 * p->n_experts + n_warps * plan_width(*p)) * 4;
}

template <typename Exchange>
static inline void launch_list(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const Exchange &exchange) {
    const int n_warps = warps_for(plan_width(*p)), n_tiles = token_tiles(p);
    list_kernel<<<plan_blocks(p, n_tiles), n_warps * 32, list_shared_bytes(p, n_warps), stream>>>(
        *p, n_tiles, exchange);
}

#endif
