/** An EP group's members. */
#ifndef XP_EP_COMMON_GROUP_H
#define XP_EP_COMMON_GROUP_H

#include <stdatomic.h>
#include "ep/common/shape.h"

typedef struct xp_ep_backend xp_ep_backend;

/** Totals on the host; streams of two slots add at the same time. */
typedef struct xp_ep_totals {
    _Atomic int64_t bytes_sent_remote, bytes_kept, n_dispatches, n_combines, n_host_waits,
        overflow_rows, wait_ns;
} xp_ep_totals;

/** The sum that the rounds of a slot are adding up. */
typedef struct xp_ep_open_sum {
    const xp_ep_plan *plan;
    const char *phase;
    int64_t next_round;
} xp_ep_open_sum;

/** A combine_send that waits for its combine_recv. */
typedef struct xp_ep_open_combine {
    const xp_ep_plan *plan; /* NULL: none */
    int64_t round;
    const void *y;
    bool sent;          /* see xp_ep_backend.combine_send */
    xp_stream *stream;  /* of combine_send */
    xp_event *recorded; /* on it, behind combine_send */
} xp_ep_open_combine;

struct xp_ep_group {
    const xp_ep_backend *backend;
    xp_comm *comm; /* borrowed; NULL: one rank */
    xp_device *device;
    xp_ep_config config; /* transport, nodes and processes as they turned out */
    xp_ep_shape shape;
    int rank;
    double timeout_s;
    int call_sms;                 /* see xp_ep_group_set_sms() */
    void *transport_state;        /* windows, buffers, communicators: the transport's header says */
    void *device_state;           /* GPU: xp_ep_cuda_state */
    void *scratch;                /* of the plan kernels, n_slots times xp_ep_scratch_bytes() */
    xp_ep_open_sum *sums;         /* [n_slots] */
    xp_ep_open_combine *combines; /* [n_slots] */
    struct xp_ep_assignment **targets; /* [n_slots, R] host scratch of CPU plans */
    xp_ep_totals totals;
};

static inline void xp_ep_add(_Atomic int64_t *total, int64_t n) {
    atomic_fetch_add_explicit(total, n, memory_order_relaxed);
}

/** Count row bytes as kept when `peer` is this rank, else as sent. */
static inline void xp_ep_count_bytes(xp_ep_group *group, int peer, int64_t n_bytes) {
    xp_ep_totals *totals = &group->totals;
    xp_ep_add(peer == group->rank ? &totals->bytes_kept : &totals->bytes_sent_remote, n_bytes);
}

#endif
