/** The progress thread, which makes every MPI call. */
#ifndef XP_COMM_MPI_PROGRESS_H
#define XP_COMM_MPI_PROGRESS_H

#include "comm/mpi/state.h"

/** Start the thread, which connects to all ranks first. */
XP_NODISCARD xp_status xp_mpi_progress_start(xp_mpi_world *world);
/** @return true once it has connected or failed to (start_status), false when the time is over */
bool xp_mpi_progress_wait_start(xp_mpi_world *world, double seconds);
/** End the thread, in good order unless the ranks have failed: then MPI is left as it is.
 * @return false when the thread is stuck in MPI: the world must not be freed */
XP_NODISCARD bool xp_mpi_progress_stop(xp_mpi_world *world);
/** Hand the exchange to the progress thread and wait for its end. */
XP_NODISCARD xp_status xp_mpi_exchange_run(xp_mpi_exchange *exchange);

#endif
