/** Communicators over the caller's NCCL. */
#ifndef XP_COMM_NCCL_GUEST_H
#define XP_COMM_NCCL_GUEST_H

#include "comm/nccl/calls.h"

/** Bytes of each rank that one all-gather carries. */
#define XP_NCCL_GUEST_BYTES ((size_t)64 << 10)

typedef struct xp_nccl_guest_args {
    const xp_nccl_calls *calls;
    void *nccl;        /* the caller's; borrowed */
    xp_device *device; /* its GPU; outlives the communicator */
    double timeout_s;
    const int *simulated_nodes; /* for tests; see xp_callback_args */
} xp_nccl_guest_args;

/** See xp_comm_from_nccl(). */
XP_NODISCARD xp_status xp_nccl_guest_create(const xp_nccl_guest_args *args, xp_comm **comm);

#endif
