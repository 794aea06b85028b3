/**
 * Expert parallelism: send token rows to the ranks that own their experts, and return the results.
 *
 * Letters
 *   T  tokens of this rank; may differ per rank, may be 0
 *   D  row width                          K  assignments per token (top-k)
 *   E  experts in all                     R  ranks of the group
 *   L  = E / R experts of each rank; expert e lives on rank e / L
 *   P  = assignment_capacity, rows of y   (xp_ep_sizes)
 *
 * The four calls of a layer
 *   call      input                     output                          rows
 *   plan      topk_idx [T, K],          the plan: counts, offsets,
 *             topk_weight [T, K]        send and receive lists
 *   dispatch  x [T, D]                  recv_x [recv_capacity, D]       one per (token, rank), ordered by
 *                                                                       (source rank, token)
 *   experts   recv_x[gather[i]],        y [P, D]                        one per (token, local expert),
 *             weight[i]                                                 expert-major
 *   combine   y [P, D]                  out [T, D]                      one per token
 * The experts are the caller's: xp_ep_plan_view() says which rows they take. Backward is the same with
 * the same plan: combine_backward dispatches the gradient of `out`, dispatch_backward combines the
 * gradients of the experts' inputs.
 *
 * Levels of the sum
 *   1. The expert's rank adds a token's local expert rows in fp32, ascending expert, and casts to the
 *      row type.
 *   2. The source adds over ranks in fp32, ascending rank, and casts once.
 *   The same for p2p and a2a, bit for bit. hierarchical adds the ranks of a node in between, with one
 *   more cast. With R = 1 there is one sum and one cast.
 *
 * Rounds
 *   What exceeds capacity goes in further rounds, each dispatch -> experts -> combine. Nothing is
 *   dropped. Every rank derives the number of rounds from the exchanged R x E counts, so all ranks make
 *   the same calls. With Q = P - (min(K, L) - 1): a rank that gets at most P assignments has one round;
 *   otherwise a row is in round floor(i / Q), where i is the number of assignments before it in (source
 *   rank, token) order. A (token, rank) row is never split. The rounds of one sum go up from 0 without
 *   another sum of the same slot in between; the result has the bits of one large round (hierarchical:
 *   up to rounding).
 *
 * GPUs
 *   All calls but xp_ep_plan_wait() return once their work is queued. Over p2p, where every rank has a
 *   GPU of its own, kernels wait for other ranks (a barrier before and after the rows). While one waits,
 *   nothing in this process may be loaded, reserved, freed or connected for the first time on any of the
 *   group's GPUs: such a call waits for the running kernels, which wait for the rank that makes it.
 *   xp_ep_group_create() loads the kernels of this header, makes their events and connects their
 *   windows, and ends with a barrier of the hosts. What the caller uses besides must be ready in the
 *   same way before the first xp_ep_plan_build(): kernels and library handles (cuBLASLt, cuDNN) for all
 *   shapes, communicators (xp_comm_prepare()), buffers; then a barrier of the hosts. The same before
 *   anything is freed. Copies to or from memory that is not page-locked wait likewise.
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
    XP_EP_P2P,          /* "deepep": rows are written straight into the destination's memory */
    XP_EP_A2A,          /* "standard": pack, all-to-all, unpack; works over any communicator */
    XP_EP_HIERARCHICAL, /* rows cross the network once per destination node */
} xp_ep_transport;

/** All fields are the same on every rank. */
typedef struct xp_ep_config {
    int64_t max_tokens; /* largest T of any rank in any call; > 0 */
    int64_t dim;        /* D; 1 to 2^24 */
    int top_k;          /* K; 1 to min(E, 64), on GPUs at most 32 */
    int n_experts;      /* E; a multiple of R */
    xp_dtype dtype;     /* of rows: XP_F32 or XP_BF16 */
    /* Assignment rows reserved, over the balanced load of max_tokens * K; above 0, at most 1e9. */
    double capacity_factor;
    xp_ep_transport transport;
    /* GPU, several ranks: thread blocks (one per SM) of dispatch and combine. 0: the ranks of a GPU
     * together take half of its SMs. */
    int num_sms;
    /* Seconds that any wait inside a call may take; 0: the communicator's. Barriers made by the hosts
     * (ranks that share a GPU, host_synchronized) always take the communicator's. */
    double timeout_s;
    /* Parts of a microbatch in flight at once, each on a stream of its own; 0 = 1, at most 16. See
     * xp_ep_plan_set_slot(). */
    int n_slots;

    /* Only for xp_ep_query_sizes() and for groups on the null device, which have no communicator to
     * ask. With a communicator n_ranks is 0 or its size, and the others are found out. */
    int n_ranks;             /* R; 0 = 1 */
    int n_nodes;             /* of a hierarchical group; 0 = 1 */
    bool separate_processes; /* p2p between processes has recv rows of its own: n_slots *
                                recv_capacity rows more */
    bool on_gpu;             /* memory that other processes open is reserved in blocks of 2 MiB */

    /* GPU: calls of other groups, of these ranks or of others, may be under way on this group's GPUs at
     * the same time, so its kernels may not wait for each other: a waiting kernel of one group could
     * keep the SMs that another's needs. Two layers whose calls one stream orders are no such case. The
     * group finds out by itself when its own ranks share a GPU. */
    bool shares_gpus;
    /* GPU, p2p: the hosts make the barriers between kernels and no kernel waits. The same bits, more
     * time; for tools that run one kernel at a time (compute-sanitizer, profilers). Processes that
     * share a GPU are host-synchronised without being asked. */
    bool host_synchronized;
    /* For measurements: every row that goes to another rank is sent so many times, all but once into
     * memory that nobody reads, so that a small group moves the bytes of a large one. Results do not
     * change. 0 = 1, at most 64; needs assignment_capacity >= max_tokens. */
    int send_copies;
} xp_ep_config;

/** Rows and bytes that a group reserves on one rank. */
typedef struct xp_ep_sizes {
    int64_t recv_capacity;       /* rows of recv_x: min(R * max_tokens, assignment_capacity) */
    int64_t assignment_capacity; /* P, rows of y: ceil(capacity_factor * max_tokens * K) +
                                    min(K, L) - 1, at most R * max_tokens * min(K, L) */
    int64_t
        max_rounds; /* rounds when every token of every rank selects experts of this rank only */
    size_t group_bytes; /* device memory of the group (AUTO counts as p2p) */
    size_t plan_bytes;  /* device memory of one plan */
} xp_ep_sizes;

/**
 * What a group would reserve. Needs no communicator and no device.
 * @return XP_OK; XP_EINVAL: a value of the config is wrong, the error names it; XP_ENOTSUP: with
 *         on_gpu, the GPU kernels do not serve so many ranks or assignments
 */
XP_API XP_NODISCARD xp_status xp_ep_query_sizes(const xp_ep_config *config, int n_ranks,
                                                xp_ep_sizes *sizes);

/* ---- group --------------------------------------------------------------------------------- */

/**
 * Reserve all buffers of a group (device memory under the tag "ep"). Collective; every rank gives the same
 * config, but for num_sms, timeout_s and shares_gpus (XP_EINVAL on all of them names what differs).
 * @param comm    borrowed, must outlive the group; NULL: a group of one rank
 * @param device  borrowed, must outlive the group
 * @param config  copied
 * @param[out] group  the caller's, to destroy
 * @return XP_OK; XP_EINVAL: a value of the config is wrong; XP_ENOTSUP: the transport cannot work
 *         between these ranks, or this build has no kernels for the device; XP_ENOMEM; XP_ECOMM:
 *         another rank failed. Nothing is kept after an error
 */
XP_API XP_NODISCARD xp_status xp_ep_group_create(xp_comm *comm, xp_device *device,
                                                 const xp_ep_config *config, xp_ep_group **group);
/** Collective while the group is healthy: returns when no rank can touch this rank's memory any more.
 * Destroy its plans first. NULL is accepted. */
XP_API void xp_ep_group_destroy(xp_ep_group *group);
XP_API xp_ep_sizes xp_ep_group_sizes(const xp_ep_group *group);
XP_API int xp_ep_group_rank(const xp_ep_group *group);
XP_API int xp_ep_group_n_ranks(const xp_ep_group *group);
/** The transport in use, after AUTO has been resolved. */
XP_API xp_ep_transport xp_ep_group_transport(const xp_ep_group *group);

/**
 * True when the group is one rank that never needs a second round. Then recv row t is token t, also
 * for tokens without assignments, and n_recv is T: a caller may leave dispatch out and let view.gather
 * index x itself.
 */
XP_API bool xp_ep_group_is_local(const xp_ep_group *group);

/* ---- plan ---------------------------------------------------------------------------------- */

/**
 * Reserve a plan's memory, for use step after step: one plan for each layer when routing is kept for
 * backward. Every rank creates the same plans in the same order.
 * @param[out] plan  the caller's, to destroy before the group
 * @return XP_OK; XP_ENOMEM
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_create(xp_ep_group *group, xp_ep_plan **plan);
/** NULL is accepted. */
XP_API void xp_ep_plan_destroy(xp_ep_plan *plan);
/**
 * Choose which of the group's n_slots the calls with this plan use; 0 after create. Every rank gives
 * the same plan the same slot. Calls of one slot run in the same order on every rank; calls of
 * different slots may run at the same time on different streams. Where the hosts of GPU ranks make the
 * barriers (ranks that share a GPU, host_synchronized), the calls of all slots come from one thread in
 * one order.
 * @return XP_OK; XP_EINVAL: no such slot
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_set_slot(xp_ep_plan *plan, int slot);

/**
 * Fill `plan` from this rank's routing. Collective; queued on the stream.
 * @param topk_idx     [T, K] int32 global expert ids in device memory, -1: no assignment; borrowed until
 *                     the stream has passed
 * @param topk_weight  [T, K] fp32, likewise; NULL: weights are 1
 * @param n_tokens     T
 * @return XP_OK; XP_EINVAL: on every rank when one rank's routing has a duplicate expert in a row, an id
 *         outside -1 to E - 1, or too many tokens. Nothing is sent, the plan cannot be used, the group
 *         can. Over p2p on GPUs the device finds this out: the plan is then empty on every rank, and
 *         xp_ep_plan_wait() and xp_ep_async_error() tell. XP_ECOMM: the group is unusable, destroy it
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_build(xp_ep_group *group, const int32_t *topk_idx,
                                               const float *topk_weight, int64_t n_tokens,
                                               xp_stream *stream, xp_ep_plan *plan);

typedef struct xp_ep_counts {
    int64_t n_rounds;             /* of the whole group, >= 1 */
    const int64_t *expert_tokens; /* [L] assignments of each local expert from all ranks and rounds;
                                     host memory of the plan */
    int64_t n_recv;               /* recv rows over all rounds */
    int64_t n_assignments;        /* assignment rows over all rounds */
} xp_ep_counts;

/**
 * Wait for the plan's stream and read its counts. The only call that waits for the device; training on a
 * GPU never makes it.
 * @param[out] counts  valid until the next build
 * @return XP_OK; XP_EINVAL: the plan was never built, or its routing was refused; XP_ECOMM
 */
XP_API XP_NODISCARD xp_status xp_ep_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts);

/** What the experts of this rank need for one round; device memory of the plan, valid until its next
 * build. */
typedef struct xp_ep_view {
    const int32_t *offsets; /* [L + 1] first assignment row of each local expert; offsets[L]:
                               assignments of this round */
    const int32_t *gather;  /* [P] assignment row -> recv row */
    const float *weight;    /* [P] routing weight of each assignment row */
    const int32_t *n_recv;  /* [1] recv rows of this round */
    /* [L, 2] of each local expert: the first assignment row of this rank's own tokens, and one past
     * the last. Empty at the expert's first row in plans of more than one round. */
    const int32_t *own_rows;
    const int32_t
        *own_token; /* [P] token of each own assignment row; other entries are undefined */
} xp_ep_view;

/** Never waits. @return XP_OK; XP_EINVAL: `round` is not below max_rounds */
XP_API XP_NODISCARD xp_status xp_ep_plan_view(const xp_ep_plan *plan, int64_t round,
                                              xp_ep_view *view);

/* ---- rows ---------------------------------------------------------------------------------- */

/*
 * Common to the four calls. Collective: every rank makes the same calls in the same order on a slot;
 * queued on the stream, which belongs to the group's device. Tensors are [rows, D] of the group's row
 * type in device memory, borrowed until the stream has passed; pointers to multiples of 16 bytes and
 * rows of multiples of 16 bytes are faster. A round that the routing does not need is empty and costs
 * nothing. @return XP_OK; XP_EINVAL: an argument does not fit the plan or the group, nothing is sent and
 * outputs are untouched; XP_ECOMM: the group is unusable, destroy it.
 */

/**
 * Send local token rows to the ranks that own their experts.
 * @param x            [T, D]
 * @param[out] recv_x  [recv_capacity, D]; rows past this round's count are left alone; must not overlap x
 *                     (a local group's may be x itself)
 */
XP_API XP_NODISCARD xp_status xp_ep_dispatch(xp_ep_group *group, const xp_ep_plan *plan,
                                             int64_t round, const xp_tensor *x, xp_tensor *recv_x,
                                             xp_stream *stream);
/**
 * Return expert rows to their tokens' ranks, summed.
 * @param y         [P, D] expert-major rows of this round
 * @param[out] out  [T, D]. Round 0 writes all of it, zeros for tokens without assignments; a later round
 *                  writes the tokens it has rows of, with their sums over all rounds so far
 */
XP_API XP_NODISCARD xp_status xp_ep_combine(xp_ep_group *group, const xp_ep_plan *plan,
                                            int64_t round, const xp_tensor *y, xp_tensor *out,
                                            xp_stream *stream);
/**
 * combine in two halves, with the same result: other ranks get this rank's rows of their tokens while it
 * still computes its own (view.own_rows). combine_send queues what the other ranks wait for.
 * combine_recv writes out. It waits for the other ranks' halves, and its stream, which may be another
 * one, comes behind the work that was queued for combine_send.
 *
 * Between the two, y changes in own rows only, and no other call uses the plan's slot: those return
 * XP_EINVAL. Transports that cannot send early do the whole work in combine_recv, then rows are read
 * there. Both halves are collective, of the same plan, round and y.
 * @param y  [P, D]: combine_send reads what is not in own_rows, combine_recv all of it
 * @return combine_send: as xp_ep_combine(); after an error there is nothing to receive. combine_recv:
 *         XP_EINVAL when nothing was sent, or the arguments do not fit what was sent: then it is still to
 *         be received, and out is untouched; XP_ECOMM: the group is unusable, destroy it
 */
XP_API XP_NODISCARD xp_status xp_ep_combine_send(xp_ep_group *group, const xp_ep_plan *plan,
                                                 int64_t round, const xp_tensor *y,
                                                 xp_stream *stream);
/** @param[out] out  [T, D], as xp_ep_combine()'s */
XP_API XP_NODISCARD xp_status xp_ep_combine_recv(xp_ep_group *group, const xp_ep_plan *plan,
                                                 int64_t round, const xp_tensor *y, xp_tensor *out,
                                                 xp_stream *stream);
/**
 * Gradient of dispatch: expert -> source, with the two-level sum of combine. Every rank passes
 * d_assignment_weight, or every rank NULL.
 * @param d_assignment_x       [P, D] gradient of the rows that the experts read, expert-major
 * @param d_assignment_weight  [P] fp32 gradient of the routing weights, or NULL
 * @param[out] dx              [T, D], as combine's out
 * @param[out] d_topk_weight   [T, K] fp32, or NULL: each gradient at its (token, k), 0 where there is no
 *                             assignment. Round 0 writes all of it, later rounds fill in their entries
 */
XP_API XP_NODISCARD xp_status xp_ep_dispatch_backward(
    xp_ep_group *group, const xp_ep_plan *plan, int64_t round, const xp_tensor *d_assignment_x,
    const float *d_assignment_weight, xp_tensor *dx, float *d_topk_weight, xp_stream *stream);
/**
 * Gradient of combine: source -> expert, a dispatch of d_out with the same plan.
 * @param d_out        [T, D]
 * @param[out] d_recv  [recv_capacity, D], as dispatch's recv_x
 */
XP_API XP_NODISCARD xp_status xp_ep_combine_backward(xp_ep_group *group, const xp_ep_plan *plan,
                                                     int64_t round, const xp_tensor *d_out,
                                                     xp_tensor *d_recv, xp_stream *stream);

/* ---- errors and statistics ----------------------------------------------------------------- */

/**
 * The group's sticky failure (XP_ECOMM), or the first routing that the device has refused (XP_EINVAL);
 * XP_OK while there is neither. Never waits. On GPUs call it after waiting for a step's stream and
 * before the step's results are used: work behind a failed barrier computes nothing.
 */
XP_API xp_status xp_ep_async_error(const xp_ep_group *group);

typedef struct xp_ep_stats {
    int64_t bytes_sent_remote; /* row bytes that left this rank, or that others read here */
    int64_t bytes_kept;        /* row bytes that stayed on this rank */
    int64_t n_dispatches, n_combines;
    int64_t n_host_waits;  /* waits of the host for the device */
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
