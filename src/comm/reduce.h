/** The arithmetic of reductions, the same for every provider that reduces on the host. */
#ifndef XP_COMM_REDUCE_H
#define XP_COMM_REDUCE_H

#include "expar/comm.h"

/** True for the types that reductions take: fp32, bf16, fp64, i32, i64. */
bool xp_reduce_has_type(xp_dtype dtype);

/**
 * dst[j][i] = op over k ascending of src[k][i], for each of n_dst destinations and i < n.
 * bf16 accumulates in fp32 and casts once. A destination may be one of the sources.
 */
typedef struct xp_reduce_args {
    const void *const *src;
    int n_src;
    void *const *dst;
    int n_dst;
    int64_t n;
    xp_dtype dtype;
    xp_reduce_op op;
} xp_reduce_args;
void xp_reduce_run(const xp_reduce_args *args);
/** The same to one destination. */
void xp_reduce_to_one(const void *const *src, int n_src, int64_t n, xp_dtype dtype, xp_reduce_op op,
                      void *dst);

/**
 * A vector of `total` elements cut among ranks, `each` to a rank (the last ones may be short or
 * empty), and of every rank's piece at most `n` elements from `at` on.
 */
typedef struct xp_pieces {
    int64_t total, each, at, n;
} xp_pieces;
/** First element of that part of `rank`'s piece, and how many there are. */
int64_t xp_piece_of(const xp_pieces *pieces, int rank, int64_t *n);
/** How a vector of n elements is cut among n_ranks: whole lines of the cache. */
int64_t xp_piece_size(int64_t n, int n_ranks);

#endif
