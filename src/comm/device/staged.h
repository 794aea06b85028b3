/** The collective backend through pinned host memory: works wherever the ranks are, and is slow. */
#ifndef XP_COMM_DEVICE_STAGED_H
#define XP_COMM_DEVICE_STAGED_H

#include "comm/device/backend.h"

/** Waits for the stream, lets the provider work on pinned memory, and queues the copy back.
 * @param max_bytes  see xp_comm_prepare() */
XP_NODISCARD xp_status xp_staged_backend_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                                xp_comm_backend **backend);

#endif
