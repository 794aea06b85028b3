/**
 * Who carries a communicator's collectives on a GPU. Chosen once, by the ranks' GPU placement; every
 * rank chooses the same.
 */
#ifndef XP_COMM_DEVICE_ENGINE_H
#define XP_COMM_DEVICE_ENGINE_H

#include "comm/provider.h"
#include "device/plugin.h"

typedef struct xp_comm_engine xp_comm_engine;

typedef struct xp_comm_engine_ops {
    const char *name; /* for people: "NCCL", "one GPU", "host memory" */
    /** Queue the call. `stream` is one of the engine's device; arguments are checked. After an
     * error the world has failed, unless it is one that every rank meets alike. */
    xp_status (*run)(xp_comm_engine *engine, const xp_comm_call *call, xp_stream *stream);
    /** Waits for what is under way, not longer than the timeout. */
    void (*destroy)(xp_comm_engine *engine);
} xp_comm_engine_ops;

/** First member of every engine. */
struct xp_comm_engine {
    const xp_comm_engine_ops *ops;
    xp_comm *comm;     /* owns the engine */
    xp_device *device; /* outlives it */
};

/** Collective; see xp_comm_prepare(). */
XP_NODISCARD xp_status xp_comm_engine_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                             xp_comm_engine **engine);
/** NULL is accepted. */
void xp_comm_engine_destroy(xp_comm_engine *engine);

/** Through host memory: waits for the stream, lets the provider work on pinned memory, and queues
 * the way back. Wherever the ranks are. */
XP_NODISCARD xp_status xp_staged_engine_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                               xp_comm_engine **engine);

#endif
