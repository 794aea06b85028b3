/** The choice of a communicator's collective backend: by the ranks' GPU placement, once, and the
 * same on every rank. */
#ifndef XP_COMM_DEVICE_CHOOSE_H
#define XP_COMM_DEVICE_CHOOSE_H

#include "comm/device/backend.h"

/** Collective; see xp_comm_prepare(). */
XP_NODISCARD xp_status xp_comm_backend_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                              xp_comm_backend **backend);
/** NULL is accepted. */
void xp_comm_backend_destroy(xp_comm_backend *backend);

#endif
