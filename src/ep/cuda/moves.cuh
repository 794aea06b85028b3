/** Rows as warps move and add them: a lane takes 16 bytes, or one element where rows or addresses
 * are not multiples of 16 bytes. */
#ifndef XP_EP_CUDA_MOVES_CUH
#define XP_EP_CUDA_MOVES_CUH

#include "ep/cuda/plan_common.cuh"
#include "ops/cuda/vector.cuh"

enum { MOVE_THREADS = 512, MOVE_WARPS = MOVE_THREADS / 32, MOVES_AHEAD = 8 };

/** This warp among all of the grid, and how many there are. */
static __device__ __forceinline__ int64_t warp_id() {
    return blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32;
}
static __device__ __forceinline__ int64_t warp_count() {
    return (int64_t)gridDim.x * (blockDim.x / 32);
}

static __device__ __forceinline__ void store_piece(char *to, const int4 &piece) {
    if ((uintptr_t)to % 16 == 0) {
        *(int4 *)to = piece;
        return;
    }
    const unsigned words[] = {(unsigned)piece.x, (unsigned)piece.y, (unsigned)piece.z,
                              (unsigned)piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) { /* rows of another rank that start at an odd place */
        ((unsigned short *)to)[2 * i] = (unsigned short)words[i];
        ((unsigned short *)to)[2 * i + 1] = (unsigned short)(words[i] >> 16);
    }
}
static __device__ __forceinline__ void store_piece(char *to, unsigned short piece) {
    *(unsigned short *)to = piece;
}

/** Read a row of n_each pieces once and write it to the addresses that the first n_to lanes hold,
 * NULLs left out. All lanes. */
template <typename V>
static __device__ __forceinline__ void copy_row(char *to, int n_to, const V *from, int64_t n_each) {
    for (int64_t base = lane_id(); base - lane_id() < n_each; base += 32 * MOVES_AHEAD) {
        V piece[MOVES_AHEAD];
#pragma unroll
        for (int k = 0; k < MOVES_AHEAD; k++)
            if (base + 32 * k < n_each)
                piece[k] = from[base + 32 * k];
        for (int i = 0; i < n_to; i++) {
            char *at = (char *)__shfl_sync(ALL_LANES, (unsigned long long)to, i);
            if (at == nullptr)
                continue;
#pragma unroll
            for (int k = 0; k < MOVES_AHEAD; k++)
                if (base + 32 * k < n_each)
                    store_piece(at + (base + 32 * k) * (int64_t)sizeof(V), piece[k]);
        }
    }
}

/**
 * sum (+)= rows[index] for the indices that lanes begin to end - 1 hold, ascending. C pieces of N
 * elements a lane, `column` being its first; several rows' loads in flight. All lanes.
 * @param any  whether sum holds something; the first row is the start, not added to zero
 */
template <typename T, int N, int C, int AHEAD>
static __device__ __forceinline__ void add_rows(float (&sum)[C][N], bool &any, const T *rows,
                                                int64_t dim, int64_t column, int index, int begin,
                                                int end) {
    for (int j = begin; j < end; j += AHEAD) {
        vec<T, N> piece[AHEAD][C];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int64_t row = __shfl_sync(ALL_LANES, index, j + k < end ? j + k : begin);
#pragma unroll
            for (int c = 0; c < C; c++)
                if (j + k < end && column + c * 32 * N < dim)
                    piece[k][c] = load_vec<T, N>(rows + row * dim + column + c * 32 * N);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
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

/** What a lane knows of the token's rows that have arrived: lane i of the i-th, ascending. */
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

/** Whether rows can be moved 16 bytes at a time. */
static inline bool moves_wide(const xp_ep_cuda_rows *rows, const void *a, const void *b) {
    return rows->row_bytes % 16 == 0 && (uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0;
}

/** Blocks for n_rows rows at most, a warp a row. */
static inline unsigned move_blocks(const xp_ep_cuda_rows *rows, int64_t n_rows) {
    const int64_t n = (n_rows + MOVE_WARPS - 1) / MOVE_WARPS;
    return (unsigned)(n < 1 ? 1 : n < rows->n_blocks ? n : rows->n_blocks);
}

#endif
