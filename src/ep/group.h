/** An EP group's insides. */
#ifndef XP_EP_GROUP_H
#define XP_EP_GROUP_H

#include <stdatomic.h>
#include "ep/kernels.h"
#include "ep/shape.h"

typedef struct xp_ep_transport_ops xp_ep_transport_ops;
typedef struct xp_ep_device_ops xp_ep_device_ops;

/** Totals; streams of two halves add at the same time. */
typedef struct xp_ep_totals {
    _Atomic int64_t bytes_sent_remote, bytes_kept, n_dispatches, n_combines, n_host_waits,
        overflow_rows, wait_ns;
} xp_ep_totals;

/** The sum that a slot's rounds are adding up. */
typedef struct xp_ep_open_sum {
    const xp_ep_plan *plan;
    const char *phase;
    int64_t next_round;
} xp_ep_open_sum;

struct xp_ep_group {
    xp_comm *comm; /* borrowed; NULL: one rank */
    xp_device *device;
    xp_ep_config config;
    xp_ep_shape shape;
    int rank;
    double timeout_s;
    xp_ep_transport transport;
    const xp_ep_kernels *kernels;
    const xp_ep_transport_ops *ops;
    const xp_ep_device_ops *device_ops; /* NULL: the host builds plans and moves rows */
    void *device_state;
    void *state;                 /* the transport's */
    void *memory;                /* scratch of all slots; on the null device everything */
    int32_t **tile_counts;       /* [n_slots] scratch of the plan kernels */
    xp_ep_assignment ***targets; /* [n_slots][R] where the assignments for each rank go */
    xp_ep_open_sum *sums;        /* [n_slots] */
    _Atomic int n_plans;
    xp_ep_totals totals;
};

/** Device bytes of a plan, without a hierarchical transport's part. */
size_t xp_ep_plan_measure(const xp_ep_shape *shape);
/** The number of nodes a configuration asks to be measured for, at least 1. */
int xp_ep_config_nodes(const xp_ep_config *config);
/** What query_sizes and create agree on. */
xp_ep_sizes xp_ep_group_measure(const xp_ep_shape *shape, const xp_ep_config *config);

static inline void xp_ep_add(_Atomic int64_t *total, int64_t n) {
    atomic_fetch_add_explicit(total, n, memory_order_relaxed);
}

#endif
