/** The numbers that follow from a group's configuration: capacities, the round rule, array lengths. */
#ifndef XP_EP_COMMON_SHAPE_H
#define XP_EP_COMMON_SHAPE_H

#include "expar/ep.h"

#define XP_EP_MAX_TOP_K  64
#define XP_EP_MAX_ROUNDS 1024
/** What a group that uses collectives on a GPU asks of its communicators (xp_comm_prepare). Larger
 * exchanges are staged in pieces of this size. */
#define XP_EP_A2A_PIECE_BYTES ((size_t)16 << 20)
/** To all ranks together, a plan's counts and assignments at their longest may be so large to be sent
 * in one exchange: half of it is padding at EP 2, 7/8 at EP 8. */
#define XP_EP_ONE_EXCHANGE_BYTES ((size_t)256 << 10)

typedef struct xp_ep_shape {
    int n_ranks;            /* R */
    int n_experts, n_local; /* E, L */
    int top_k;              /* K */
    int row_assignments;    /* min(K, L): most assignments of one recv row */
    int n_slots;
    int send_copies;         /* >= 1; see xp_ep_config */
    int64_t max_tokens, dim; /* M, D */
    xp_dtype dtype;
    size_t row_bytes;
    int64_t assignment_capacity; /* P */
    int64_t recv_capacity;
    /* Q = P - (row_assignments - 1): a row whose first assignment is below (r + 1) Q ends below
     * r Q + P. */
    int64_t round_assignments;
    int64_t max_rounds;
    int64_t max_send_rows;        /* M * min(K, R): rows one source sends over all rounds */
    int64_t max_send_assignments; /* M * K */
    int64_t max_recv_rows;        /* R * M */
    int64_t max_recv_assignments; /* R * M * row_assignments */
    bool local; /* one rank, one round: recv row t is token t, with or without assignments */
    bool on_gpu;
    int counts_ints;     /* length of a rank's counts, see XP_EP_COUNTS_* */
    int64_t tile_tokens; /* tokens per tile of the plan kernels; tile borders are fixed */
    int64_t n_tiles;
    /* CPU, over collectives: a rank's counts and all assignments that it can send to one rank, small
     * enough to be exchanged at once; 0: counts first, then as many assignments as they say. */
    size_t metadata_bytes;
} xp_ep_shape;

/* A rank's counts, which every other rank gets: assignments of each expert [E], rows to each rank
 * [R], then its routing error (kind, token, value). */
#define XP_EP_COUNTS_ROWS(shape)  ((shape)->n_experts)
#define XP_EP_COUNTS_ERROR(shape) ((shape)->n_experts + (shape)->n_ranks)

/** @return XP_EINVAL naming the value that is wrong */
XP_NODISCARD xp_status xp_ep_shape_make(const xp_ep_config *config, int n_ranks,
                                        xp_ep_shape *shape);
/** @return XP_OK; XP_ENOTSUP: the GPU kernels do not serve this shape; names the limit */
XP_NODISCARD xp_status xp_ep_shape_check_gpu(const xp_ep_shape *shape);

/** Bytes of a rank's counts in front of its assignments, see metadata_bytes. */
size_t xp_ep_metadata_counts_bytes(const xp_ep_shape *shape);

/** Rounds that a rank needs for this many assignments. */
int64_t xp_ep_shape_rounds(const xp_ep_shape *shape, int64_t n_assignments);
/** The first assignment of a round. A row belongs to the round in which its first assignment lies. */
int64_t xp_ep_shape_round_start(const xp_ep_shape *shape, int64_t n_assignments, int64_t round);

/** Bytes of one assignment on its way: xp_ep_assignment, on GPUs xp_ep_gpu_assignment. */
size_t xp_ep_assignment_bytes(const xp_ep_shape *shape);

/** Bytes of one slot's scratch of the plan kernels: counts by tile, then this rank's counts, then on
 * GPUs XP_EP_GPU_SCRATCH_WORDS and with several rounds counts of local experts by tile of each round. */
size_t xp_ep_scratch_bytes(const xp_ep_shape *shape);
#define XP_EP_GPU_SCRATCH_WORDS 6
/** Ints of a tile's counts: assignments of each expert, rows to each rank, then the CPU's errors; on
 * GPUs also assignments to each rank. */
int64_t xp_ep_tile_ints(const xp_ep_shape *shape);

/** Hands out pieces of a region in steps of 256 bytes; with a NULL base it only counts. */
typedef struct xp_ep_carver {
    char *base;
    size_t used;
} xp_ep_carver;
void *xp_ep_carve(xp_ep_carver *carver, size_t n_bytes);
int32_t *xp_ep_carve_ints(xp_ep_carver *carver, int64_t n);

#endif
