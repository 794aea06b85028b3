/**
 * Expert parallelism: send token rows to the ranks that own their experts, and bring the results
 * back.
 *
 * Letters: T tokens of this rank (may differ per rank, may be 0), D row width, E experts in all, K
 * assignments a token, R ranks of the group, L = E / R experts of this rank (expert e lives on rank e /
 * L).
 *
 *   plan      routing [T, K] -> counts, offsets, send/receive maps
 *   dispatch  x [T, D]            -> recv_x [recv_capacity, D]   one row per (token, destination
 * rank), ordered (source rank, token) (experts) recv_x, through the view's gather list -> y
 * [assignment_capacity, D], expert-major: one row per (token, local expert) combine   y [assignment_capacity,
 * D] -> out [T, D]
 *
 * The sum of combine has two levels, the same for p2p and a2a: the expert's rank adds a token's
 * local expert rows in fp32 in ascending expert order and casts to the row type; the source adds
 * over ranks ascending in fp32 and casts once. With R = 1 there is one sum and one cast.
 * hierarchical adds the ranks of a node in between, with one more cast.
 *
 * What exceeds capacity goes in rounds, each dispatch -> experts -> combine; nothing is dropped.
 * Every rank derives the number of rounds from the exchanged R x E counts, so all ranks make the
 * same calls. A (token, rank) row is never split: with P = assignment_capacity and Q = P - (min(K, L) -
 * 1), a rank with at most P assignments has one round, and otherwise a row is in round floor(i / Q), i
 * being the number of assignments before it in (source rank, token) order. The rounds of one sum go up
 * from 0 without another sum of the same slot in between; the result has the same bits as without
 * rounds (hierarchical: up to rounding).
 */
#ifndef EXPAR_EP_H
#define EXPAR_EP_H

#include "expar/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_ep_group xp_ep_group;
typedef struct xp_ep_plan xp_ep_plan;

typedef enum xp_ep_transport {
    XP_EP_AUTO = 0,     /* p2p where ranks can address each other's memory, else a2a */
    XP_EP_P2P,          /* "deepep": rows are written straight into the destination's slots */
    XP_EP_A2A,          /* "standard": pack, all-to-all, unpack; works over any communicator */
    XP_EP_HIERARCHICAL, /* rows cross the network once per destination node */
} xp_ep_transport;

typedef struct xp_ep_config {
    int64_t max_tokens; /* largest T of any rank in any call */
    int64_t dim;        /* D >= 1 */
    int top_k;          /* K */
    int n_experts;      /* E, divisible by R */
    xp_dtype dtype;     /* of rows: XP_F32 or XP_BF16 */
    double
        capacity_factor; /* assignment rows reserved over the balanced load, max_tokens * K; > 0 */
    xp_ep_transport transport;
    /* GPU, several ranks: blocks (of an SM each) for dispatch and combine; 0: the ranks of a GPU
     * share half of its SMs. */
    int num_sms;
    /* Of every wait inside dispatch and combine; 0 = the communicator's. Where the hosts meet
     * (ranks that share a GPU, phased groups) it is always the communicator's. */
    double timeout_s;
    /* Microbatch parts in flight at once, each on a stream of its own; 0 = 1.
     * See xp_ep_plan_set_slot(). */
    int n_slots;
    /* Only for xp_ep_query_sizes() and groups on the null device, which have no communicator that
     * could tell. */
    int n_ranks; /* R; 0 = 1. With a communicator: 0, or its size */
    int n_nodes; /* of a hierarchical group; 0 = 1 */
    /* p2p between processes keeps recv slots of its own: n_slots * recv_capacity rows more. */
    bool separate_processes;
    bool on_gpu; /* of these, on a GPU: what peers open is reserved in blocks of 2 MiB */
    /* GPU; the same on every rank: ranks that are not of this group use its GPUs as well. Kernels
     * of the group then do not wait for each other (see docs/explanation/expert-parallelism.md); the group
     * finds out by itself when its own ranks share. */
    bool shares_gpus;
    /* GPU, p2p; the same on every rank: the host meets the other ranks between kernels, and no
     * kernel waits. Same bits, more time; for tools that run kernels one by one. Groups of
     * processes that share a GPU are so without being asked. */
    bool host_synchronized;
} xp_ep_config;

/** Bytes and rows that a group of this shape reserves on one rank; needs no communicator. */
typedef struct xp_ep_sizes {
    int64_t recv_capacity;       /* rows of recv_x: min(R * max_tokens, assignment_capacity) */
    int64_t assignment_capacity; /* rows of y: ceil(capacity_factor * max_tokens * K), at most R *
                              max_tokens * min(K, L) */
    int64_t max_rounds; /* rounds needed when every token of every rank selects this rank's experts
                              only */
    size_t group_bytes; /* windows and buffers of the group (AUTO counts as p2p) */
    size_t plan_bytes;  /* of one plan */
} xp_ep_sizes;
/** @return XP_OK; XP_EINVAL for a bad size; XP_ENOTSUP with on_gpu where the GPUs' kernels do not
 * serve so many ranks or assignments */
XP_API XP_NODISCARD xp_status xp_ep_query_sizes(const xp_ep_config *config, int n_ranks,
                                                xp_ep_sizes *sizes);

/**
 * Collective. Reserves all buffers (tag "ep").
 * @param comm borrowed; must outlive the group. NULL: a group of one rank
 * @return XP_OK; XP_EINVAL when E is not divisible by R, or a bad size; XP_ENOTSUP when the
 * transport cannot work here
 */
XP_API XP_NODISCARD xp_status xp_ep_group_create(xp_comm *comm, xp_device *device,
                                                 const xp_ep_config *config, xp_ep_group **group);
XP_API void xp_ep_group_destroy(xp_ep_group *group);
XP_API xp_ep_sizes xp_ep_group_sizes(const xp_ep_group *group);
XP_API int xp_ep_group_rank(const xp_ep_group *group);
XP_API int xp_ep_group_n_ranks(const xp_ep_group *group);
/** The transport in use, after AUTO has been resolved. */
XP_API xp_ep_transport xp_ep_group_transport(const xp_ep_group *group);

/**
 * True when the group is one rank that never needs a second round. Then the recv rows are the token
 * rows, also of tokens without assignments: row t is token t, n_recv is T, and a caller may leave
 * dispatch out and let view.gather index x itself.
 */
XP_API bool xp_ep_group_is_local(const xp_ep_group *group);

/** A plan's memory, for re-use step after step: one for each layer when routing is kept for
 * backward. Collective in order only. */
XP_API XP_NODISCARD xp_status xp_ep_plan_create(xp_ep_group *group, xp_ep_plan **plan);
XP_API void xp_ep_plan_destroy(xp_ep_plan *plan);
/**
 * Which of the group's n_slots the calls with this plan use; 0 after create. Calls of one slot run
 * in the same order on every rank; calls of different slots may run at the same time on different
 * streams. Where the hosts of GPU ranks meet (ranks that share a GPU, phased groups), the calls of
 * all slots come from one thread in one order. Every rank gives the same plan the same slot.
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_set_slot(xp_ep_plan *plan, int slot);

/**
 * Fill `plan` from this rank's routing. Collective.
 * @param topk_idx    [T, K] int32 global expert ids, -1 = no assignment. A duplicate in a row or an id >=
 * E is XP_EINVAL on every rank of the group, and nothing is sent
 * @param topk_weight [T, K] fp32; copied. NULL: weights are 1
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_build(xp_ep_group *group, const int32_t *topk_idx,
                                               const float *topk_weight, int64_t n_tokens,
                                               xp_stream *stream, xp_ep_plan *plan);

typedef struct xp_ep_counts {
    int64_t n_rounds; /* of the whole group, >= 1 */
    const int64_t
        *expert_tokens;    /* [L] assignments of each local expert from all ranks and rounds; host
                                     memory of the plan */
    int64_t n_recv;        /* recv rows over all rounds */
    int64_t n_assignments; /* assignment rows over all rounds */
} xp_ep_counts;
/** The only call that may wait for the device; training on a GPU never makes it. Host memory, valid
 * until the next build. */
XP_API XP_NODISCARD xp_status xp_ep_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts);

/** What the experts of this rank need for one round; device memory of the plan, valid until its
 * next build. */
typedef struct xp_ep_view {
    const int32_t *
        offsets; /* [L + 1] first assignment row of each local expert; offsets[L] = assignments of this round */
    const int32_t *gather; /* [assignment_capacity] assignment row -> recv row */
    const float *weight;   /* [assignment_capacity] routing weight of each assignment row */
    const int32_t *n_recv; /* [1] recv rows of this round */
} xp_ep_view;
XP_API XP_NODISCARD xp_status xp_ep_plan_view(const xp_ep_plan *plan, int64_t round,
                                              xp_ep_view *view);

/**
 * Send local token rows to the ranks that own their experts. Collective: every rank calls in the
 * same order.
 *
 * @param x      [T, D], the group's row type; borrowed
 * @param[out] recv_x  [recv_capacity, D]; rows past this round's count are left alone; must not
 * overlap x
 * @return XP_OK; XP_EINVAL: nothing sent, recv_x untouched; XP_ECOMM: the group is unusable,
 * destroy it
 */
XP_API XP_NODISCARD xp_status xp_ep_dispatch(xp_ep_group *group, const xp_ep_plan *plan,
                                             int64_t round, const xp_tensor *x, xp_tensor *recv_x,
                                             xp_stream *stream);
/**
 * Bring expert rows home. Collective.
 * @param y        [assignment_capacity, D] expert-major rows of this round
 * @param[out] out  [T, D]: written whole in round 0 (zeros for tokens without assignments); a later round
 *                  writes the tokens it has rows of, with their sums over all rounds so far
 */
XP_API XP_NODISCARD xp_status xp_ep_combine(xp_ep_group *group, const xp_ep_plan *plan,
                                            int64_t round, const xp_tensor *y, xp_tensor *out,
                                            xp_stream *stream);
/**
 * Gradient of dispatch: expert -> source. The same two-level sum as combine. Every rank passes
 * d_assignment_weight, or every rank NULL.
 * @param d_assignment_x       [assignment_capacity, D] gradient of the rows the experts read, expert-major
 * @param d_assignment_weight  [assignment_capacity] fp32 gradient of the routing weights, or NULL
 * @param[out] dx        [T, D], as combine's out
 * @param[out] d_topk_weight  [T, K] fp32: each gradient at its (token, k); 0 where there is no
 * assignment; or NULL. Written whole in round 0, the later rounds' entries filled in by them
 */
XP_API XP_NODISCARD xp_status xp_ep_dispatch_backward(
    xp_ep_group *group, const xp_ep_plan *plan, int64_t round, const xp_tensor *d_assignment_x,
    const float *d_assignment_weight, xp_tensor *dx, float *d_topk_weight, xp_stream *stream);
/** Gradient of combine: source -> expert, a dispatch of d_out with the same plan. @param[out]
 * d_recv [recv_capacity, D] */
XP_API XP_NODISCARD xp_status xp_ep_combine_backward(xp_ep_group *group, const xp_ep_plan *plan,
                                                     int64_t round, const xp_tensor *d_out,
                                                     xp_tensor *d_recv, xp_stream *stream);

/** The sticky failure of the group, XP_OK while there is none. Never waits. */
XP_API xp_status xp_ep_async_error(const xp_ep_group *group);

typedef struct xp_ep_stats {
    int64_t bytes_sent_remote; /* row bytes that left this rank, or that others read here */
    int64_t bytes_kept;        /* row bytes that stayed on this rank */
    int64_t n_dispatches, n_combines, n_host_waits;
    int64_t overflow_rows; /* assignment rows beyond round 0 */
    double wait_s;         /* time spent waiting for peers */
} xp_ep_stats;
/** Totals since create or the last reset. */
XP_API void xp_ep_get_stats(const xp_ep_group *group, xp_ep_stats *stats);
XP_API void xp_ep_reset_stats(xp_ep_group *group);

#ifdef __cplusplus
}
#endif
#endif
