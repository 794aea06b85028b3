/** Collectives, made of exchanges on the calling thread. */
#ifndef XP_COMM_MPI_COLLECTIVES_H
#define XP_COMM_MPI_COLLECTIVES_H

#include "comm/mpi/state.h"

xp_status xp_mpi_run(xp_comm *comm, const xp_comm_call *call);
/** Every rank's `n_bytes` (small) in rank order; part of a split or a window. */
XP_NODISCARD xp_status xp_mpi_gather_bytes(xp_mpi_comm *comm, xp_comm_kind kind, const void *mine,
                                           void *all, int64_t n_bytes);

#endif
