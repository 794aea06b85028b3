/** Communicators of a callback world: made over a list of ranks, split, destroyed. */
#ifndef XP_COMM_CALLBACKS_WORLD_H
#define XP_COMM_CALLBACKS_WORLD_H

#include "comm/callbacks/area.h"

/**
 * A communicator over these ranks of the world, without shared memory yet; takes a reference of the
 * world.
 * @param ranks  [size] of the world, copied
 * @param[out] comm  after an error NULL as before, or to be freed
 */
XP_NODISCARD xp_status xp_callback_comm_create(xp_callback_world *world, const int *ranks, int size,
                                               int rank, xp_callback_comm **comm);
/** Frees it and drops the reference; the last one ends the world. */
void xp_callback_comm_free(xp_callback_comm *comm);
/** The world without a communicator. */
void xp_callback_world_free(xp_callback_world *world);
/** Drops a communicator's reference; the last frees the world. */
void xp_callback_world_release(xp_callback_world *world);
/** xp_comm_provider.split */
xp_status xp_callback_split(xp_comm *comm, int color, xp_comm **sub);

extern const xp_comm_provider xp_callback_provider;

#endif
