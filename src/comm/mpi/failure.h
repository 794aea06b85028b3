/** The world's failure: made known to the node and to other nodes, and reported. */
#ifndef XP_COMM_MPI_FAILURE_H
#define XP_COMM_MPI_FAILURE_H

#include "comm/mpi/state.h"

/** This becomes the failure of all ranks unless there is one. Any thread.
 * @param culprit  a rank of the world, or -1 */
void xp_mpi_fail(xp_mpi_world *world, xp_failure_reason reason, int culprit, const char *text);
/** XP_OK, or the failure of all with its text as the last error. Never waits. */
xp_status xp_mpi_world_status(const xp_mpi_world *world);
/** Another process of the node has failed or died: make it ours. Progress thread. */
void xp_mpi_check_peers(xp_mpi_world *world);
/** Tell the other nodes. Progress thread, once. */
void xp_mpi_forward_failure(xp_mpi_world *world);
/** See xp_comm_final_error(). */
xp_status xp_mpi_final_error(xp_comm *comm, xp_status status);
/** XP_ECOMM with the text of an error code of MPI. */
xp_status xp_mpi_error(const char *what, int code);

#endif
