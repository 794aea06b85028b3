/** The numbers that follow from a group's configuration: capacities, the round rule, the bytes of
 * every buffer. */
#ifndef XP_EP_SHAPE_H
#define XP_EP_SHAPE_H

#include "expar/ep.h"

#define XP_EP_MAX_TOP_K     64
#define XP_EP_MAX_ROUNDS    1024
#define XP_EP_GPU_MAX_TOP_K 32 /* a warp takes a token, a lane an assignment */
#define XP_EP_GPU_MAX_RANKS 32 /* a bit of a word a rank */
/** What an a2a group asks of its communicators on GPUs, one a slot (xp_comm_prepare): larger
 * exchanges go in pieces of this size where they are staged. */
#define XP_EP_A2A_PIECE_BYTES ((size_t)16 << 20)

/** Device bytes that the communicators of a group's slots reserve where each rank has a GPU of its
 * own: for predictions. */
size_t xp_ep_comm_bytes(const xp_ep_config *config, int n_ranks);
/**
 * XP_EP_AUTO becomes p2p where the ranks share memory, else a2a.
 * @return XP_OK; XP_ENOTSUP: p2p between nodes
 */
XP_NODISCARD xp_status xp_ep_choose_transport(xp_ep_config *config, bool shares_memory);

typedef struct xp_ep_shape {
    int n_ranks;            /* R */
    int n_experts, n_local; /* E, L */
    int top_k;              /* K */
    int row_assignments;    /* min(K, L): most assignments of one recv row */
    int n_slots;
    int64_t max_tokens, dim; /* M, D */
    xp_dtype dtype;
    size_t row_bytes;
    int64_t assignment_capacity; /* P */
    int64_t recv_capacity;
    int64_t
        round_assignments; /* Q = P - (row_assignments - 1): a row whose first assignment is below (r + 1) Q ends
                            below r Q + P */
    int64_t max_rounds;
    int64_t max_send_rows;        /* M * min(K, R): rows one source sends, all rounds (local: M) */
    int64_t max_send_assignments; /* M * K */
    int64_t max_recv_rows;        /* R * M */
    int64_t max_recv_assignments; /* R * M * row_assignments */
    bool local; /* one rank, one round: recv rows are the token rows, with or without assignments */
    int block_ints;      /* what a rank tells the others about its routing: XP_EP_BLOCK_* */
    int64_t tile_tokens; /* tokens a tile of the plan kernels takes; fixed borders */
    int64_t n_tiles;
} xp_ep_shape;

/* Layout of a rank's block: assignments of each expert [E], rows to each rank [R], then its error. */
#define XP_EP_BLOCK_ROWS(shape)  ((shape)->n_experts)
#define XP_EP_BLOCK_ERROR(shape) ((shape)->n_experts + (shape)->n_ranks) /* kind, token, value */

/** @return XP_EINVAL naming the value that is wrong */
XP_NODISCARD xp_status xp_ep_shape_make(const xp_ep_config *config, int n_ranks,
                                        xp_ep_shape *shape);
/** Whether the kernels of GPUs serve it. @return XP_OK; XP_ENOTSUP with the limit */
XP_NODISCARD xp_status xp_ep_shape_check_gpu(const xp_ep_shape *shape);

/** Rounds that a rank needs for this many assignments. */
int64_t xp_ep_shape_rounds(const xp_ep_shape *shape, int64_t n_assignments);
/** The first assignment of round r; rows belong to the round in which their first assignment lies. */
int64_t xp_ep_shape_round_start(const xp_ep_shape *shape, int64_t n_assignments, int64_t round);

/** Takes n_bytes from a region that starts at NULL when only counting; 256-byte steps. */
typedef struct xp_ep_carver {
    char *base;
    size_t used;
} xp_ep_carver;
void *xp_ep_carve(xp_ep_carver *carver, size_t n_bytes);

#endif
