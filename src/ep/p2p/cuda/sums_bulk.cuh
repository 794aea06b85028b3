/** Stages of rows in shared memory, added up by a warp: what both halves of combine share. */
#ifndef XP_EP_P2P_CUDA_SUMS_BULK_CUH
#define XP_EP_P2P_CUDA_SUMS_BULK_CUH

#include "ep/common/cuda/rows.cuh"
#include "ep/p2p/cuda/bulk.cuh"
#include "ep/p2p/cuda/dispatch_tokens.cuh"
#include "ep/p2p/cuda/flag_wait.cuh"
#include "ep/p2p/cuda/rows_bulk.h"

enum {
    WARPS = XP_EP_BULK_WARPS,
    LOAD_STAGES = XP_EP_BULK_STAGES - 1, /* and one for the sum */
    STAGE_BYTES = XP_EP_BULK_STAGE_BYTES,
    CHUNK_ROWS = XP_EP_CUDA_CHUNK_ROWS,
    VECTORS = STAGE_BYTES / 16 / 32, /* 16-byte vectors a lane of a full stage */
};

#if __CUDA_ARCH__ >= 900

/** A row is cut into pieces of one stage; all but the last have piece_bytes. */
struct row_pieces {
    int64_t row_bytes;
    int n;
    uint32_t piece_bytes, last_bytes;
};

static __device__ __forceinline__ row_pieces pieces_of(int64_t row_bytes) {
    const int n = (int)((row_bytes + STAGE_BYTES - 1) / STAGE_BYTES);
    const uint32_t piece = (uint32_t)((row_bytes / 16 + n - 1) / n * 16);
    return {row_bytes, n, piece, (uint32_t)(row_bytes - (int64_t)(n - 1) * piece)};
}

/** sum = or += what a stage holds. */
template <bool FIRST, typename T, int N>
static __device__ __forceinline__ void add_vectors(float (&sum)[VECTORS][N], const char *stage,
                                                   int n_vectors) {
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
#pragma unroll
        for (int i = 0; i < N; i++)
            sum[k][i] = FIRST ? value[i] : sum[k][i] + value[i];
    }
}

template <typename T, int N>
static __device__ __forceinline__ void add_stage(float (&sum)[VECTORS][N], const char *stage,
                                                 uint32_t n_bytes, bool first) {
    if (first)
        add_vectors<true, T, N>(sum, stage, (int)n_bytes / 16);
    else
        add_vectors<false, T, N>(sum, stage, (int)n_bytes / 16);
}

/** A sum, rounded, through its stage to `to`: a bulk group of lane 0. */
template <typename T, int N>
static __device__ __forceinline__ void store_stage(const float (&sum)[VECTORS][N], char *stage,
                                                   char *to, uint32_t n_bytes) {
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
        bulk_store(to, hopper_shared(stage), n_bytes);
}

#endif
#endif
