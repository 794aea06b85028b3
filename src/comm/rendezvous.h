/**
 * Which ranks have started, before MPI can tell: MPI_Init returns only when all ranks are there.
 * Each rank creates an arrival file, FOLDER/.expar-ranks-JOB/RANK, before it calls MPI_Init and
 * removes it afterwards. Ranks of a node that does not share the folder are not seen.
 */
#ifndef XP_COMM_RENDEZVOUS_H
#define XP_COMM_RENDEZVOUS_H

#include <stdbool.h>
#include "expar/status.h"

#define XP_RENDEZVOUS_LOOK_S 0.1

typedef struct xp_rendezvous {
    char folder[1024];   /* "" when nothing is to be watched */
    char fallback[1024]; /* in $TMPDIR or /tmp; the same as folder where none was named */
    char host[64];
    int rank, size; /* by the launcher's account */
    double timeout_s, deadline_s;
} xp_rendezvous;

/** @param folder  NULL: $TMPDIR or /tmp */
XP_NODISCARD xp_status xp_rendezvous_enter(const char *folder, xp_rendezvous *rendezvous);
void xp_rendezvous_deadline(xp_rendezvous *rendezvous, double timeout_s);
/** XP_OK while there is hope; XP_ECOMM when the time is over, a rank has died, or another rank has
 * said that it failed: the last error names the ranks. */
XP_NODISCARD xp_status xp_rendezvous_check(xp_rendezvous *rendezvous);
/** Remove the arrival file. A failure is written to the folder for those who still wait; the rank
 * that does so waits until the others of its node have ended, so that its line is the last.
 * @return status */
XP_NODISCARD xp_status xp_rendezvous_leave(xp_rendezvous *rendezvous, xp_status status);
/** This rank will not come: ranks that wait in init, or start later, end at once with `reason`.
 * Those of other hosts see it where they see the folder. Keeps the last error. Does nothing without
 * a launcher. */
void xp_rendezvous_absent(const char *folder, const char *reason);

#endif
