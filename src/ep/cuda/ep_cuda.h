/**
 * Expert parallelism on a GPU: kernels that build plans and move rows. Counts stay on the device:
 * every launch is sized by bounds that the host knows, and reads on the device how much of that is
 * used. Nothing waits for the device and nothing spins.
 *
 *   route -> totals -> (exchange) -> derive -> send -> (exchange) -> rounds -> count, scan, place
 *
 * Orders are those of the CPU's plan (ep/plan.h), fixed by prefix sums over tiles of tokens, so the
 * results are the same bytes.
 */
#ifndef XP_EP_CUDA_EP_CUDA_H
#define XP_EP_CUDA_EP_CUDA_H

#include "device/cuda/cuda_device.h"
#include "ep/shape.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_EP_CUDA_MAX_TOP_K 32 /* a warp takes a token, a lane a pick */
#define XP_EP_CUDA_MAX_RANKS 16

/** One pick as its source tells it to the expert's rank: xp_ep_pick. */
typedef struct xp_ep_cuda_pick {
    uint32_t expert;
    float weight;
} xp_ep_cuda_pick;

/** What kernels tell the host without its waiting: mapped host memory of the group. */
typedef struct xp_ep_cuda_news {
    int32_t error[4]; /* kind, rank, token, value of the first refused routing; kind 0: none */
    unsigned long long overflow_rows, rows_kept;
} xp_ep_cuda_news;

/** What a plan's kernels know: the shape, and device memory of the plan and of its slot. Array
 * lengths and meanings: xp_ep_plan. */
typedef struct xp_ep_cuda_plan {
    int n_ranks, rank, n_experts, n_local, top_k, block_ints;
    bool local;
    int64_t max_rounds, pick_capacity, round_picks, recv_capacity, max_tokens;
    int64_t tile_tokens, n_tokens;
    const int32_t *topk_idx;
    const float *topk_weight;
    int32_t *tile_counts;        /* [n_tiles, E + R], then [n_tiles, L] */
    unsigned long long *refused; /* [1] smallest (token, kind, value) of a bad pick; ~0: none */
    int32_t *block;              /* [block_ints] this rank's */
    int32_t *blocks;             /* [R, block_ints] */
    xp_ep_cuda_pick *picks_to[XP_EP_CUDA_MAX_RANKS]; /* this rank's first pick at rank d */
    const xp_ep_cuda_pick *picks;                    /* received */
    int32_t *send_row_base, *send_pick_base, *recv_row_base, *recv_pick_base;
    int32_t *dest_row_base, *dest_pick_base, *source_row_base, *source_pick_base;
    int32_t *send_token, *send_pick, *pick_entry, *token_first, *token_row, *send_round;
    int32_t *recv_pick, *round_row, *pick_pos, *offsets, *gather, *n_recv;
    float *weight;
    int64_t *expert_tokens;
    int32_t *totals; /* [4 + R] rounds, recv rows, recv picks, refused; picks to each rank */
    xp_ep_cuda_news *news;
} xp_ep_cuda_plan;

/** Count this rank's picks; plan->block is complete after it. */
xp_status xp_ep_cuda_route(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With every rank's block: bases, then the lists of rows and picks to send. */
xp_status xp_ep_cuda_build_send(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With every pick for this rank: rounds and the experts' lists. */
xp_status xp_ep_cuda_build_recv(cudaStream_t stream, const xp_ep_cuda_plan *plan);

/** Rows of this round that stay on this rank, in their order: recv[i] = x[send_token[..]]. */
typedef struct xp_ep_cuda_rows {
    int64_t dim;
    size_t row_bytes;
    bool bf16;
    int64_t round;
    int n_blocks;
} xp_ep_cuda_rows;
xp_status xp_ep_cuda_keep_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *x, void *recv);
/**
 * The two levels of the sum for the tokens of a round; see xp_ep_sum_args.
 * @param home  one row a send row, of all rounds so far; NULL when all rows are this rank's own
 * @param y     this rank's expert rows of the round: its own rows are summed from them
 */
xp_status xp_ep_cuda_sum_home(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                              const xp_ep_cuda_rows *rows, const void *home, const void *y,
                              void *out);
/** d_topk_weight at (token, k) of every own pick of the round = d_weight of its pick row. */
xp_status xp_ep_cuda_keep_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const float *d_weight, float *d_topk_weight);

#ifdef __cplusplus
}
#endif
#endif
