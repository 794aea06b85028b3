/** The failure of a callback world: made known to the processes of the node, and heard from them. */
#ifndef XP_COMM_CALLBACKS_FAILURE_H
#define XP_COMM_CALLBACKS_FAILURE_H

#include "comm/callbacks/state.h"

/** This becomes the failure of all ranks of the node unless there is one. Any thread.
 * @param culprit  a rank of the world, or -1 */
void xp_callback_fail(xp_callback_world *world, xp_failure_reason reason, int culprit,
                      const char *text);
/** The same for a wait for `rank` that has ended; names the rank that all wait for in the end. */
void xp_callback_fail_timeout(xp_callback_world *world, int rank, const char *text);
/** The transport has returned an error (its text is the last error, if it has one). A peer that has
 * died or given up is the better reason. @return XP_ECOMM */
xp_status xp_callback_fail_transport(xp_callback_world *world, const xp_comm_call *call,
                                     const char *what, int code);
/** XP_OK, or the failure of all with its text as the last error. Never waits. */
xp_status xp_callback_world_status(const xp_callback_world *world);

/** The thread that hears of failures and deaths on this node. */
XP_NODISCARD xp_status xp_callback_watch_start(xp_callback_world *world);
void xp_callback_watch_stop(xp_callback_world *world);

#endif
