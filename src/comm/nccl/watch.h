/** The watcher: a thread that aborts NCCL when a collective waits for a rank that does not come, or
 * when the ranks have failed for another reason. */
#ifndef XP_COMM_NCCL_WATCH_H
#define XP_COMM_NCCL_WATCH_H

#include "comm/nccl/handle.h"

XP_NODISCARD xp_status xp_nccl_watch_start(xp_nccl_backend *backend);
/** @return false when the watcher is stuck in NCCL: the backend must not be freed */
XP_NODISCARD bool xp_nccl_watch_stop(xp_nccl_backend *backend);
/** Around what a collective queues. */
XP_NODISCARD xp_status xp_nccl_watch_begin(xp_nccl_backend *backend, const xp_comm_call *call,
                                           xp_stream *stream);
XP_NODISCARD xp_status xp_nccl_watch_end(xp_nccl_backend *backend, const xp_comm_call *call,
                                         xp_stream *stream);

#endif
