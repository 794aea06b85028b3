/**
 * The plan kernels of a GPU, and what all its row kernels take. Counts stay on the device: every
 * launch is sized by bounds that the host knows, and reads on the device how much of that is used.
 *
 *   count -> (exchange of counts) -> list -> (exchange of assignments) -> place
 *         with more than one round: -> (exchange of where rounds start), count rounds -> place rounds
 *
 * With one round, every rank's counts tell where each assignment stands in its expert's list, so its
 * source works that out (list). With several, the expert's rank counts by round; the kernels for that
 * leave at once otherwise. Orders are those of the CPU's plan (ep/common/plan.h), fixed by prefix sums
 * over tiles of tokens, so the results are the same bytes.
 *
 * No block waits for another block of its grid: what needs all of them is done by the one that ends
 * last. The kernels declared here do not wait for other ranks either; p2p/cuda/plan.cu makes kernels
 * that do of the same bodies (plan_counts.cuh, plan_lists.cuh, plan_recv.cuh).
 */
#ifndef XP_EP_COMMON_CUDA_KERNELS_H
#define XP_EP_COMMON_CUDA_KERNELS_H

#include "device/cuda/cuda_device.h"
#include "ep/common/assignment.h"
#include "ep/internal.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_EP_CUDA_MAX_RANKS XP_EP_GPU_MAX_RANKS /* one lane per rank */

/** The first barrier that failed: see p2p/cuda/barrier.cuh. */
typedef struct xp_ep_cuda_failure {
    int32_t kind;              /* 0: none; else xp_ep_barrier_failure; written last */
    int32_t reporter, missing; /* who waited, for whom */
    int32_t n_missing, point, phase;
    uint32_t expected, seen; /* epochs: this rank's, and the last that the missing rank reached */
    int64_t round;
} xp_ep_cuda_failure;

/** The device status block: mapped host memory of the group, written by kernels and read by the host
 * without waiting. */
typedef struct xp_ep_cuda_status {
    int32_t error[4]; /* kind, rank, token, value of the first refused routing; kind 0: none */
    unsigned long long overflow_rows, rows_kept, rows_sent, wait_ns;
    xp_ep_cuda_failure failure;
    uint32_t host_abort; /* the other way: set by the host when the communicator has failed */
} xp_ep_cuda_status;

/** A plan as kernels see it: the shape, and device memory of the plan and of its slot. Array lengths
 * and meanings: xp_ep_plan. Passed by value. */
typedef struct xp_ep_cuda_plan {
    int n_ranks, rank, n_experts, n_local, top_k, row_assignments, counts_ints;
    int n_blocks;                /* of a plan kernel at most */
    int32_t bad_kind, bad_value; /* what the host has found wrong with this rank's routing, or 0 */
    /* This slot's abort word; not 0: a barrier has failed and kernels return at once. NULL where no
     * barrier runs on the device. */
    const uint32_t *aborted;
    bool local;
    int64_t max_rounds, assignment_capacity, round_assignments, recv_capacity, max_tokens;
    int64_t tile_tokens, n_tokens;
    const int32_t *topk_idx;
    const float *topk_weight;
    int32_t *tile_counts;  /* [n_tiles, E + 2 R] */
    int32_t *round_counts; /* [n_tiles + max_rounds, L]; with max_rounds > 1 */
    /* [1] ~0 less the smallest (token, kind, value) of a bad assignment; 0: none. A plan leaves 0. */
    unsigned long long *refused;
    unsigned *n_done;         /* [1] blocks of the running kernel that are done; each leaves 0 */
    int32_t *own_counts;      /* [counts_ints] this rank's */
    const int32_t *counts_in; /* [R, counts_ints] as they have come; rank_counts or copied there */
    int32_t *rank_counts;     /* [R, counts_ints] */
    xp_ep_gpu_assignment *assignments_out; /* [send assignments] of this rank */
    /* Those for this rank, by source: with `pulls` in the source's assignments_out, else in recv
     * order. */
    const xp_ep_gpu_assignment *assignments_in[XP_EP_CUDA_MAX_RANKS];
    bool pulls;
    int32_t *send_row_base, *send_assignment_base, *recv_row_base, *recv_assignment_base;
    int32_t *dest_row_base, *dest_assignment_base, *source_row_base, *source_assignment_base;
    int32_t *send_token, *send_assignment, *assignment_entry, *token_first, *token_row, *send_round;
    int32_t
        *dest_slot; /* several rounds: first [R, max_rounds] for the sources; as in xp_ep_plan */
    int32_t *first_assignments; /* xp_ep_plan's round_assignments */
    int32_t *recv_assignment, *round_row, *assignment_pos, *offsets, *gather, *n_recv;
    int32_t *own_rows, *own_token;
    float *weight;
    int64_t *expert_tokens;
    int32_t *totals; /* [4 + R] rounds, recv rows, recv assignments, refused; assignments to each
                        rank */
    xp_ep_cuda_status *status;
} xp_ep_cuda_plan;

/** Count this rank's assignments; plan->own_counts is complete after it. */
xp_status xp_ep_cuda_count_plan(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With every rank's counts_in: prefix sums, the lists of rows and assignments to send, and with one
 * round all that follows for this rank's own assignments. */
xp_status xp_ep_cuda_list_plan(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With assignments_in: rounds and the experts' lists. */
xp_status xp_ep_cuda_place_plan(cudaStream_t stream, const xp_ep_cuda_plan *plan);
/** With several rounds: plan->dest_slot from `starts` [R, max_rounds], where each destination wants
 * this rank's rows. */
xp_status xp_ep_cuda_set_dest_slots(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                    const int32_t *starts);

/** Load the kernels of this file: see state.h. */
xp_status xp_ep_cuda_load_plan(void);
xp_status xp_ep_cuda_load_weights(void);

/** Rows as the row kernels see them, and how many blocks may copy or add them. */
typedef struct xp_ep_cuda_rows {
    int64_t dim;
    size_t row_bytes;
    bool bf16;
    int64_t round;
    int n_blocks;         /* of kernels that exchange rows */
    int n_local_blocks;   /* of kernels that only use this rank's memory */
    int n_waiting_blocks; /* p2p: of those that may wait for peers, beside n_blocks in one launch */
    bool bulk; /* the GPU has bulk asynchronous copies, and the code for them is loaded */
} xp_ep_cuda_rows;

/** out[i] = d_weight of recv assignment i of the round. */
xp_status xp_ep_cuda_pack_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const float *d_weight, float *out);
/** d_topk_weight at (token, k) of every send assignment i of the round = values[i]. */
xp_status xp_ep_cuda_scatter_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                     int64_t round, const float *values, float *d_topk_weight);

#ifdef __cplusplus
}
#endif
#endif
