/** The inside of xp_shard, for its own files: shard.c, shard_reduce.c, shard_norm.c. */
#ifndef XP_PARALLEL_SHARD_INTERNAL_H
#define XP_PARALLEL_SHARD_INTERNAL_H

#include "ops/ops.h"
#include "parallel/shard.h"
#include "parallel/shard_plan.h"

struct xp_shard {
    xp_shard_args args;
    xp_mesh mesh;
    const xp_ops *ops;
    xp_shard_plan plan;
    /* Communicators of the worker stream: its collectives run beside those of the compute stream
     * (expert dispatch), so the two may not share one. [0] dense, [1] experts. */
    xp_comm *reduce_comm[2], *replica_comm[2];
    xp_stream *worker;   /* NULL when one rank owns everything */
    xp_event *ready;     /* compute -> worker */
    xp_event *done;      /* worker -> compute */
    int *n_waiting;      /* [n_buckets] groups that are not ready yet */
    int n_fired;         /* buckets of this step */
    xp_event **gathered; /* [n_buckets] worker -> compute; NULL: never gathered */
    bool *gathering;     /* [n_buckets] no stream has waited for it yet */
    int n_gathering;
    void *stage;          /* [stage_elements] */
    float *m, *v;         /* [state_elements] */
    uint16_t *remainder;  /* [state_elements]; NULL when parameters are fp32 */
    double *sums;         /* [n_sums] device: squares of each group, or of each parameter */
    double *sums_scratch; /* device */
    xp_ops_part *chunks;  /* [n_groups] of the flat gradients */
    float *grad_scale;    /* [1] device; NaN: no update */
    double *host_sums;    /* [n_sums] staging memory */
    int n_sums;
    void *counted[5]; /* null device: what the communicators of a GPU run reserve */
};

/* shard_reduce.c */
/** Where an element of the flat buffers is. */
char *xp_shard_param_at(const xp_shard *shard, int64_t element);
char *xp_shard_grad_at(const xp_shard *shard, int64_t element);
/** False when parameters are fp32: the parameter is its own master. */
bool xp_shard_has_remainders(const xp_shard *shard);
/** No group of the next step is ready yet. */
void xp_shard_expect_groups(xp_shard *shard);
/** Queue the gather of a bucket's parameters on the worker stream. */
XP_NODISCARD xp_status xp_shard_gather_bucket(xp_shard *shard, int index);

#endif
