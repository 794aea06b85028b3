/** The messages of one exchange. On the progress thread. */
#ifndef XP_COMM_MPI_EXCHANGE_H
#define XP_COMM_MPI_EXCHANGE_H

#include "comm/mpi/state.h"

XP_NODISCARD xp_status xp_mpi_exchange_post(xp_mpi_exchange *exchange);
/** Take what has come. @return XP_OK also while something is missing (n_open > 0) */
XP_NODISCARD xp_status xp_mpi_exchange_poll(xp_mpi_exchange *exchange, bool *moved);
void xp_mpi_exchange_cancel(xp_mpi_exchange *exchange);
/** Who is missing, as the failure of all. */
void xp_mpi_exchange_report(xp_mpi_exchange *exchange);
/** True while data of a peer that has come is under way. */
bool xp_mpi_exchange_is_flowing(const xp_mpi_exchange *exchange);
/** The first peer that something is missing from, a rank of the world, or -1. */
int xp_mpi_exchange_waits_for(const xp_mpi_exchange *exchange);

#endif
