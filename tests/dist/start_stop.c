/* start_stop: meet all ranks, once, and part. START_TIMEOUT: seconds to wait for them. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "expar/comm.h"

int main(void) {
    const char *timeout = getenv("START_TIMEOUT");
    double timeout_s = timeout ? atof(timeout) : 50;
    xp_comm *comm = NULL;
    int64_t sum = 1;
    xp_status status = xp_mpi_world_comm(timeout_s, timeout_s, &comm);
    if (status == XP_OK)
        status = xp_comm_all_reduce(comm, &sum, &sum, 1, XP_I64, XP_SUM, NULL);
    if (status != XP_OK) {
        fprintf(stderr, "error: %s\n", xp_last_error());
        fflush(NULL);
        _exit(1);
    }
    bool first = xp_comm_rank(comm) == 0;
    int n_nodes = xp_comm_n_nodes(comm);
    bool all = sum == xp_comm_size(comm);
    xp_comm_destroy(comm);
    if (first)
        printf("%lld ranks on %d node%s\n", (long long)sum, n_nodes, n_nodes > 1 ? "s" : "");
    return !all;
}
