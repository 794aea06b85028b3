/** The inside of the launcher, for its own files. */
#ifndef XP_LAUNCH_LAUNCHER_H
#define XP_LAUNCH_LAUNCHER_H

#include <sys/types.h>
#include "launch/cause.h"
#include "launch/mpirun.h"
#include "launch/output.h"
#include "launch/supervise.h"
#include "launch/sweep.h"

typedef struct launched_rank {
    int socket; /* of its shim; -1: none (yet), or on another node */
    bool present, begun;
} launched_rank;

typedef struct launcher {
    const xp_launch_args *args;
    xp_launch_result *result;
    xp_sweeper sweeper;
    char name[64]; /* of the socket */
    int listener, signals;
    pid_t mpirun; /* 0: it has ended */
    int mpirun_how;
    xp_output out, err;
    xp_kept kept;
    launched_rank *ranks;      /* [n_ranks] */
    xp_rank_outcome *outcomes; /* [n_ranks] */
    int n_present, n_begun, n_ended;
    double began_s, stop_s, failed_s, found_s, ending_s; /* 0: not yet */
    bool leaving;
} launcher;

/** mpirun, and its two streams. */
XP_NODISCARD xp_status xp_launcher_start_mpirun(launcher *l, const xp_mpirun *mpirun);
/** A pipe that gets a byte for each signal that stops a run, and for SIGCHLD. */
XP_NODISCARD xp_status xp_launcher_open_signals(launcher *l);
void xp_launcher_close_signals(launcher *l);

#endif
