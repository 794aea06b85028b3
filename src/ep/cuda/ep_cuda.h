/**
 * Expert parallelism on a GPU: kernels that build plans and move rows. Counts stay on the device:
 * every launch is sized by bounds that the host knows, and reads on the device how much of that is
 * used.
 *
 *   route -> totals -> (exchange) -> derive -> send -> (exchange) -> find rows -> rounds
 *         -> count, scan, place -> (exchange of where rounds start)
 *
 * Orders are those of the CPU's plan (ep/plan.h), fixed by prefix sums over tiles of tokens, so the
 * results are the same bytes.
 *
 * Kernels that work never wait for another rank. Between them stand meetings (meet.cu): one small
 * block that tells every peer how far this rank has come and waits for the same of them.
 */
#ifndef XP_EP_CUDA_EP_CUDA_H
#define XP_EP_CUDA_EP_CUDA_H

#include "device/cuda/cuda_device.h"
#include "ep/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_EP_CUDA_MAX_RANKS XP_EP_GPU_MAX_RANKS /* a lane a rank */

/** One assignment as its source tells it to the expert's rank: xp_ep_assignment. */
typedef struct xp_ep_cuda_assignment {
    uint32_t expert;
    float weight;
} xp_ep_cuda_assignment;

/** The first meeting that failed. */
typedef struct xp_ep_cuda_failure {
    int32_t kind;              /* 0: none; 1: this rank waited in vain; 2: another rank said so */
    int32_t reporter, missing; /* who waited, for whom */
    int32_t n_missing, point, phase;
    uint32_t expected, seen; /* calls: this rank's, and the last that the missing rank reached */
    int64_t round;
} xp_ep_cuda_failure;

/** What kernels tell the host without its waiting: mapped host memory of the group. */
typedef struct xp_ep_cuda_news {
    int32_t error[4]; /* kind, rank, token, value of the first refused routing; kind 0: none */
    unsigned long long overflow_rows, rows_kept, rows_sent, wait_ns;
    xp_ep_cuda_failure failure;
} xp_ep_cuda_news;

/**
 * Whether a slot of a rank still works; first in its window. `failed` may be set by peers, and only
 * meetings look at it. `dead` is set by this rank's meetings alone, so that all blocks of the
 * kernels behind one see the same: they leave at once and touch nobody's memory.
 */
typedef struct xp_ep_cuda_fate {
    uint32_t failed; /* 0, or who reported whom: see meet.cu */
    uint32_t pad[15];
    uint32_t dead;
} xp_ep_cuda_fate;

/** What a plan's kernels know: the shape, and device memory of the plan and of its slot. Array
 * lengths and meanings: xp_ep_plan. */
typedef struct xp_ep_cuda_plan {
    int n_ranks, rank, n_experts, n_local, top_k, row_assignments, block_ints;
    int32_t bad_kind, bad_value; /* what the host has found wrong with this rank's routing, or 0 */
    const uint32_t *dead;        /* xp_ep_cuda_fate, or NULL where no meeting can fail */
    bool local;
    int64_t max_rounds, assignment_capacity, round_assignments, recv_capacity, max_tokens;
    int64_t tile_tokens, n_tokens;
    const int32_t *topk_idx;
    const float *topk_weight;
    int32_t *tile_counts; /* [n_tiles, E + R], then [n_tiles, L] */
    unsigned long long
        *refused;    /* [1] smallest (token, kind, value) of a bad assignment; ~0: none */
    int32_t *block;  /* [block_ints] this rank's */
    int32_t *blocks; /* [R, block_ints] */
    xp_ep_cuda_assignment
        *assignments_to[XP_EP_CUDA_MAX_RANKS]; /* all ranks' assignments at rank d; or, packed, */
    bool packs_assignments;                    /* this rank's send assignments */
    const xp_ep_cuda_assignment *assignments;  /* received */
    int32_t *send_row_base, *send_assignment_base, *recv_row_base, *recv_assignment_base;
    int32_t *dest_row_base, *dest_assignment_base, *source_row_base, *source_assignment_base;
    int32_t *send_token, *send_assignment, *assignment_entry, *token_first, *token_row, *send_round;
    int32_t *dest_slot;         /* first [R, max_rounds] for the sources, then as in xp_ep_plan */
    int32_t *first_assignments; /* xp_ep_plan's round_assignments */
    int32_t *recv_assignment, *round_row, *assignment_pos, *offsets, *gather, *n_recv;
    float *weight;
    int64_t *expert_tokens;
    int32_t *
        totals; /* [4 + R] rounds, recv rows, recv assignments, refused; assignments to each rank */
    xp_ep_cuda_news *news;
} xp_ep_cuda_plan;

/** Count this rank's assignments; plan->block is complete after it. */
xp_status xp_ep_cuda_route(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With every rank's block: bases, then the lists of rows and assignments to send. */
xp_status xp_ep_cuda_build_send(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With every assignment for this rank: rounds and the experts' lists. */
xp_status xp_ep_cuda_build_recv(cudaStream_t stream, const xp_ep_cuda_plan *plan);

/** plan->dest_slot from `starts` [R, max_rounds], what each destination has told. */
xp_status xp_ep_cuda_place_rounds(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                  const int32_t *starts);

/** A meeting of all ranks on their streams. Arrays are indexed by rank. */
typedef struct xp_ep_cuda_meet {
    int n_ranks, rank, point, phase;
    uint32_t epoch;
    bool waits; /* false: only what is brought is delivered; the host meets */
    bool locks; /* memory that is not a window's is written next: see meet.cu */
    uint64_t timeout_ns;
    int64_t round;
    int64_t least_rounds;  /* held only when the plan has more rounds than this; -1: always */
    const int32_t *totals; /* of the plan */
    uint32_t *flags[XP_EP_CUDA_MAX_RANKS]; /* of this point, a line each, in each rank's window */
    uint32_t *busy[XP_EP_CUDA_MAX_RANKS];
    const uint32_t *own_data; /* flags of the point that ends writing, in this rank's window */
    xp_ep_cuda_fate *fates[XP_EP_CUDA_MAX_RANKS];
    /* n words for each rank, at brought + rank * stride; written to `to` before the flag. */
    const int32_t *brought;
    int64_t n_brought, stride;
    int32_t *to[XP_EP_CUDA_MAX_RANKS];
    const void *shown; /* when not NULL: this address is brought to everybody instead */
    xp_ep_cuda_news *news;
} xp_ep_cuda_meet;
#define XP_EP_CUDA_FLAG_WORDS 16
xp_status xp_ep_cuda_hold_meeting(cudaStream_t stream, const xp_ep_cuda_meet *meet);

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
/** d_topk_weight at (token, k) of every own assignment of the round = d_weight of its assignment row. */
xp_status xp_ep_cuda_keep_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const float *d_weight, float *d_topk_weight);

/** Where rows go over p2p, by rank. */
typedef struct xp_ep_cuda_peers {
    void *const *recv_at; /* [R] device memory: where the others want theirs; NULL: `recv` knows */
    char *recv[XP_EP_CUDA_MAX_RANKS];
    char *home[XP_EP_CUDA_MAX_RANKS];
    float *weights[XP_EP_CUDA_MAX_RANKS];
} xp_ep_cuda_peers;
/** This round's rows to where every destination wants them, a token's row read once. */
xp_status xp_ep_cuda_push_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const void *x);
/** recv[i] = arrived[i] for the recv rows of this round. */
xp_status xp_ep_cuda_take_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *arrived, void *recv);
/** First-level sums of this round's recv rows to their sources. Rows of this rank itself only when
 * the plan has several rounds. */
xp_status xp_ep_cuda_push_sums(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const void *y);
xp_status xp_ep_cuda_push_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const xp_ep_cuda_peers *peers, const float *d_weight);
/** The second level over p2p: `home` as above; with one round this rank's own rows are summed from
 * y. */
xp_status xp_ep_cuda_sum_arrived(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                 const xp_ep_cuda_rows *rows, const void *home, const void *y,
                                 void *out);
/** Both levels over a2a: `assignments` holds one row a send assignment. */
xp_status xp_ep_cuda_sum_assignments(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                     const xp_ep_cuda_rows *rows, const void *assignments,
                                     void *out);
/** d_topk_weight at (token, k) of every send assignment i of the round = values[i]. */
xp_status xp_ep_cuda_place_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                   const float *values, float *d_topk_weight);

/* a2a: assignment rows between tensors and what the all-to-all sends and receives. */

/** out[i] = the token row of send assignment i, for assignments of the round. */
xp_status xp_ep_cuda_pack_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *x, void *out);
/** recv = the first assignment's row of every recv row; `in` has a row for each recv assignment of the round.
 */
xp_status xp_ep_cuda_unpack_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                 const xp_ep_cuda_rows *rows, const void *in, void *recv);
/** in[i] = the expert row of recv assignment i of the round. */
xp_status xp_ep_cuda_pack_assignments(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                      const xp_ep_cuda_rows *rows, const void *y, void *in);
xp_status xp_ep_cuda_pack_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const float *d_weight, float *out);

/* hierarchical: rows whose number the host knows. All arrays of `args` are device memory; `rows`
 * says how wide they are and how many blocks may move them. */

xp_status xp_ep_cuda_copy_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                               const xp_ep_copy_args *args);
/** Sums of up to 32 rows. */
xp_status xp_ep_cuda_reduce_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                                 const xp_ep_reduce_args *args);
/** Tokens of up to 32 rows; without row_assignments and near. */
xp_status xp_ep_cuda_sum_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                              const xp_ep_sum_args *args);

#ifdef __cplusplus
}
#endif
#endif
