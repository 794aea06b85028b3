/** The kernels of p2p on GPUs: the barrier between ranks, and rows between ranks that write into
 * each other's memory. */
#ifndef XP_EP_P2P_CUDA_KERNELS_H
#define XP_EP_P2P_CUDA_KERNELS_H

#include "ep/common/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What has become of a barrier: xp_ep_cuda_failure.kind. */
typedef enum xp_ep_barrier_failure {
    XP_EP_BARRIER_TIMED_OUT = 1, /* this rank waited in vain */
    XP_EP_BARRIER_REPORTED,      /* another rank has failed and said so */
    XP_EP_BARRIER_HOST_ABORT,    /* this rank's host, or another's, has given up */
} xp_ep_barrier_failure;

/**
 * A slot's abort flags, at the head of its part of the window. `failed` may be set by peers, and only
 * barriers read it. `aborted` is set by this rank's barriers and plan kernels alone, so that all blocks
 * of the kernels behind one see the same value: they return at once and touch nobody's memory. (Threads
 * of the plan kernel that sets it may see either: that group has failed by then.)
 */
typedef struct xp_ep_abort_flags {
    uint32_t failed; /* 0, or who missed whom where: see barrier.cu */
    uint32_t pad[15];
    uint32_t aborted;
    /* Set by this rank's row kernels, encoded like `failed`: rows have not arrived, and the kernel has
     * left without them. The next barrier fails. */
    uint32_t gave_up;
    /* Counters of the row kernel that runs; barriers, which lie between any two, set them to 0. */
    uint32_t n_started; /* combine: blocks */
    uint32_t n_taken;   /* dispatch: chunks */
    uint32_t failing;   /* a block of a plan kernel has waited in vain and aborts for all */
} xp_ep_abort_flags;

/** A barrier of all ranks on their streams. Arrays are indexed by rank. */
typedef struct xp_ep_barrier_args {
    int n_ranks, rank, point, phase;
    uint32_t epoch;
    bool waits; /* false: only the payload is delivered; the host makes the barrier */
    bool locks; /* memory outside the windows is written next: see barrier.cu */
    uint64_t timeout_ns;
    int64_t round;
    int64_t min_rounds;    /* skipped unless the plan has more rounds than this; -1: never */
    const int32_t *totals; /* of the plan */
    uint32_t *flags[XP_EP_CUDA_MAX_RANKS]; /* of this point, a line each, in each rank's window */
    uint32_t *busy[XP_EP_CUDA_MAX_RANKS];
    const uint32_t *own_data; /* flags of the point that ends writing, in this rank's window */
    xp_ep_abort_flags *abort[XP_EP_CUDA_MAX_RANKS];
    /* n words for each rank, at payload + rank * stride; written to `to` before the flag. */
    const int32_t *payload;
    int64_t n_payload, stride;
    int32_t *to[XP_EP_CUDA_MAX_RANKS];
    const void *payload_address; /* not NULL: this address is the payload for everybody */
    xp_ep_cuda_status *status;
} xp_ep_barrier_args;
#define XP_EP_CUDA_FLAG_WORDS 16
/** Load the kernels declared here: see ep/common/cuda/state.h. */
xp_status xp_ep_cuda_load_barrier(void);
xp_status xp_ep_cuda_load_p2p_rows(void);

xp_status xp_ep_cuda_launch_barrier(cudaStream_t stream, const xp_ep_barrier_args *barrier);

/** The barriers of a plan, which its kernels make themselves. */
typedef struct xp_ep_plan_barriers {
    xp_ep_barrier_args counts, assignments, starts;
} xp_ep_plan_barriers;
/** A whole plan; `starts` as in xp_ep_cuda_set_dest_slots(). Each rank on a GPU of its own. */
xp_status xp_ep_cuda_p2p_plan(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                              const xp_ep_plan_barriers *barriers, const int32_t *starts);
xp_status xp_ep_cuda_load_p2p_plan(void);

/** Where rows go, by rank. */
typedef struct xp_ep_cuda_peers {
    void *const *recv_at; /* [R] device memory: where the others want theirs; NULL: `recv` says */
    char *recv[XP_EP_CUDA_MAX_RANKS];
    char *combine_rows[XP_EP_CUDA_MAX_RANKS];
    float *weights[XP_EP_CUDA_MAX_RANKS];
} xp_ep_cuda_peers;

/** Rows in a window are told of in chunks: the smallest (XP_EP_P2P_CHUNK_ROWS), which combine uses. */
#define XP_EP_CUDA_CHUNK_ROWS 4
/** Row kernels that also receive: senders tell when rows have arrived in a peer's window, others wait
 * for that. Only where no two ranks share a GPU. Senders never wait, so every wait ends; it also ends
 * like a barrier's (p2p/barrier_wait.h). */
typedef struct xp_ep_cuda_arrivals {
    uint32_t *told[XP_EP_CUDA_MAX_RANKS]; /* [n_words] by rank: this rank's, in that one's window */
    const uint32_t *arrived;              /* [R, n_words] in this rank's window */
    int64_t n_words; /* dispatch: a word a chunk; combine: one for each column piece of a chunk */
    uint32_t epoch;  /* of the call: rows have arrived when their word has this value */
    int point;       /* for reports */
    uint64_t timeout_ns;
    xp_ep_abort_flags *abort; /* this rank's */
    const char *from;         /* this rank's window [recv_capacity, D] */
    char *to;                 /* recv_x */
} xp_ep_cuda_arrivals;

/** Whether rows of so many bytes go by bulk copies where the GPU has them and addresses are aligned. */
bool xp_ep_cuda_suits_bulk(size_t row_bytes);
/** Whether dispatch_rows can receive rows into recv. */
bool xp_ep_cuda_can_receive(const xp_ep_cuda_rows *rows, const void *x, const void *recv);
/** Behind a dispatch_rows or push_sums without arrivals, where the others may wait for rows. */
xp_status xp_ep_cuda_tell_all(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                              const xp_ep_cuda_rows *rows, bool combine,
                              const xp_ep_cuda_arrivals *arrivals);
/** This round's rows to where every destination wants them.
 * @param arrivals  NULL, or with can_receive(): rows from others are taken out of the window as well */
xp_status xp_ep_cuda_dispatch_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                   const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                   const xp_ep_cuda_arrivals *arrivals, const void *x);
/** recv[i] = arrived[i] for the recv rows of this round that other ranks have sent. */
xp_status xp_ep_cuda_copy_recv(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *arrived, void *recv);
/** to[i] = from[i] for i below plan->n_recv[round], in the SMs of an exchange. */
xp_status xp_ep_cuda_send_copy(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const void *from, void *to);
/** Whether push_sums can tell of sums in y, and whether it can combine them in out. */
bool xp_ep_cuda_can_tell_sums(const xp_ep_cuda_rows *rows, const void *y);
bool xp_ep_cuda_can_combine(const xp_ep_cuda_rows *rows, const void *y, const void *out);
/** First-level sums of this round's recv rows, pushed to their sources. Rows of this rank itself only
 * when the plan has several rounds.
 * @param arrivals  NULL, or with can_tell_sums()
 * @param out       NULL, or with can_combine(): when there is one round, all of combine_rows as well */
xp_status xp_ep_cuda_push_sums(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const xp_ep_cuda_arrivals *arrivals, const void *y, void *out);
/** With can_combine(), behind the push_sums of this rank: all of combine_rows when there is one round, as
 * the other ranks tell of their sums. rows->n_waiting_blocks blocks at most. */
xp_status xp_ep_cuda_combine_tokens(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                    const xp_ep_cuda_rows *rows,
                                    const xp_ep_cuda_arrivals *arrivals, const void *combine_rows,
                                    const void *y, void *out);
xp_status xp_ep_cuda_push_weights(cudaStream_t stream, const xp_ep_cuda_plan *plan, int64_t round,
                                  const xp_ep_cuda_peers *peers, const float *d_weight);
/** The second level of the sum: combine_rows has one row a send row, of all rounds so far; with one
 * round this rank's own rows are summed from y.
 * @param one_round_done  push_sums has done it when there is one round */
xp_status xp_ep_cuda_combine_rows(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                  const xp_ep_cuda_rows *rows, const void *combine_rows,
                                  const void *y, void *out, bool one_round_done);

#ifdef __cplusplus
}
#endif
#endif
