/**
 * The record of a failure: who, in which phase, why. Each rank keeps the first one of its world; it
 * never changes, and its text is what all ranks report.
 */
#ifndef XP_COMM_FAILURE_H
#define XP_COMM_FAILURE_H

#include <stdint.h>
#include "expar/status.h"

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

/** A record with the time of now and phase "". A text that does not fit is cut. */
xp_failure xp_failure_make(xp_failure_reason reason, int reporter, int culprit, const char *text);

/** "abort", "timeout", ...; static. */
const char *xp_failure_reason_name(int reason);

#endif
