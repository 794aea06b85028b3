/** Memory that the processes of a node share. Nothing is left behind however a process dies. */
#ifndef XP_COMM_SHARED_MEMORY_H
#define XP_COMM_SHARED_MEMORY_H

#include <stddef.h>
#include "expar/status.h"

/** A mapping that other processes may open as (pid, fd), filled with zeros and reserved: no later
 * access can fail for want of memory. */
XP_NODISCARD xp_status xp_shared_create(size_t n_bytes, const char *what, int *fd, void **data);
XP_NODISCARD xp_status xp_shared_open(size_t n_bytes, int pid, int fd, void **data);

#endif
