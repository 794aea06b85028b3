/**
 * Starts the ranks of a run as processes through mpirun and stays with them: passes signals on,
 * finds out what became of each, ends those that do not end by themselves, and leaves neither
 * processes nor files behind, whoever is killed.
 *
 *   launcher (this process) -> mpirun -> shims (shim.h), one a rank -> ranks
 *            \-> sweeper (sweep.h)
 *
 * mpirun runs in a session of its own: a terminal's Ctrl-C reaches the launcher alone, which tells
 * each shim once. Ranks write to the launcher's stdout and stderr themselves; what mpirun writes
 * is shown only when the ranks cannot say what went wrong.
 */
#ifndef XP_LAUNCH_SUPERVISE_H
#define XP_LAUNCH_SUPERVISE_H

#include <stdbool.h>
#include "launch/message.h"

typedef struct xp_launch_args {
    int n_ranks;
    int n_nodes;          /* 1 without hostfile and hosts: this machine only */
    const char *hostfile; /* or NULL */
    const char *hosts;    /* or NULL */
    char **argv;          /* of a rank, argv[0] the program's path; NULL-terminated */
    double start_s;       /* all ranks are there within this time */
    double failure_s;     /* after the first failure the others end within this time */
} xp_launch_args;

typedef struct xp_launch_result {
    int code;         /* 0, 1, 2: of the first root cause */
    int ended_by;     /* a signal that came before the run began, or 0: nothing was trained */
    bool stopped_now; /* by a second signal */
    char text[3 * XP_LAUNCH_TEXT]; /* what went wrong, one line; may be "" */
} xp_launch_result;

/**
 * For programs with no other children. Returns when everything has ended.
 * @return XP_OK: `result` says how the run went; XP_ENOTSUP: no mpirun, the error says what to do
 */
XP_NODISCARD xp_status xp_launch_run(const xp_launch_args *args, xp_launch_result *result);

#endif
