/* Windows between the processes of a node: each rank's memory, mapped by all. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "comm/process_window.h"
#include "comm/shared_memory.h"
#include "device/device_internal.h"

typedef struct process_window {
    xp_window base;
    xp_device *device;
    const char *tag;
    size_t n_bytes;
    int64_t *sizes; /* [size] bytes of each rank's memory */
} process_window;

typedef struct window_info {
    int64_t n_bytes;
    int32_t pid, fd;
} window_info;

static void unmap(process_window *w) {
    for (int i = 0; i < w->base.size && w->base.peers; i++)
        if (w->base.peers[i])
            munmap(w->base.peers[i], (size_t)w->sizes[i]);
    free(w->base.peers);
    free(w->sizes);
    free(w);
}

/* Every rank names its memory and opens that of the others; nobody closes before all have. */
static xp_status connect_all(process_window *w, int fd) {
    static const char phase[] = "making a window";
    xp_comm *comm = w->base.comm;
    int me = comm->rank;
    window_info mine = {.n_bytes = (int64_t)w->n_bytes, .pid = (int32_t)getpid(), .fd = fd};
    window_info *all = calloc((size_t)comm->size, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for a window over %d ranks", comm->size);
    xp_status status = xp_comm_gather_bytes(comm, phase, &mine, all, sizeof mine);
    for (int i = 0; i < comm->size && status == XP_OK; i++) {
        w->sizes[i] = all[i].n_bytes;
        if (i != me)
            status =
                xp_shared_open((size_t)all[i].n_bytes, all[i].pid, all[i].fd, &w->base.peers[i]);
    }
    free(all);
    if (status != XP_OK)
        return status;
    char ok = 1, oks[1024];
    if (comm->size > (int)sizeof oks)
        return xp_error(XP_ENOTSUP, "a window over %d ranks of one node: at most %d", comm->size,
                        (int)sizeof oks);
    return xp_comm_gather_bytes(comm, phase, &ok, oks, 1);
}

xp_status xp_process_window_create(xp_comm *base, xp_device *device, size_t n_bytes,
                                   const char *tag, xp_window **window) {
    int fd = -1;
    process_window *w = calloc(1, sizeof *w);
    if (!w) {
        xp_comm_abort(base, "no memory for a window");
        return xp_error(XP_ENOMEM, "no memory for a window over %d ranks", base->size);
    }
    *w = (process_window){.device = device, .tag = tag, .n_bytes = n_bytes};
    w->base.comm = base;
    w->base.size = base->size;
    w->base.peers = calloc((size_t)base->size, sizeof *w->base.peers);
    w->sizes = calloc((size_t)base->size, sizeof *w->sizes);
    xp_status status = XP_OK;
    if (!w->base.peers || !w->sizes)
        status = xp_error(XP_ENOMEM, "no memory for a window over %d ranks", base->size);
    else
        status = xp_shared_create(n_bytes, tag, &fd, &w->base.peers[base->rank]);
    if (fd >= 0) {
        w->sizes[base->rank] = (int64_t)n_bytes;
        status = connect_all(w, fd);
        close(fd);
    }
    if (status == XP_OK)
        status = xp_device_account(device, tag, (int64_t)n_bytes);
    if (status != XP_OK) {
        /* The others wait for this rank: tell them why it does not come. */
        xp_comm_abort(base, NULL);
        unmap(w);
        return status;
    }
    *window = &w->base;
    return XP_OK;
}

/* A mapping keeps the memory alive, so no rank has to wait until the others are done with it. */
void xp_process_window_destroy(xp_window *window) {
    process_window *w = (process_window *)window;
    if (xp_device_account(w->device, w->tag, -(int64_t)w->n_bytes) != XP_OK)
        xp_error_clear();
    unmap(w);
}
