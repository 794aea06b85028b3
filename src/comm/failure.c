#include "comm/failure.h"

#include <stdio.h>
#include <time.h>

const char *xp_failure_reason_name(int reason) {
    switch (reason) {
    case XP_FAILURE_ABORT:
        return "abort";
    case XP_FAILURE_TIMEOUT:
        return "timeout";
    case XP_FAILURE_LOST:
        return "lost";
    case XP_FAILURE_MISMATCH:
        return "mismatch";
    case XP_FAILURE_LIBRARY:
        return "library";
    default:
        return "none";
    }
}

xp_failure xp_failure_make(xp_failure_reason reason, int reporter, int culprit, const char *text) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    xp_failure failure = {.wall_s = (double)now.tv_sec + (double)now.tv_nsec * 1e-9,
                          .reporter = reporter,
                          .culprit = culprit,
                          .reason = reason};
    snprintf(failure.text, sizeof failure.text, "%s", text);
    return failure;
}
