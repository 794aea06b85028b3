/**
 * Collectives of ranks that each have a GPU of their own, through NCCL. Ranks wait for each
 * other on the host only while the backend is made; afterwards only GPUs do, and a thread of each
 * communicator, the watcher, sees to it that they do not wait longer than the timeout.
 *
 * NCCL moves the data. It adds only where that saves traffic between nodes: within a node every
 * rank gets everybody's share of its piece and adds in rank order, as all providers do.
 */
#ifndef XP_COMM_NCCL_BACKEND_H
#define XP_COMM_NCCL_BACKEND_H

#include "comm/device/backend.h"
#include "comm/nccl/calls.h"
#include "comm/reduce.h"

typedef struct xp_nccl_backend_args {
    xp_comm *comm;
    xp_device *device;
    const xp_nccl_calls *calls;
    size_t max_bytes; /* see xp_comm_prepare() */
    /** A reduction (xp_reduce_args) over memory of the stream's device. */
    xp_status (*reduce)(xp_stream *stream, const void *args);
} xp_nccl_backend_args;

/** Collective: makes and tries NCCL's communicator. After an error the world has failed. */
XP_NODISCARD xp_status xp_nccl_backend_create(const xp_nccl_backend_args *args,
                                              xp_comm_backend **backend);

#endif
