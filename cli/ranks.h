/** Ranks of a command that computes with a trained model: processes, started through mpirun, that share the experts. */
#ifndef XP_CLI_RANKS_H
#define XP_CLI_RANKS_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/comm.h"

typedef struct cli_ranks {
    xp_comm *comm; /* NULL: one rank */
    bool speaks;   /* this process prints the results */
} cli_ranks;

/**
 * With n_ranks > 1 start that many ranks of this very command line, wait for them, and return false; in a rank, also of a
 * user's own mpirun, join the others.
 * @param argv  the command's words, argv[0] its name
 * @param[out] code  of the process, when false is returned
 * @return whether this process goes on with the command
 */
bool cli_ranks_join(int argc, char **argv, int64_t n_ranks, cli_ranks *ranks, int *code);
/** The end of the command in this rank: says what went wrong, once for all ranks. @return the exit code */
int cli_ranks_end(cli_ranks *ranks, xp_status status);

#endif
