/** Nothing is left behind: folders and processes of a launch. */
#ifndef XP_LAUNCH_SWEEP_H
#define XP_LAUNCH_SWEEP_H

#include <sys/types.h>

typedef struct xp_sweeper {
    char folder[64]; /* mpirun's session and the ranks' marks; "" none */
    char memory[64]; /* shared memory; "" none */
    int line;        /* write end of a pipe; the sweeper reads the other */
    pid_t sweeper;
} xp_sweeper;

/** Make the folders; where that fails a name stays "". */
void xp_sweeper_open(xp_sweeper *s);
/** A process that does the same as xp_sweeper_close() when this one is killed. @param mpirun which
 * is to be gone first */
void xp_sweeper_start(xp_sweeper *s, pid_t mpirun);
void xp_sweeper_close(xp_sweeper *s);

/** Kill and reap all children of this process but `except`, and theirs as they are handed over to
 * it; for at most so long. For a process that is a subreaper. */
void xp_kill_children(pid_t except, double seconds);

#endif
