/** Arguments of the kernels that copy and add rows; the arrays are memory of the kernel's device. */
#ifndef XP_EP_COMMON_ROWS_H
#define XP_EP_COMMON_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/tensor.h"

/** dst row i = src row (src_index ? src_index[i] - src_first : i). */
typedef struct xp_ep_copy_args {
    int64_t n_rows;
    size_t row_bytes;
    void *dst;
    const void *src;
    const int32_t *src_index;
    int64_t src_first;
} xp_ep_copy_args;

/** The first level of the sum: dst[i] = cast(sum of y[pos[j]], j ascending from first[i] to
 * first[i + 1]). */
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
 * The second level of the sum: out[t] = cast(sum over the token's rows, ascending list order), for
 * tokens that have a row in [fresh[d], seen[d]) of any destination d. Rows at or past seen[d] belong
 * to later rounds and do not count yet. A row's value is rows[row], or, where the expert rows of its
 * destination can be read, their first-level sum made on the fly: the same bits.
 */
typedef struct xp_ep_sum_args {
    int64_t n_tokens, dim;
    xp_dtype dtype;
    const int32_t *token_first; /* [T + 1] */
    const int32_t *token_row;
    const int32_t *row_base;     /* [n_dests + 1] first row of each destination */
    const int32_t *fresh, *seen; /* [n_dests]; both NULL: every row is of this round */
    int n_dests;
    bool write_all;   /* round 0: tokens without rows become zeros */
    const void *rows; /* one row a send row; may be NULL with expert_rows */
    /* NULL, or [rows + 1] first assignment of each row: `rows` has one row a send assignment. */
    const int32_t *row_assignments;
    const xp_ep_expert_rows *expert_rows; /* [n_dests] or NULL; without a y: values are in `rows` */
    void *out;                            /* [T, D] */
} xp_ep_sum_args;

/** dst[dst_index ? dst_index[i] : i] = src[src_index ? src_index[i] : i]. */
typedef struct xp_ep_copy_floats_args {
    int64_t n;
    float *dst;
    const int32_t *dst_index;
    const float *src;
    const int32_t *src_index;
} xp_ep_copy_floats_args;

#endif
