/** Why a run of several processes failed: the first root cause out of what became of each rank. */
#ifndef XP_LAUNCH_CAUSE_H
#define XP_LAUNCH_CAUSE_H

#include <stdbool.h>
#include <stddef.h>
#include "launch/message.h"

/** What the launcher knows of a rank. */
typedef struct xp_rank_outcome {
    xp_rank_end end; /* once it has ended */
    bool ended;
    bool vanished; /* its shim is gone, and with it what became of the rank */
    bool ended_by_launcher;
    double ended_s; /* xp_time_s() */
} xp_rank_outcome;

/**
 * A rank that a signal killed comes first, then the last to end of those that failed on their own
 * account (the rank that found a failure waits until the others have ended), then an exit without a
 * message, then what a rank heard of another.
 *
 * @param[out] text  one line, "" when all ended with 0
 * @return the exit code: 0, 1 or 2
 */
int xp_launch_find_cause(const xp_rank_outcome *ranks, int n_ranks, char *text, size_t n_bytes);

#endif
