/** Dispatch by plain loads and stores, and what both dispatch kernels count. */
#ifndef XP_EP_P2P_CUDA_DISPATCH_TOKENS_CUH
#define XP_EP_P2P_CUDA_DISPATCH_TOKENS_CUH

#include "ep/common/cuda/rows.cuh"
#include "ep/p2p/cuda/kernels.h"

/** Where rank d wants its rows. */
static __device__ __forceinline__ char *recv_of(const xp_ep_cuda_plan &p,
                                                const xp_ep_cuda_peers &peers, int d) {
    return peers.recv_at != nullptr && d != p.rank ? (char *)peers.recv_at[d] : peers.recv[d];
}

/** Where a send row of this round is written; NULL: it is not of this round. */
static __device__ __forceinline__ char *row_destination(const xp_ep_cuda_plan &p,
                                                        const xp_ep_cuda_peers &peers,
                                                        int64_t round, int row, int64_t row_bytes) {
    const int n = p.n_ranks, d = owner_of(p.send_row_base, row);
    const int first = p.send_round[round * n + d];
    if (row < first || row >= p.send_round[(round + 1) * n + d])
        return nullptr;
    return recv_of(p, peers, d) + (p.dest_slot[round * n + d] + row - first) * row_bytes;
}

/** Every token row of this round to all its destinations, one warp per token: lane i holds the address
 * of the token's i-th row. */
template <typename V>
static __device__ __forceinline__ void dispatch_tokens(const xp_ep_cuda_plan &p,
                                                       const xp_ep_cuda_peers &peers, int64_t round,
                                                       int64_t n_each, const V *x) {
    for (int64_t t = warp_id(); t < p.n_tokens; t += warp_count()) {
        const int begin = p.token_first[t], n = p.token_first[t + 1] - begin;
        char *to = nullptr;
        if (lane_id() < n)
            to = row_destination(p, peers, round, p.token_row[begin + lane_id()],
                                 n_each * (int64_t)sizeof(V));
        if (__ballot_sync(ALL_LANES, to != nullptr) != 0)
            copy_row(to, n, x + t * n_each, n_each);
    }
}

/** Add to the statistics: rows of this round in all, and those that stay on this rank. */
static __device__ __forceinline__ void
count_rows_sent(const xp_ep_cuda_plan &p, unsigned long long all, unsigned long long own) {
    if (own > 0)
        atomicAdd(&p.status->rows_kept, own);
    if (all > own)
        atomicAdd(&p.status->rows_sent, all - own);
}

/** The rows of a dispatch. One warp. */
static __device__ __forceinline__ void count_dispatched(const xp_ep_cuda_plan &p, int64_t round) {
    const int n = p.n_ranks;
    unsigned rows = 0;
    if (lane_id() < n)
        rows = (unsigned)(p.send_round[(round + 1) * n + lane_id()] -
                          p.send_round[round * n + lane_id()]);
    const unsigned all = __reduce_add_sync(ALL_LANES, rows);
    if (lane_id() == p.rank)
        count_rows_sent(p, all, rows);
}

/** The rows of a combine: recv rows begin to end - 1. One thread. */
static __device__ __forceinline__ void count_combined(const xp_ep_cuda_plan &p, int begin,
                                                      int end) {
    const int low = p.recv_row_base[p.rank], high = p.recv_row_base[p.rank + 1];
    const int own = min(max(end, low), high) - min(max(begin, low), high);
    count_rows_sent(p, (unsigned long long)(end - begin), (unsigned long long)own);
}

#endif
