/**
 * The record of a failure: who, in which phase, why. The first one of a world is kept by its provider on every rank
 * and never changes; its text is what all ranks report.
 */
#ifndef XP_COMM_FAILURE_H
#define XP_COMM_FAILURE_H

#include <stdint.h>
#include "expar/comm.h"

#define XP_FAILURE_TEXT  1000
#define XP_FAILURE_PHASE 48 /* bytes of a phase's name with its NUL, a multiple of 8 */

typedef enum xp_failure_reason {
    XP_FAILURE_NONE = 0,
    XP_FAILURE_ABORT,    /* the culprit said itself that it cannot go on (xp_comm_abort) */
    XP_FAILURE_TIMEOUT,  /* a wait for the culprit took longer than the time limit */
    XP_FAILURE_LOST,     /* the culprit's process was killed or crashed */
    XP_FAILURE_MISMATCH, /* two ranks made different calls; culprit is -1 */
    XP_FAILURE_LIBRARY   /* MPI or NCCL returned an error to the reporter */
} xp_failure_reason;

/** Plain bytes: it also lies in shared memory and travels in messages. */
typedef struct xp_failure {
    double wall_s;    /* CLOCK_REALTIME when found: of several the earliest is the root cause */
    int32_t reporter; /* rank of the world that found it */
    int32_t culprit;  /* rank of the world that is missing or gave up; -1: nobody can say */
    int32_t reason;   /* xp_failure_reason */
    char phase[XP_FAILURE_PHASE]; /* what the culprit was last doing, as far as is known; "" */
    char text[XP_FAILURE_TEXT];   /* one line for people */
} xp_failure;

/** A record of now, with phase "". A text that does not fit is cut. */
xp_failure xp_failure_make(xp_failure_reason reason, int reporter, int culprit, const char *text);

/** "abort", "timeout", ...; static. */
const char *xp_failure_reason_name(int reason);

/**
 * Make this the failure of all ranks unless there is one. Any thread.
 * @return XP_ECOMM, with the text of the failure that holds as the last error
 */
xp_status xp_comm_fail_with(xp_comm *comm, const xp_failure *failure);
/** The same for a failure of this rank that has no better description (reason LIBRARY, culprit this rank). */
xp_status xp_comm_fail(xp_comm *comm, const char *text);
/** The same for a wait that has ended: `peer` is the rank of `comm` that did not come. The provider may know that
 * the peer waits for another rank in turn, and names that one. */
xp_status xp_comm_fail_timeout(xp_comm *comm, int peer, const char *text);
/** The same for ranks that do not make the same call. */
xp_status xp_comm_fail_mismatch(xp_comm *comm, const char *text);

/** The record. @return false: the world has not failed, *failure is untouched */
bool xp_comm_get_failure(const xp_comm *comm, xp_failure *failure);

#endif
