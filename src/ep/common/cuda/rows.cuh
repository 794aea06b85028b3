/** Copies and sums of rows by warps: a lane takes 16 bytes, or one element where rows or addresses
 * are not multiples of 16 bytes. */
#ifndef XP_EP_COMMON_CUDA_ROWS_CUH
#define XP_EP_COMMON_CUDA_ROWS_CUH

#include "ep/common/cuda/plan_common.cuh"
#include "ops/cuda/vector.cuh"

enum { ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / 32, LOADS_IN_FLIGHT = 8 };

/** This warp among all of the grid, and how many there are. */
static __device__ __forceinline__ int64_t warp_id() {
    return blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32;
}
static __device__ __forceinline__ int64_t warp_count() {
    return (int64_t)gridDim.x * (blockDim.x / 32);
}

static __device__ __forceinline__ void store_vector(char *to, const int4 &piece) {
    if ((uintptr_t)to % 16 == 0) {
        *(int4 *)to = piece;
        return;
    }
    const unsigned words[] = {(unsigned)piece.x, (unsigned)piece.y, (unsigned)piece.z,
                              (unsigned)piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) { /* rows of another rank at an unaligned address */
        ((unsigned short *)to)[2 * i] = (unsigned short)words[i];
        ((unsigned short *)to)[2 * i + 1] = (unsigned short)(words[i] >> 16);
    }
}
static __device__ __forceinline__ void store_vector(char *to, unsigned short piece) {
    *(unsigned short *)to = piece;
}

/** Read a row of n_each pieces once and write it to the addresses that the first n_to lanes hold,
 * NULLs left out. All lanes. */
template <typename V>
static __device__ __forceinline__ void copy_row(char *to, int n_to, const V *from, int64_t n_each) {
    for (int64_t base = lane_id(); base - lane_id() < n_each; base += 32 * LOADS_IN_FLIGHT) {
        V piece[LOADS_IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < LOADS_IN_FLIGHT; k++)
            if (base + 32 * k < n_each)
                piece[k] = from[base + 32 * k];
        for (int i = 0; i < n_to; i++) {
            char *at = (char *)__shfl_sync(ALL_LANES, (unsigned long long)to, i);
            if (at == nullptr)
                continue;
#pragma unroll
            for (int k = 0; k < LOADS_IN_FLIGHT; k++)
                if (base + 32 * k < n_each)
                    store_vector(at + (base + 32 * k) * (int64_t)sizeof(V), piece[k]);
        }
    }
}

/**
 * sum (+)= rows[index] for the indices that lanes begin to end - 1 hold, ascending. C pieces of N
 * elements a lane, `column` being its first; several rows' loads in flight. All lanes.
 * @param any  whether sum holds something; the first row is the start, not added to zero
 */
template <typename T, int N, int C, int UNROLL>
static __device__ __forceinline__ void add_rows(float (&sum)[C][N], bool &any, const T *rows,
                                                int64_t dim, int64_t column, int index, int begin,
                                                int end) {
    for (int j = begin; j < end; j += UNROLL) {
        vec<T, N> piece[UNROLL][C];
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            const int64_t row = __shfl_sync(ALL_LANES, index, j + k < end ? j + k : begin);
#pragma unroll
            for (int c = 0; c < C; c++)
                if (j + k < end && column + c * 32 * N < dim)
                    piece[k][c] = load_vec<T, N>(rows + row * dim + column + c * 32 * N);
        }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (j + k >= end)
                break;
#pragma unroll
            for (int c = 0; c < C; c++) {
                if (column + c * 32 * N >= dim)
                    continue;
                float value[N];
                unpack(piece[k][c], value);
#pragma unroll
                for (int i = 0; i < N; i++)
                    sum[c][i] = any ? sum[c][i] + value[i] : value[i];
            }
            any = true;
        }
    }
}

template <int N, int C> static __device__ __forceinline__ void clear(float (&sum)[C][N]) {
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[c][i] = 0;
}

template <typename T, int N, int C>
static __device__ __forceinline__ void store_sum(T *row, int64_t dim, int64_t column,
                                                 const float (&sum)[C][N]) {
#pragma unroll
    for (int c = 0; c < C; c++)
        if (column + c * 32 * N < dim)
            store_vec<T, N>(row + column + c * 32 * N, sum[c]);
}

/** Rows of tokens by destination; see xp_ep_sum_args. */
struct token_lists {
    const int32_t *token_first, *token_row, *row_base;
    const int32_t *fresh, *seen; /* NULL: all rows are of this round */
    bool write_all;
};

/** The token's rows that have arrived, one a lane: lane i holds the i-th, ascending. */
struct token_rows {
    int row, n;
    bool fresh; /* one of them is of this round, or the round writes all tokens */
};

static __device__ __forceinline__ token_rows list_rows(const token_lists &lists, int64_t token) {
    const int begin = lists.token_first[token], n = lists.token_first[token + 1] - begin;
    int row = 0;
    bool seen = false, fresh = false;
    if (lane_id() < n) {
        row = lists.token_row[begin + lane_id()];
        seen = fresh = true;
        if (lists.seen != nullptr) {
            const int d = owner_of(lists.row_base, row);
            seen = row < lists.seen[d];
            fresh = seen && row >= lists.fresh[d];
        }
    }
    const unsigned all = __ballot_sync(ALL_LANES, seen);
    token_rows list = {row, __popc(all), lists.write_all || __ballot_sync(ALL_LANES, fresh) != 0};
    if (list.n < n) /* some are of later rounds: close the gaps */
        list.row = __shfl_sync(ALL_LANES, row, (int)(__fns(all, 0, lane_id() + 1) & 31));
    return list;
}

/** Sums of tokens: SUM_C vectors a lane, SUM_UNROLL rows in flight. */
enum { SUM_C = 2, SUM_UNROLL = 4 };

/** The lists of a plan, for the rows of a round. */
static __device__ __forceinline__ token_lists lists_of(const xp_ep_cuda_plan &p, int64_t round) {
    const int32_t *fresh = p.send_round + round * p.n_ranks;
    return {p.token_first, p.token_row, p.send_row_base, fresh, fresh + p.n_ranks, round == 0};
}

/** The assignments of one row, one a lane. */
struct row_assignments {
    int index, n;
};

/** sum (+)= the row's assignments added up and rounded to the row type. */
template <typename T, int N>
static __device__ __forceinline__ void
add_row_of_assignments(float (&sum)[SUM_C][N], bool &any, const T *rows, int64_t dim,
                       int64_t column, const row_assignments &assignments) {
    float value[SUM_C][N];
    bool some = false;
    add_rows<T, N, SUM_C, SUM_UNROLL>(value, some, rows, dim, column, assignments.index, 0,
                                      assignments.n);
#pragma unroll
    for (int c = 0; c < SUM_C; c++) {
        if (column + c * 32 * N >= dim)
            continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float rounded_value = rounded<T>(value[c][i]);
            sum[c][i] = any ? sum[c][i] + rounded_value : rounded_value;
        }
    }
    any = true;
}

/** Whether rows can be copied 16 bytes at a time. */
static inline bool rows_vectorize(const xp_ep_cuda_rows *rows, const void *a, const void *b) {
    return rows->row_bytes % 16 == 0 && (uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0;
}

/** Blocks for n_rows rows at most, a warp a row. */
static inline unsigned row_blocks(const xp_ep_cuda_rows *rows, int64_t n_rows) {
    const int64_t n = (n_rows + ROW_WARPS - 1) / ROW_WARPS;
    return (unsigned)(n < 1 ? 1 : n < rows->n_blocks ? n : rows->n_blocks);
}

#endif
