/** Windows between the processes of a node. */
#ifndef XP_COMM_MPI_WINDOW_H
#define XP_COMM_MPI_WINDOW_H

#include "comm/mpi/state.h"

xp_status xp_mpi_window_create(xp_comm *comm, xp_device *device, size_t n_bytes, const char *tag,
                               xp_window **window);
void xp_mpi_window_destroy(xp_window *window);

#endif
