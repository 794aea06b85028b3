/** Windows in GPU memory, for threads and processes alike. */
#ifndef XP_COMM_DEVICE_WINDOW_H
#define XP_COMM_DEVICE_WINDOW_H

#include "comm/provider.h"
#include "device/plugin.h"

typedef struct xp_device_window_args {
    xp_comm *comm;
    xp_device *device;
    const xp_gpu_peer_access *peer_access;
    size_t n_bytes;
    const char *tag;
} xp_device_window_args;

/** See xp_comm_window_create(). Ranks that share addresses use plain pointers and peer access,
 * others open each other's memory. */
XP_NODISCARD xp_status xp_device_window_create(const xp_device_window_args *args,
                                               xp_window **window);

#endif
