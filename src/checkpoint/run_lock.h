/**
 * One run in one folder: FOLDER/.lock keeps a second run out for as long as a process of the first
 * is alive.
 *
 * Every process of a run holds a kernel lock on its own record of the file. The kernel drops it when
 * the process ends, however it ends (a file server does the same for a node that is lost), so nothing
 * stale can stand in the way, and a rank whose launcher was killed still counts. The records say who
 * holds them: rank, process, host, since when.
 */
#ifndef XP_CHECKPOINT_RUN_LOCK_H
#define XP_CHECKPOINT_RUN_LOCK_H

#include "core/log.h"
#include "expar/comm.h"

typedef struct xp_run_lock xp_run_lock;

/**
 * Create `folder` where needed and lock it. Rank marks that killed starts left there are removed.
 * Collective over `comm`.
 *
 * @param comm  the processes of the run; NULL: this process is all of it
 * @param log   NULL: silent. Gets a warning where the file system has no locks; the run is not
 *              protected then
 * @return XP_EBUSY on every rank when a process of another run is alive: the last error names its
 *         rank, host, process and start. Other errors of the file, of the first failing rank
 */
XP_NODISCARD xp_status xp_run_lock_take(const char *folder, xp_comm *comm, xp_log *log,
                                        xp_run_lock **lock);
/** NULL is accepted. The file stays: removing it would let two runs lock two files. */
void xp_run_lock_release(xp_run_lock *lock);

#endif
