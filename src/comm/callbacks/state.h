/**
 * The state of the callback provider: ranks that the caller has connected already.
 *
 * Ranks of one node talk through shared memory that is set up when a communicator is made (the
 * node area); where the ranks are on several nodes, the caller's transport carries the collectives.
 * Before each of its calls the ranks of a node wait for each other in the node area, so that a rank
 * that has given up or died is heard there and not by a transport that knows nothing of it.
 *
 * The transport is called on the thread that makes the collective. One thread of a world, the
 * watcher, looks at the node's liveness table; it never calls the transport.
 */
#ifndef XP_COMM_CALLBACKS_STATE_H
#define XP_COMM_CALLBACKS_STATE_H

#include <pthread.h>
#include "comm/callbacks/transport.h"
#include "comm/futex_event.h"
#include "comm/liveness.h"
#include "comm/on_failure.h"
#include "comm/provider.h"

/** Of waits, where the caller names none. */
#define XP_CALLBACK_TIMEOUT_S 100.0
/** Bytes of each rank's buffer in a node area, and of its area for results. */
#define XP_NODE_BUFFER_BYTES ((int64_t)256 << 10)
/** Barriers of windows' ends that a rank has come to and others may still ask for. */
#define XP_NODE_ENDS 64

/** What a rank believes it takes part in. */
typedef struct xp_callback_head {
    uint64_t n_call;    /* of this communicator */
    int64_t n, longest; /* longest: of the parts of an all-to-allv */
    int32_t kind, dtype, op, root;
    char phase[28];
} xp_callback_head;

/** Written by its rank between barriers, read by the others after one. */
typedef struct xp_node_slot {
    _Alignas(64) _Atomic uint32_t arrived; /* barriers this rank has come to */
    xp_callback_head head;
    _Atomic uint32_t n_ends;
    _Atomic int64_t ends[XP_NODE_ENDS]; /* ring of final barriers, id + 1 */
} xp_node_slot;

/** Shared memory of the ranks of one communicator on one node; behind the slots n + 1 buffers where
 * the whole communicator is on this node. */
typedef struct xp_node_memory {
    _Alignas(64) _Atomic uint32_t n_arrived; /* at all barriers so far */
    xp_futex_event event;
    xp_node_slot slots[];
} xp_node_memory;

typedef struct xp_node_area {
    xp_node_memory *memory;
    size_t n_bytes;
    int n, index;   /* ranks of the communicator on this node; this one among them */
    int *ranks;     /* [n] of the communicator */
    uint32_t epoch; /* barriers this rank has come to */
    char *buffers;  /* NULL where there are none */
} xp_node_area;

typedef struct xp_callback_world {
    int rank, size, n_nodes;
    int *nodes; /* [size] */
    bool one_process;
    double timeout_s;
    char host[64];
    xp_liveness liveness;
    xp_failure_hooks hooks;
    pthread_mutex_t lock;
    int n_comms;         /* under the lock */
    _Atomic bool failed; /* `failure` is whole and constant */
    xp_failure failure;
    xp_callback_transport transport; /* of all ranks */
    pthread_t watcher;
    bool watched;
    int wake; /* eventfd: the watcher is to end */
} xp_callback_world;

typedef struct xp_callback_comm {
    xp_comm base;
    xp_callback_world *world;
    pthread_mutex_t lock; /* one call at a time */
    int *ranks, *nodes;   /* [size] ranks of the world; nodes by first appearance */
    xp_node_area area;
    const xp_callback_transport *transport; /* NULL where all ranks are on one node */
    xp_callback_transport own_transport;    /* of a split that made one */
    uint64_t n_calls;
    char *scratch; /* of calls between nodes */
    size_t scratch_bytes;
    const void **sources; /* [size] */
    int64_t *counts[4];   /* [size] of the transport's all-to-allv */
} xp_callback_comm;

#endif
