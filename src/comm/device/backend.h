/**
 * A collective backend: what carries a communicator's collectives on a GPU (NCCL, kernels on the
 * one GPU of all ranks, host memory). See comm/device/choose.h.
 */
#ifndef XP_COMM_DEVICE_BACKEND_H
#define XP_COMM_DEVICE_BACKEND_H

#include "comm/provider.h"
#include "device/plugin.h"

typedef struct xp_comm_backend xp_comm_backend;

typedef struct xp_comm_backend_ops {
    const char *name; /* for people: "NCCL", "one GPU", "host memory" */
    /** Queue the call. `stream` is one of the backend's device; arguments are checked. After an
     * error the world has failed, unless it is one that every rank meets alike. */
    xp_status (*run)(xp_comm_backend *backend, const xp_comm_call *call, xp_stream *stream);
    /** Waits for what is under way, not longer than the timeout. */
    void (*destroy)(xp_comm_backend *backend);
} xp_comm_backend_ops;

/** First member of every backend. */
struct xp_comm_backend {
    const xp_comm_backend_ops *ops;
    xp_comm *comm;     /* owns the backend */
    xp_device *device; /* outlives it */
};

#endif
