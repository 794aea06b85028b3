/**
 * Combine for this rank's tokens while rows still come: a warp takes a few tokens and one column piece,
 * waits until the other ranks' sums of them have arrived, and adds first and second level at once: own
 * expert rows ascending, rounded, in their place among the ranks' sums. Bits are those of
 * combine_kernel (rows.cu).
 */
#ifndef XP_EP_P2P_CUDA_TOKENS_BULK_CUH
#define XP_EP_P2P_CUDA_TOKENS_BULK_CUH

#include "ep/p2p/cuda/sums_bulk.cuh"

/** Lanes that look up a token's loads. */
static __host__ __device__ __forceinline__ int lanes_a_token(int top_k) {
    return top_k <= 8 ? 8 : top_k <= 16 ? 16 : 32;
}

#if __CUDA_ARCH__ >= 900

/* A load of a token: a sum of another rank, or one of this rank's expert rows. */
enum {
    LOAD_STARTS = 1,    /* the token's sum starts with it, or with the own rows that it ends */
    LOAD_ENDS = 2,      /* the token's last */
    LOAD_OWN = 4,       /* an expert row of this rank */
    LOAD_OWN_FIRST = 8, /* the first, the last of them */
    LOAD_OWN_LAST = 16,
};

struct token_work {
    const char *y, *combine_rows;
    char *out;
    row_pieces pieces;
    int width; /* lanes a token: at least top_k, a power of two */
};

/* What lane i loads: slot i % width of token first + i / width. */
struct token_load {
    const char *from;
    const uint32_t *arrived; /* NULL: there already */
    int source, bits;
    bool valid, empty; /* empty: the token has no rows at all */
};

/* All lanes. Rows of a token ascend, so those of lower ranks, its own and those of higher ranks follow
 * each other; its own row is replaced by the row's assignments. */
static __device__ token_load find_load(const xp_ep_cuda_plan &p,
                                       const xp_ep_cuda_arrivals &arrivals, const token_work &work,
                                       int64_t token, int piece) {
    const int slot = lane_id() % work.width, base = lane_id() - slot;
    const unsigned group = work.width == 32 ? ALL_LANES : (1u << work.width) - 1;
    const int low = p.send_row_base[p.rank], high = p.send_row_base[p.rank + 1];
    int begin = 0, n = 0, row = 0;
    if (token < p.n_tokens) {
        begin = p.token_first[token];
        n = p.token_first[token + 1] - begin;
    }
    if (slot < n)
        row = p.token_row[begin + slot];
    const unsigned lower = __ballot_sync(ALL_LANES, slot < n && row < low) >> base & group,
                   owns = __ballot_sync(ALL_LANES, slot < n && row >= low && row < high) >> base &
                          group;
    const int before = __popc(lower), has_own = owns != 0;
    const int own_row = __shfl_sync(ALL_LANES, row, base + (has_own ? before : 0));
    int first = 0, n_own = 0;
    if (has_own) {
        const int at = own_row - low + p.recv_row_base[p.rank];
        first = p.recv_assignment[at];
        n_own = p.recv_assignment[at + 1] - first;
    }
    const int n_loads = n - has_own + n_own;
    const bool own = slot >= before && slot < before + n_own;
    const int nth = own || slot < before ? slot : slot - n_own + has_own;
    const int other_row = __shfl_sync(ALL_LANES, row, base + min(nth, work.width - 1));
    token_load l = {nullptr, nullptr, 0, 0, slot < n_loads, token < p.n_tokens && n == 0};
    const int64_t column = (int64_t)piece * work.pieces.piece_bytes;
    if (l.valid && own) {
        l.from = work.y + p.assignment_pos[first + slot - before] * work.pieces.row_bytes + column;
        l.bits = LOAD_OWN | (slot == before ? LOAD_OWN_FIRST : 0) |
                 (slot == before + n_own - 1 ? LOAD_OWN_LAST : 0) | (before == 0 ? LOAD_STARTS : 0);
    } else if (l.valid) {
        l.from = work.combine_rows + other_row * work.pieces.row_bytes + column;
        l.source = owner_of(p.send_row_base, other_row);
        l.arrived = arrivals.arrived + l.source * arrivals.n_words +
                    (other_row - p.send_row_base[l.source]) / CHUNK_ROWS * work.pieces.n + piece;
        l.bits = slot == 0 ? LOAD_STARTS : 0;
    }
    l.bits |= slot == n_loads - 1 ? LOAD_ENDS : 0;
    return l;
}

/* A warp's stages; loads and their uses are counted over all units. */
struct token_ring {
    char *stages;
    uint32_t bars;
    uint32_t n_loaded, n_used;
};

static __device__ __forceinline__ void load_next(const token_load &l, unsigned &left,
                                                 uint32_t n_bytes, token_ring &ring) {
    const int lane = __ffs((int)left) - 1;
    const uint64_t from = __shfl_sync(ALL_LANES, (unsigned long long)l.from, lane);
    const uint32_t stage = ring.n_loaded++ % LOAD_STAGES;
    left &= left - 1;
    if (lane_id() == 0)
        bulk_load(hopper_shared(ring.stages) + stage * STAGE_BYTES, (const void *)from, n_bytes,
                  ring.bars + stage * 8);
}

template <typename T, int N>
static __device__ __forceinline__ void add_rounded(float (&sum)[VECTORS][N],
                                                   const float (&part)[VECTORS][N], bool first) {
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float value = rounded<T>(part[k][i]);
            sum[k][i] = first ? value : sum[k][i] + value;
        }
}

/* The loads of a unit through the stages, in order. */
template <typename T>
static __device__ __forceinline__ void add_tokens(const token_work &work, const token_load &l,
                                                  int64_t first, int piece, token_ring &ring) {
    constexpr int N = xp_wide<T>();
    const uint32_t n_bytes =
        piece == work.pieces.n - 1 ? work.pieces.last_bytes : work.pieces.piece_bytes;
    const int64_t column = (int64_t)piece * work.pieces.piece_bytes;
    float sum[VECTORS][N], part[VECTORS][N];
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[k][i] = part[k][i] = 0;
    unsigned left = __ballot_sync(ALL_LANES, l.valid);
    for (unsigned uses = left; uses != 0; uses &= uses - 1) {
        while (left != 0 && ring.n_loaded - ring.n_used < LOAD_STAGES)
            load_next(l, left, n_bytes, ring);
        const int lane = __ffs((int)uses) - 1, bits = __shfl_sync(ALL_LANES, l.bits, lane);
        const uint32_t stage = ring.n_used % LOAD_STAGES;
        const char *at = ring.stages + stage * STAGE_BYTES;
        mbarrier_wait(ring.bars + stage * 8, ring.n_used / LOAD_STAGES & 1);
        if ((bits & LOAD_OWN) != 0)
            add_stage<T, N>(part, at, n_bytes, (bits & LOAD_OWN_FIRST) != 0);
        else
            add_stage<T, N>(sum, at, n_bytes, (bits & LOAD_STARTS) != 0);
        ring.n_used++;
        __syncwarp(); /* all lanes have read the stage */
        if ((bits & LOAD_OWN_LAST) != 0)
            add_rounded<T, N>(sum, part, (bits & LOAD_STARTS) != 0);
        if ((bits & LOAD_ENDS) != 0)
            store_stage<T, N>(
                sum, ring.stages + LOAD_STAGES * STAGE_BYTES,
                work.out + (first + lane / work.width) * work.pieces.row_bytes + column, n_bytes);
    }
    const unsigned empty = __ballot_sync(ALL_LANES, l.empty);
    for (int i = 0; i < 32; i += work.width) /* tokens without rows become zeros */
        for (uint32_t at = (uint32_t)lane_id() * 16; (empty >> i & 1) != 0 && at < n_bytes;
             at += 32 * 16)
            *(int4 *)(work.out + (first + i / work.width) * work.pieces.row_bytes + column + at) =
                int4{0, 0, 0, 0};
}

/* Units of 32 / width tokens and a piece, n_workers warps in turns. */
template <typename T>
static __device__ void combine_tokens(const xp_ep_cuda_plan &p, const xp_ep_cuda_arrivals &arrivals,
                                      const token_work &work, int worker, int n_workers,
                                      token_ring &ring) {
    const int n_each = 32 / work.width;
    const int64_t n_units = (p.n_tokens + n_each - 1) / n_each * work.pieces.n;
    for (int64_t u = worker; u < n_units; u += n_workers) {
        const int64_t first = u / work.pieces.n * n_each;
        const int piece = (int)(u % work.pieces.n);
        const token_load l = find_load(p, arrivals, work, first + lane_id() / work.width, piece);
        bool here = true;
        if (l.arrived != nullptr)
            here = wait_for_arrival(p, arrivals, l.arrived, l.source);
        if (!__all_sync(ALL_LANES, here))
            break;
        arrival_fence(); /* of the lane that issues the loads, behind all lanes' acquires */
        __syncwarp();
        add_tokens<T>(work, l, first, piece, ring);
    }
    if (lane_id() == 0)
        bulk_wait<0>();
}

#endif
#endif
