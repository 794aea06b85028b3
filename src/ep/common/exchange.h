/** The all-to-allv of transports that use collectives: how many bytes to and from whom. */
#ifndef XP_EP_COMMON_EXCHANGE_H
#define XP_EP_COMMON_EXCHANGE_H

#include "ep/common/call.h"

/** Bytes by rank of a communicator, and where they lie; host memory, [ranks] each. */
typedef struct xp_ep_exchange {
    int64_t *send_bytes, *send_offsets, *recv_bytes, *recv_offsets;
} xp_ep_exchange;

/** Take the four arrays. */
void xp_ep_exchange_carve(xp_ep_carver *carver, int n_ranks, xp_ep_exchange *exchange);
/** `out` bytes at `out_at` to rank i, `in` bytes at `in_at` from it. */
void xp_ep_exchange_set(const xp_ep_exchange *exchange, int i, int64_t out, int64_t out_at,
                        int64_t in, int64_t in_at);
/**
 * Exchange what the arrays say, for all ranks of the communicator.
 * @param stream  NULL: between host memory, done on return, the waiting time counted; else queued as
 *                collectives on that stream are
 */
XP_NODISCARD xp_status xp_ep_exchange_run(const xp_ep_call *call, const xp_ep_exchange *exchange,
                                          xp_comm *comm, const void *send, void *recv,
                                          xp_stream *stream);

/** What xp_ep_exchange_copies() repeats. */
typedef struct xp_ep_exchange_copy {
    const xp_ep_exchange *exchange; /* of rows, just made; changed */
    xp_comm *comm;
    int own; /* this rank in comm: it sends itself nothing again */
    const void *send;
    void *copies; /* as large as what received the rows; NULL without send_copies */
} xp_ep_exchange_copy;
/** For measurements: the same exchange with the other ranks, once for each further copy. */
XP_NODISCARD xp_status xp_ep_exchange_copies(const xp_ep_call *call,
                                             const xp_ep_exchange_copy *copy, xp_stream *stream);

#endif
