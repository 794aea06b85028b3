/** One rank of xp_bench_ep(): its memory, and the ops of a transport on it. */
#ifndef XP_BENCH_EP_RANK_H
#define XP_BENCH_EP_RANK_H

#include "device.h"
#include "ep.h"
#include "link.h"
#include "samples.h"

/** One transport. */
typedef struct xp_bench_lane {
    xp_ep_group *group;
    xp_ep_plan *plan;
    int64_t n_rounds, n_recv, n_assignments;
    int n_inner; /* calls of a sample */
    xp_bench_samples plan_s, op_s[XP_BENCH_EP_N_OPS];
} xp_bench_lane;

typedef struct xp_bench_ep_rank {
    const xp_bench_ep_case *c;
    xp_bench_ep_row *rows;
    xp_bench_rank *rank;
    xp_bench_device d;
    int32_t *ids, *device_ids; /* the same routing for the host and in device memory */
    float *weights, *device_weights;
    float *d_weights, *d_topk_weights; /* the last two: with the backward ops */
    void *x, *recv, *y, *out;
    int64_t recv_rows, assignment_rows;
    char *copy_from, *copy_to;
    xp_bench_samples copy_rate; /* of all ranks */
    xp_bench_link link;
    xp_bench_lane lanes[XP_BENCH_EP_MAX_TRANSPORTS];
} xp_bench_ep_rank;

/** Sum or maximum over the ranks, in place. */
XP_NODISCARD xp_status xp_bench_ep_reduce(const xp_bench_ep_rank *r, double *values, int n,
                                          xp_reduce_op op);
XP_NODISCARD xp_status xp_bench_ep_barrier(const xp_bench_ep_rank *r);

/** Routing in memory that the host fills and the device reads. */
XP_NODISCARD xp_status xp_bench_ep_take_routing(xp_bench_ep_rank *r);
/** Rows of the largest of the lanes, and what is copied. */
XP_NODISCARD xp_status xp_bench_ep_take_memory(xp_bench_ep_rank *r);

/** Run every op and the plan, and choose how many calls make a sample; the same on every rank. */
XP_NODISCARD xp_status xp_bench_lane_warm_up(xp_bench_ep_rank *r, xp_bench_lane *lane);
/** Add samples of every op and of the plan. */
XP_NODISCARD xp_status xp_bench_lane_sample(xp_bench_ep_rank *r, xp_bench_lane *lane);

#endif
