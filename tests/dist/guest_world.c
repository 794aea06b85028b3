/* MPI is the program's: the library takes a communicator of it. Rank 0 of MPI is the last rank here,
 * so that the two cannot be mixed up. */
#include <mpi.h>
#include "world.h"

static MPI_Comm backwards;

xp_status test_world_create(double timeout_s, xp_comm **world) {
    int rank = 0, provided = 0;
    (void)timeout_s;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return xp_error(XP_ECOMM, "MPI_Init_thread");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &backwards);
    return xp_comm_from_mpi(&backwards, world);
}

void test_world_destroy(xp_comm *world) {
    int finalized = 0;
    xp_comm_destroy(world);
    MPI_Finalized(&finalized);
    if (finalized)
        return;
    MPI_Comm_free(&backwards);
    MPI_Finalize();
}
