/**
 * The first kernel of a plan: this rank's counts. One block per tile of tokens; each warp processes a
 * consecutive part of it, 32 / width tokens at once, one lane per assignment. The block that is done
 * last turns the counts by tile into prefix sums; so every index is fixed by the routing alone.
 */
#ifndef XP_EP_COMMON_CUDA_PLAN_COUNTS_CUH
#define XP_EP_COMMON_CUDA_PLAN_COUNTS_CUH

#include "ep/common/cuda/plan_common.cuh"

/* Kinds of xp_ep_routing_error. */
enum { DUPLICATE = 1, OUT_OF_RANGE = 2 };

/** Columns of counts: assignments of each expert [E], rows to each rank [R], assignments to each rank
 * [R]. */
static __host__ __device__ __forceinline__ int plan_width(const xp_ep_cuda_plan &p) {
    return p.n_experts + 2 * p.n_ranks;
}

/** How a warp's lanes lie over tokens: lane k + width * g has assignment k of token g of the step. */
struct lane_place {
    int width, n_tokens; /* lanes a token: a power of two, at least top_k; tokens a step */
    int k, token;
    unsigned group, earlier; /* lanes of this token, of the step's tokens before it */
};

static __device__ __forceinline__ lane_place lane_place_of(const xp_ep_cuda_plan &p) {
    lane_place l;
    l.width = p.top_k > 1 ? 1 << (32 - __clz(p.top_k - 1)) : 1;
    l.n_tokens = 32 / l.width;
    l.k = lane_id() % l.width;
    l.token = lane_id() / l.width;
    l.earlier = (1u << (lane_id() - l.k)) - 1;
    l.group = (l.width == 32 ? ALL_LANES : (1u << l.width) - 1) << (lane_id() - l.k);
    return l;
}

/** A lane's assignment of a step: its expert, -1 without one. */
static __device__ __forceinline__ int load_assignment(const xp_ep_cuda_plan &p, const lane_place &l,
                                                      int64_t t, int64_t end) {
    return t + l.token < end && l.k < p.top_k ? p.topk_idx[(t + l.token) * p.top_k + l.k] : -1;
}

/** Which lanes of a step are alike. Of lanes without an assignment nothing is said. */
struct step_lanes {
    int id, rank;
    bool selected;
    unsigned same_expert, same_rank; /* lanes of the step, of all its tokens */
    unsigned empties; /* local: one lane of each token without assignments, which has a row, too */
};

static __device__ __forceinline__ step_lanes match_lanes(const xp_ep_cuda_plan &p,
                                                         const lane_place &l, int64_t t,
                                                         int64_t end, int id, bool selected) {
    step_lanes s;
    s.id = id;
    s.selected = selected;
    s.rank = selected ? id / p.n_local : 0;
    s.same_expert = __match_any_sync(ALL_LANES, selected ? id : -1 - lane_id());
    s.same_rank = __match_any_sync(ALL_LANES, selected ? s.rank : -1 - lane_id());
    s.empties = 0;
    if (p.local) {
        const unsigned all = __ballot_sync(ALL_LANES, selected);
        s.empties = __ballot_sync(ALL_LANES, l.k == 0 && t + l.token < end && (all & l.group) == 0);
    }
    return s;
}

static __device__ __forceinline__ bool leads(unsigned lanes) {
    return lane_id() == __ffs((int)lanes) - 1;
}

/** Add a step to a warp's counters [plan_width]. `firsts`: one lane of each row. */
static __device__ __forceinline__ void count_step(const xp_ep_cuda_plan &p, const step_lanes &s,
                                                  unsigned firsts, int *counts) {
    if (s.selected && leads(s.same_expert))
        counts[s.id] += __popc(s.same_expert);
    if (s.selected && leads(s.same_rank)) {
        counts[p.n_experts + s.rank] += __popc(firsts & s.same_rank);
        counts[p.n_experts + p.n_ranks + s.rank] += __popc(s.same_rank);
    }
    __syncwarp();
    if (s.empties != 0 && lane_id() == 0)
        counts[p.n_experts] += __popc(s.empties);
    __syncwarp();
}

static __device__ void refuse(const xp_ep_cuda_plan &p, int64_t token, int kind, int value) {
    const unsigned long long key = (unsigned long long)token << 32 |
                                   (unsigned long long)kind << 28 | ((unsigned)value & 0x0fffffffu);
    atomicMax(p.refused, ~key);
}

/** Count the tokens of a warp's part of a tile. */
static __device__ void count_range(const xp_ep_cuda_plan &p, const warp_range &range, int *counts) {
    const lane_place l = lane_place_of(p);
    int next = load_assignment(p, l, range.begin, range.end);
    for (int64_t t = range.begin; t < range.end; t += l.n_tokens) {
        const int id = next;
        next = load_assignment(p, l, t + l.n_tokens, range.end);
        const bool is_bad = id < -1 || id >= p.n_experts;
        const unsigned bad = __ballot_sync(ALL_LANES, is_bad) & l.group;
        if (bad != 0 && leads(bad))
            refuse(p, t + l.token, OUT_OF_RANGE, id);
        const step_lanes s = match_lanes(p, l, t, range.end, id, id >= 0 && bad == 0);
        const unsigned twins = s.same_expert & l.group;
        if (s.selected && (twins & (twins - 1)) != 0 && leads(twins))
            refuse(p, t + l.token, DUPLICATE, id);
        const unsigned firsts =
            __ballot_sync(ALL_LANES, s.selected && leads(s.same_rank & l.group));
        count_step(p, s, firsts, counts);
    }
}

/** tile_counts[tile] = counts of all warps, which count in shared memory of their own. */
static __device__ void count_tile(const xp_ep_cuda_plan &p, int tile, int *counts) {
    const int width = plan_width(p), n_warps = (int)blockDim.x / 32;
    for (int i = (int)threadIdx.x; i < width * n_warps; i += (int)blockDim.x)
        counts[i] = 0;
    __syncthreads();
    count_range(p, warp_range_of(0, p.n_tokens, p.tile_tokens, tile),
                counts + (int)threadIdx.x / 32 * width);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < width; i += (int)blockDim.x) {
        int sum = 0;
        for (int w = 0; w < n_warps; w++)
            sum += counts[w * width + i];
        p.tile_counts[tile * (int64_t)width + i] = sum;
    }
    __syncthreads();
}

/** A thread's part of the scan below: a column and up to MOST consecutive tiles. */
struct tile_part {
    enum { MOST = 16 };
    int column, group, n_groups, n_columns;
};

/** Tile counts of `columns` become exclusive prefix sums; `sum` of the part's group 0: the totals.
 * Threads of a column share its tiles; partial sums go through shared memory [blockDim]. */
static __device__ int scan_tiles(int32_t *counts, int width, const tile_part &part, int n_tiles,
                                 int *partial) {
    int before_all = 0;
    for (int base = 0; base < n_tiles; base += part.n_groups * tile_part::MOST) {
        const int n = min(n_tiles - base, part.n_groups * tile_part::MOST);
        const int each = (n + part.n_groups - 1) / part.n_groups;
        const int begin = base + part.group * each, end = min(begin + each, base + n);
        int own[tile_part::MOST], sum = 0;
        const bool active = part.group < part.n_groups && part.column < width;
#pragma unroll
        for (int i = 0; i < tile_part::MOST; i++)
            own[i] = active && i < each && begin + i < end
                         ? __ldcg(counts + (begin + i) * (int64_t)width + part.column)
                         : 0;
#pragma unroll
        for (int i = 0; i < tile_part::MOST; i++)
            sum += own[i];
        partial[threadIdx.x] = sum;
        __syncthreads();
        int before = before_all;
        if (active)
            for (int g = 0; g < part.n_groups; g++) {
                const int other = partial[g * part.n_columns + part.column % part.n_columns];
                before += g < part.group ? other : 0;
                before_all += other;
            }
#pragma unroll
        for (int i = 0; i < tile_part::MOST; i++) {
            if (active && i < each && begin + i < end)
                counts[(begin + i) * (int64_t)width + part.column] = before;
            before += own[i];
        }
        __syncthreads();
    }
    return before_all;
}

/** The block that is done last: prefix sums over tiles, this rank's counts, its routing error. */
static __device__ void find_totals(const xp_ep_cuda_plan &p, int n_tiles) {
    __shared__ int partial[1024];
    const int width = plan_width(p), n_threads = (int)blockDim.x;
    const unsigned long long key = ~__ldcg(p.refused);
    const bool refused = key != ~0ull || p.bad_kind != 0;
    const int n_columns = width < n_threads ? width : n_threads;
    for (int base = 0; base < width; base += n_columns) {
        const tile_part part = {base + (int)threadIdx.x % n_columns, (int)threadIdx.x / n_columns,
                                n_threads / n_columns, n_columns};
        const int sum = scan_tiles(p.tile_counts, width, part, n_tiles, partial);
        if (part.group == 0 && part.column < p.n_experts + p.n_ranks)
            p.own_counts[part.column] = refused ? 0 : sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int32_t *error = p.own_counts + p.n_experts + p.n_ranks;
        error[0] = !refused ? 0 : p.bad_kind != 0 ? p.bad_kind : (int)(key >> 28 & 15);
        error[1] = refused && p.bad_kind == 0 ? (int)(key >> 32) : 0;
        error[2] = !refused ? 0 : p.bad_kind != 0 ? p.bad_value : (int)((unsigned)key << 4) >> 4;
        error[3] = 0;
        *p.refused = 0;
    }
    __syncthreads();
}

template <typename Exchange>
static __global__ void __launch_bounds__(1024)
    count_kernel(const xp_ep_cuda_plan p, int n_tiles, const Exchange exchange) {
    extern __shared__ int shared[];
    if (is_aborted(p))
        return;
    for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x)
        count_tile(p, tile, shared);
    if (!is_last_block(p))
        return;
    find_totals(p, n_tiles);
    exchange.tell(p);
}

/** Tiles of the kernels over tokens; without tokens one, which is empty. */
static inline int token_tiles(const xp_ep_cuda_plan *p) {
    const int64_t n = tiles_of(p->n_tokens, p->tile_tokens);
    return (int)(n > 1 ? n : 1);
}

template <typename Exchange>
static inline void launch_count(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                const Exchange &exchange) {
    const int width = plan_width(*p), n_warps = warps_for(width), n_tiles = token_tiles(p);
    count_kernel<<<plan_blocks(p, n_tiles), n_warps * 32, (size_t)(width * n_warps) * 4, stream>>>(
        *p, n_tiles, exchange);
}

#endif
