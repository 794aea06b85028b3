/**
 * The computing half of expert parallelism, one table a device. Kernels see arrays and peers'
 * addresses, never a communicator: transports decide who writes where and when, kernels move and
 * add rows.
 */
#ifndef XP_EP_KERNELS_H
#define XP_EP_KERNELS_H

#include "ep/shape.h"

/** One assignment as its source tells it to the expert's rank; a rank's assignments come in (source, token,
 * expert) order. */
typedef struct xp_ep_assignment {
    uint32_t expert; /* local expert; XP_EP_FIRST_ASSIGNMENT set on the first assignment of a row */
    float weight;
} xp_ep_assignment;
#define XP_EP_FIRST_ASSIGNMENT 0x80000000U

typedef enum xp_ep_routing_error {
    XP_EP_ROUTING_OK = 0,
    XP_EP_ROUTING_DUPLICATE,
    XP_EP_ROUTING_RANGE,
    XP_EP_ROUTING_TOO_MANY, /* value: tokens */
    XP_EP_ROUTING_NULL,
} xp_ep_routing_error;

/** Count this rank's assignments and rows, and look for errors. */
typedef struct xp_ep_route_args {
    const xp_ep_shape *shape;
    const int32_t *topk_idx; /* [T, K] */
    int64_t n_tokens;
    int32_t *
        tile_counts; /* out [n_tiles, E + R]: assignments of each expert, rows to each rank, by tile
                             of tokens */
    int32_t *block;  /* out [block_ints] */
} xp_ep_route_args;

/** The source's half of a plan. Rows are ordered (destination, token), assignments (destination, token,
 * expert). */
typedef struct xp_ep_send_args {
    const xp_ep_shape *shape;
    const int32_t *topk_idx;
    const float *topk_weight; /* NULL: 1 */
    int64_t n_tokens;
    int32_t *tile_counts;                      /* from route; turned into cursors */
    const int32_t *row_base, *assignment_base; /* [R + 1] first row and assignment to each rank */
    xp_ep_assignment *const
        *assignments;    /* [R] where the assignments for each rank go, first assignment first */
    int32_t *send_token; /* out [rows] */
    int32_t *send_assignment;  /* out [rows + 1] first assignment of each row */
    int32_t *assignment_entry; /* out [assignments] token * K + k */
    int32_t *token_first;      /* out [T + 1] */
    int32_t *token_row;        /* out [rows] rows of each token, ascending destination */
} xp_ep_send_args;

/** The expert rank's half: from the assignments of all sources to expert-major rows, round by round. */
typedef struct xp_ep_recv_args {
    const xp_ep_shape *shape;
    const xp_ep_assignment *assignments; /* [n_assignments] */
    int64_t n_rows, n_assignments, n_rounds;
    int32_t *tile_counts; /* scratch [n_tiles, L + 1] */
    int32_t *
        recv_assignment; /* out [n_rows + 1] first assignment of each row; given when `rows_known` */
    bool rows_known;
    int32_t *round_row; /* out [n_rounds + 1] first row of each round */
    int32_t *
        assignment_pos; /* out [n_assignments] expert-major place of each assignment in its round */
    int32_t *offsets;   /* out [n_rounds, L + 1] */
    int32_t *gather;    /* out [n_rounds, P] */
    float *weight;      /* out [n_rounds, P] */
    int32_t *n_recv;    /* out [n_rounds] */
} xp_ep_recv_args;

/** dst row i = src row (src_index ? src_index[i] - src_first : i). */
typedef struct xp_ep_copy_args {
    int64_t n_rows;
    size_t row_bytes;
    void *dst;
    const void *src;
    const int32_t *src_index;
    int64_t src_first;
} xp_ep_copy_args;

/** The first level of the sum: dst[i] = cast(sum of y[pos[j]], j from first[i] to first[i + 1],
 * ascending). */
typedef struct xp_ep_reduce_args {
    int64_t n_rows, dim;
    xp_dtype dtype;
    const void *y;
    const int32_t *first; /* [n_rows + 1] */
    const int32_t *pos;
    void *dst;
} xp_ep_reduce_args;

/** Expert rows of one destination, and which of them belong to this rank's rows there. */
typedef struct xp_ep_expert_rows {
    const void *y;        /* [P, D] */
    const int32_t *first; /* first assignment of each of this rank's rows there, and one more */
    const int32_t *pos;   /* row of y of each assignment */
} xp_ep_expert_rows;

/**
 * The second level: out[t] = cast(sum over the token's rows, ascending list order), for tokens that
 * have a row in [fresh_from, fresh_to) of any destination; zero_others writes zeros for those
 * without any row so far. A row counts when it is below its destination's `seen` bound. A row's
 * value is rows[row], or, where the expert rows of its destination can be read, their first-level
 * sum made on the fly: the same bits.
 */
typedef struct xp_ep_sum_args {
    int64_t n_tokens, dim;
    xp_dtype dtype;
    const int32_t *token_first; /* [T + 1] */
    const int32_t *token_row;
    const int32_t *row_base;     /* [n_dests + 1] destinations' rows */
    const int32_t *fresh, *seen; /* [n_dests] rows of dest d in [fresh[d], seen[d]) arrived in this
                                    round; below seen[d] so far */
    int n_dests;
    bool write_all;   /* round 0: tokens without rows become zeros */
    const void *rows; /* one row a send row; NULL with row_assignments given */
    const int32_t *
        row_assignments; /* rows holds one row a send assignment instead: [rows + 1] first assignment of each row */
    const xp_ep_expert_rows *near; /* [n_dests] or NULL; without a y, values are in `rows` */
    void *out;                     /* [T, D] */
} xp_ep_sum_args;

/** dst[dst_index ? dst_index[i] : i] = src[src_index ? src_index[i] : i]. */
typedef struct xp_ep_move_args {
    int64_t n;
    float *dst;
    const int32_t *dst_index;
    const float *src;
    const int32_t *src_index;
} xp_ep_move_args;

typedef struct xp_ep_kernels {
    const char *name;
    void (*route)(xp_stream *stream, const xp_ep_route_args *args);
    void (*build_send)(xp_stream *stream, const xp_ep_send_args *args);
    void (*build_recv)(xp_stream *stream, const xp_ep_recv_args *args);
    void (*copy_rows)(xp_stream *stream, const xp_ep_copy_args *args);
    void (*reduce_rows)(xp_stream *stream, const xp_ep_reduce_args *args);
    void (*sum_rows)(xp_stream *stream, const xp_ep_sum_args *args);
    void (*move)(xp_stream *stream, const xp_ep_move_args *args);
} xp_ep_kernels;

extern const xp_ep_kernels xp_ep_cpu_kernels;
void xp_ep_cpu_route(xp_stream *stream, const xp_ep_route_args *args);
void xp_ep_cpu_build_send(xp_stream *stream, const xp_ep_send_args *args);
void xp_ep_cpu_build_recv(xp_stream *stream, const xp_ep_recv_args *args);
void xp_ep_cpu_copy_rows(xp_stream *stream, const xp_ep_copy_args *args);
void xp_ep_cpu_reduce_rows(xp_stream *stream, const xp_ep_reduce_args *args);
void xp_ep_cpu_sum_rows(xp_stream *stream, const xp_ep_sum_args *args);
void xp_ep_cpu_move(xp_stream *stream, const xp_ep_move_args *args);

#endif
