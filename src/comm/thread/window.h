/** Windows of rank threads: plain memory whose addresses all ranks know. */
#ifndef XP_COMM_THREAD_WINDOW_H
#define XP_COMM_THREAD_WINDOW_H

#include "comm/thread/team.h"

/** xp_comm_provider.window_create, window_destroy */
xp_status xp_thread_window_create(xp_comm *comm, xp_device *device, size_t n_bytes, const char *tag,
                                  xp_window **window);
void xp_thread_window_destroy(xp_window *window);

#endif
