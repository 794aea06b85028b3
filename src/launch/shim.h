/**
 * A rank that the launcher started through mpirun is two processes: the shim, which mpirun sees,
 * and the rank itself, its child. The shim knows how the rank ended, also when a signal killed it,
 * and tells the launcher; it exits when the launcher says so, always with 0, so mpirun never
 * notices a failure and never ends other ranks on its own. The rank writes to the launcher's own
 * stdout and stderr. When the shim or the launcher is gone, so is the rank.
 */
#ifndef XP_LAUNCH_SHIM_H
#define XP_LAUNCH_SHIM_H

#include <stdbool.h>
#include "launch/message.h"

/** True in a process that is to be a shim: call xp_shim_run() before anything else. */
bool xp_shim_wanted(void);
/** Runs this program again with `argv` as the rank, and waits for it. @return the exit code */
int xp_shim_run(char **argv);

/** True in a rank that has a shim. */
bool xp_rank_has_shim(void);
/** Signals that stop a run, blocked until now, are taken from now on. Does nothing without a shim.
 */
void xp_rank_report_begun(void);
/**
 * Before the rank exits with something else than 0: what the launcher is to tell the user.
 * @param secondhand  the failure is another rank's
 */
void xp_rank_report_failure(int code, bool secondhand, const char *text);

#endif
