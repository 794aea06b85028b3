/* Windows of threads are plain memory of each rank's device whose addresses are shown to all. */
#include <stdlib.h>
#include "comm/thread/window.h"
#include "device/device_internal.h"

typedef struct thread_window {
    xp_window base;
    xp_device *device;
    void *mine;
} thread_window;

xp_status xp_thread_window_create(xp_comm *base, xp_device *device, size_t n_bytes, const char *tag,
                                  xp_window **window) {
    xp_thread_comm *comm = (xp_thread_comm *)base;
    xp_status status = XP_OK;
    thread_window *w = calloc(1, sizeof *w);
    void **peers = calloc((size_t)base->size, sizeof *peers);
    if (!w || !peers)
        status = xp_error(XP_ENOMEM, "no memory for a window over %d ranks", base->size);
    else
        status = xp_device_alloc(device, n_bytes, tag, &w->mine);
    if (status == XP_OK)
        status = xp_device_clear(device, w->mine, n_bytes);
    if (status != XP_OK) {
        /* The others wait for this rank: tell them why it does not come. */
        xp_comm_abort(base, NULL);
        goto fail_memory;
    }
    comm->team->slots[base->rank].window = w->mine;
    XP_TRY_GOTO(status, xp_team_enter(comm, XP_COMM_WINDOW, atomic_load(&base->phase)),
                fail_memory);
    for (int i = 0; i < base->size; i++)
        peers[i] = comm->team->slots[i].window;
    XP_TRY_GOTO(status, xp_team_leave(comm), fail_memory);
    w->base = (xp_window){.comm = base, .id = base->n_windows, .size = base->size, .peers = peers};
    w->device = device;
    *window = &w->base;
    return XP_OK;
fail_memory:
    xp_device_free(device, w ? w->mine : NULL);
    free(w);
    free(peers);
    return status;
}

void xp_thread_window_destroy(xp_window *window) {
    thread_window *w = (thread_window *)window;
    xp_thread_comm *comm = (xp_thread_comm *)window->comm;
    /* After a failure a peer may be writing still: what it may reach then stays. */
    if (xp_team_final_barrier(comm, window->id))
        xp_device_free(w->device, w->mine);
    else
        xp_device_leak(w->device, w->mine);
    free(window->peers);
    free(w);
}
