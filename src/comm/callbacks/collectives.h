/** Collectives of the callback provider. */
#ifndef XP_COMM_CALLBACKS_COLLECTIVES_H
#define XP_COMM_CALLBACKS_COLLECTIVES_H

#include "comm/callbacks/state.h"

/** xp_comm_provider.run */
xp_status xp_callback_run(xp_comm *comm, const xp_comm_call *call);

/** One call, under the communicator's lock, `head` filled in: through the node area (all ranks on
 * one node), or through the transport. */
xp_status xp_callback_run_on_node(xp_callback_comm *comm, const xp_comm_call *call,
                                  xp_callback_head *head);
xp_status xp_callback_run_between_nodes(xp_callback_comm *comm, const xp_comm_call *call,
                                        xp_callback_head *head);

/** XP_ECOMM for all when rank `peer` does not make the same call. */
XP_NODISCARD xp_status xp_callback_check_head(xp_callback_comm *comm, const xp_callback_head *mine,
                                              const xp_callback_head *theirs, int peer);
/** The same when it sends this rank another number of bytes than expected (all-to-allv). */
XP_NODISCARD xp_status xp_callback_check_bytes(xp_callback_comm *comm, const xp_comm_call *call,
                                               int peer, int64_t sent);
/** Copies unless it is the same memory; n_bytes may be 0. */
void xp_callback_copy(void *dst, const void *src, int64_t n_bytes);
/** Of `total` elements or bytes those from `at` on, at most so many; 0 past the end. */
int64_t xp_callback_piece(int64_t total, int64_t at, int64_t most);

#endif
