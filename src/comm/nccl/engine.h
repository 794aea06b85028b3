/**
 * Collectives of ranks that each have a GPU of their own, through NCCL. The ranks meet once on the
 * host, when the engine is made; afterwards only GPUs wait for each other, and a thread of each
 * communicator, the watcher, sees to it that they do not wait longer than the timeout.
 *
 * NCCL moves the data. It adds only where that saves traffic between nodes: within a node every
 * rank gets everybody's share of its piece and adds in rank order, as all providers do.
 */
#ifndef XP_COMM_NCCL_ENGINE_H
#define XP_COMM_NCCL_ENGINE_H

#include "comm/device/engine.h"
#include "comm/nccl/calls.h"
#include "comm/reduce.h"

typedef struct xp_nccl_engine_args {
    xp_comm *comm;
    xp_device *device;
    const xp_nccl_calls *calls;
    size_t max_bytes; /* see xp_comm_prepare() */
    /** A reduction (xp_reduce_args) over memory of the stream's device. */
    xp_status (*reduce)(xp_stream *stream, const void *args);
} xp_nccl_engine_args;

/** Collective: makes and tries NCCL's communicator. After an error the world has failed. */
XP_NODISCARD xp_status xp_nccl_engine_create(const xp_nccl_engine_args *args,
                                             xp_comm_engine **engine);

/** Memory of the GPU that it reserves for sums: as the largest collective asks, within bounds. */
int64_t xp_nccl_scratch_bytes(int n_ranks, size_t max_bytes);

#endif
