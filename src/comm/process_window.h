/** Windows between processes of a node, in host memory: each rank's part is a mapping that all ranks
 * open. For every provider whose ranks may be processes. */
#ifndef XP_COMM_PROCESS_WINDOW_H
#define XP_COMM_PROCESS_WINDOW_H

#include "comm/provider.h"

/** xp_comm_provider.window_create and window_destroy. */
xp_status xp_process_window_create(xp_comm *comm, xp_device *device, size_t n_bytes,
                                   const char *tag, xp_window **window);
void xp_process_window_destroy(xp_window *window);

#endif
