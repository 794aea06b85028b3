/* The end of a world. */
#include <stdlib.h>
#include "comm/callbacks/failure.h"
#include "comm/callbacks/world.h"

void xp_callback_world_free(xp_callback_world *world) {
    const bool healthy = !atomic_load(&world->failed);
    if (world->liveness.mine && healthy)
        atomic_store(&world->liveness.mine->finalized, 1);
    xp_callback_watch_stop(world);
    if (world->transport.destroy)
        world->transport.destroy(world->transport.context, healthy);
    xp_liveness_close(&world->liveness);
    xp_failure_hooks_destroy(&world->hooks);
    pthread_mutex_destroy(&world->lock);
    free(world->nodes);
    free(world);
}

void xp_callback_world_release(xp_callback_world *world) {
    pthread_mutex_lock(&world->lock);
    const bool last = --world->n_comms == 0;
    pthread_mutex_unlock(&world->lock);
    if (last)
        xp_callback_world_free(world);
}
