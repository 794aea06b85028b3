#include "comm/device/window.h"

#include <stdio.h>
#include <stdlib.h>
#include "device/device_internal.h"
#include "device/scope.h"

typedef struct device_window {
    xp_window base;
    xp_device *device;
    const xp_gpu_peer_access *peer_access;
    void *mine;
    bool opens; /* peers' memory is opened, and must be closed */
} device_window;

/* What each rank tells the others. */
typedef struct window_info {
    void *data; /* both valid where addresses are shared */
    xp_device *device;
    char handle[XP_IPC_HANDLE_BYTES];
} window_info;

static void free_window(device_window *w) {
    free(w->base.peers);
    free(w);
}

/* Close what is open first: an owner frees after the final barrier. */
static void release(device_window *w) {
    for (int i = 0; i < w->base.size && w->opens; i++)
        if (i != w->base.comm->rank && w->base.peers[i])
            w->peer_access->close_memory(w->device, w->base.peers[i]);
    if (w->base.comm->provider->final_barrier(w->base.comm, w->base.id))
        xp_device_free(w->device, w->mine);
    else
        xp_device_leak(w->device, w->mine);
    free_window(w);
}

static void destroy(xp_window *window) {
    XP_DEVICE_SCOPE(((device_window *)window)->device);
    release((device_window *)window);
}

/* Zeroed before anyone can write. Memory that others open is an allocation of its own. */
static xp_status reserve(device_window *w, const xp_device_window_args *args) {
    const size_t step = w->opens ? args->peer_access->granularity : 1;
    const size_t n_bytes = (args->n_bytes + step - 1) / step * step;
    XP_TRY(xp_device_alloc(w->device, n_bytes, args->tag, &w->mine));
    return xp_device_clear(w->device, w->mine, n_bytes);
}

static xp_status reach(device_window *w, const window_info *theirs, int rank) {
    if (rank == w->base.comm->rank) {
        w->base.peers[rank] = w->mine;
        return XP_OK;
    }
    if (w->opens)
        return w->peer_access->open_memory(w->device, theirs->handle, &w->base.peers[rank]);
    w->base.peers[rank] = theirs->data;
    return w->peer_access->enable_peer(w->device, theirs->device);
}

static xp_status connect_all(device_window *w) {
    static const char phase[] = "making a window";
    xp_comm *comm = w->base.comm;
    window_info mine = {.data = w->mine, .device = w->device};
    window_info *all = calloc((size_t)comm->size, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for a window over %d ranks", comm->size);
    xp_status status =
        w->opens ? w->peer_access->export_memory(w->device, w->mine, mine.handle) : XP_OK;
    if (status == XP_OK)
        status = xp_comm_gather_bytes(comm, phase, &mine, all, sizeof mine);
    for (int i = 0; i < comm->size && status == XP_OK; i++) {
        status = reach(w, &all[i], i);
        if (status != XP_OK)
            xp_error_context(status, "rank %d's window for rank %d", xp_comm_world_rank(comm, i),
                             xp_comm_world_rank(comm, comm->rank));
    }
    free(all);
    XP_TRY(status);
    /* Nobody goes on before all have what they need. */
    const xp_comm_call barrier = {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = phase};
    return comm->provider->run(comm, &barrier);
}

xp_status xp_device_window_create(const xp_device_window_args *args, xp_window **window) {
    xp_comm *comm = args->comm;
    device_window *w = calloc(1, sizeof *w);
    void **peers = calloc((size_t)comm->size, sizeof *peers);
    if (!w || !peers) {
        free(w);
        free(peers);
        xp_comm_abort(comm, "no memory for a window");
        return xp_error(XP_ENOMEM, "no memory for a window over %d ranks", comm->size);
    }
    *w = (device_window){.device = args->device,
                         .peer_access = args->peer_access,
                         .opens = !comm->same_process && comm->size > 1};
    w->base = (xp_window){.comm = comm,
                          .id = comm->n_windows,
                          .size = comm->size,
                          .peers = peers,
                          .destroy = destroy};
    xp_status status = reserve(w, args);
    if (status == XP_OK)
        status = connect_all(w);
    if (status != XP_OK) {
        char why[1024];
        snprintf(why, sizeof why, "%s", xp_last_error());
        /* The others wait for this rank: tell them why it does not come. */
        xp_comm_abort(comm, why);
        release(w);
        return xp_error(status, "%s", why);
    }
    *window = &w->base;
    return XP_OK;
}
