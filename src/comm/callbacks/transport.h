/**
 * What carries bytes between ranks that the caller has connected: the public callback table, a
 * caller's MPI communicator or a caller's NCCL communicator.
 */
#ifndef XP_COMM_CALLBACKS_TRANSPORT_H
#define XP_COMM_CALLBACKS_TRANSPORT_H

#include "expar/comm.h"

/** No call carries more than this many bytes to or from one rank: counts fit into an int. */
#define XP_TRANSPORT_MAX_BYTES ((int64_t)64 << 20)

typedef struct xp_callback_transport {
    int rank, size;
    void *context;
    /** As in xp_comm_callbacks; an error may leave a text as the last error. */
    int (*all_gather)(void *context, const void *send, void *recv, size_t n_bytes);
    int (*barrier)(void *context); /* may be NULL */
    int (*all_to_allv)(void *context, const void *send, const int64_t *send_bytes,
                       const int64_t *send_offsets, void *recv, const int64_t *recv_bytes,
                       const int64_t *recv_offsets); /* may be NULL */
    /** May be NULL: groups of ranks on several nodes cannot be split off. Collective over all ranks.
     * @param color  < 0: this rank gets no group */
    xp_status (*split)(void *context, int color, struct xp_callback_transport *sub);
    /** May be NULL. Tells the transport the communicator whose failure ends its waits; that one
     * outlives it. */
    void (*bind)(void *context, xp_comm *comm);
    /** May be NULL. @param healthy  false: the world has failed, nothing may wait for a peer */
    void (*destroy)(void *context, bool healthy);
} xp_callback_transport;

typedef struct xp_callback_args {
    xp_callback_transport transport;
    double timeout_s;
    const int *simulated_nodes; /* [size] for tests: ranks behave as if they ran on these nodes */
} xp_callback_args;

/** Collective. The communicator owns the transport, also after an error. */
XP_NODISCARD xp_status xp_callback_world_create(const xp_callback_args *args, xp_comm **comm);

#endif
