/** Connects the ranks of the world. */
#ifndef XP_COMM_MPI_CONNECT_H
#define XP_COMM_MPI_CONNECT_H

#include "comm/mpi/state.h"

/** MPI_Init, node map, liveness table. On the progress thread. */
XP_NODISCARD xp_status xp_mpi_connect(xp_mpi_world *world);

#endif
