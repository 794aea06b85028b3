/**
 * The CPU kernels of expert parallelism. They see arrays and peers' addresses, never a communicator:
 * transports decide who writes where and when, kernels copy and add rows. All run on the pool of the
 * stream, in tiles with fixed borders, so the results do not depend on the number of threads.
 */
#ifndef XP_EP_COMMON_CPU_KERNELS_H
#define XP_EP_COMMON_CPU_KERNELS_H

#include "ep/common/plan.h"
#include "ep/common/rows.h"

/** Count this rank's assignments and rows, and look for routing errors. */
typedef struct xp_ep_route_args {
    const xp_ep_shape *shape;
    const int32_t *topk_idx; /* [T, K] */
    int64_t n_tokens;
    /* out [n_tiles, E + R + 3] by tile of tokens: assignments of each expert, rows to each rank, the
     * tile's first error */
    int32_t *tile_counts;
    int32_t *own_counts; /* out [counts_ints] */
} xp_ep_route_args;

/** The source's half of a plan. Rows are ordered (destination, token), assignments (destination,
 * token, expert). */
typedef struct xp_ep_send_args {
    const xp_ep_shape *shape;
    const int32_t *topk_idx;
    const float *topk_weight; /* NULL: 1 */
    int64_t n_tokens;
    int32_t *tile_counts;                      /* from route; turned into cursors */
    const int32_t *row_base, *assignment_base; /* [R + 1] first row and assignment to each rank */
    /* [R] where the assignments for each rank go, first assignment first */
    xp_ep_assignment *const *assignments;
    int32_t *send_token;       /* out [rows] */
    int32_t *send_assignment;  /* out [rows + 1] first assignment of each row */
    int32_t *assignment_entry; /* out [assignments] token * K + k */
    int32_t *token_first;      /* out [T + 1] */
    int32_t *token_row;        /* out [rows] rows of each token, ascending destination */
} xp_ep_send_args;

/** The expert rank's half: from the assignments of all sources to expert-major rows by round. */
typedef struct xp_ep_recv_args {
    const xp_ep_shape *shape;
    const xp_ep_assignment *assignments; /* [n_assignments] */
    int64_t n_rows, n_assignments, n_rounds;
    int32_t *tile_counts; /* scratch [n_tiles, L + 1] */
    /* out [n_rows + 1] first assignment of each row; an input when `rows_known` */
    int32_t *recv_assignment;
    bool rows_known;
    int32_t *round_row;      /* out [n_rounds + 1] first row of each round */
    int32_t *assignment_pos; /* out [n_assignments] expert-major row of each assignment in its
                                round */
    int32_t *offsets;        /* out [n_rounds, L + 1] */
    int32_t *gather;         /* out [n_rounds, P] */
    float *weight;           /* out [n_rounds, P] */
    int32_t *n_recv;         /* out [n_rounds] */
    int32_t first_own;       /* this rank's own tokens: their first recv row */
    int64_t n_own;           /* and how many there are; 0: own_token is left alone */
    const int32_t *token;    /* [n_own] token of each */
    int32_t *own_token;      /* out [n_rounds, P] */
} xp_ep_recv_args;

void xp_ep_cpu_route(xp_stream *stream, const xp_ep_route_args *args);
void xp_ep_cpu_build_send(xp_stream *stream, const xp_ep_send_args *args);
void xp_ep_cpu_build_recv(xp_stream *stream, const xp_ep_recv_args *args);
void xp_ep_cpu_copy_rows(xp_stream *stream, const xp_ep_copy_args *args);
void xp_ep_cpu_reduce_rows(xp_stream *stream, const xp_ep_reduce_args *args);
void xp_ep_cpu_sum_rows(xp_stream *stream, const xp_ep_sum_args *args);
void xp_ep_cpu_copy_floats(xp_stream *stream, const xp_ep_copy_floats_args *args);

#endif
