/**
 * How parameter groups are cut into chunks and packed into buckets. Pure arithmetic over the
 * parameter table: no memory of the device, no communication.
 *
 * A group's chunk has chunk_elements = ceil(n / N) rounded up to XP_GROUP_ALIGN (n itself when
 * N = 1); rank i owns the group's elements [i * chunk, (i + 1) * chunk), cut at the group's end. A
 * bucket moves the same range of every rank's chunk of one or more groups in one collective.
 */
#ifndef XP_PARALLEL_SHARD_PLAN_H
#define XP_PARALLEL_SHARD_PLAN_H

#include "model/params.h"

typedef struct xp_shard_group {
    int64_t chunk_elements; /* of every rank, the tail's padding included */
    int64_t first, n;       /* this rank's chunk in the flat buffer, without padding */
    int64_t state_offset;   /* where its moments start in this rank's state */
    int n_ranks, rank;      /* of the communicator that shards it */
} xp_shard_group;

/** Elements [first, first + n) of every rank's chunk of one group. */
typedef struct xp_shard_piece {
    int group;
    int64_t first, n;
    int64_t stage_offset; /* in a rank's section of the staging memory */
} xp_shard_piece;

typedef struct xp_shard_bucket {
    bool is_expert;
    bool direct; /* a whole group without padding: collectives work in place, no staging */
    int first_piece, n_pieces;
    int64_t n_each; /* elements of a rank's section */
    int n_ranks;    /* of the communicator */
    int n_groups;   /* that must be ready before it can go */
} xp_shard_bucket;

typedef struct xp_shard_plan {
    int n_groups, n_pieces, n_buckets;
    xp_shard_group *groups;
    xp_shard_piece *pieces;
    xp_shard_bucket *buckets; /* in the order of backward */
    int64_t state_elements;   /* of this rank: sum of chunk_elements */
    int64_t stage_elements;   /* largest bucket that is not direct */
} xp_shard_plan;

/**
 * @param dense_ranks, dense_rank    ranks that share a dense group's state, and this rank's number
 * @param expert_ranks, expert_rank  the same for expert groups
 * @param bucket_elements            a bucket holds no more, unless the group is direct
 */
XP_NODISCARD xp_status xp_shard_plan_create(const xp_param_table *table, int dense_ranks,
                                            int dense_rank, int expert_ranks, int expert_rank,
                                            int64_t bucket_elements, xp_shard_plan *plan);
void xp_shard_plan_destroy(xp_shard_plan *plan);

#endif
