#include "comm/failure.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include "comm/provider.h"
#include "core/error.h"

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

xp_status xp_comm_fail_with(xp_comm *comm, const xp_failure *failure) {
    comm->provider->fail(comm, failure);
    return xp_comm_async_error(comm);
}

static xp_status fail(xp_comm *comm, xp_failure_reason reason, int culprit, const char *text) {
    const xp_failure failure =
        xp_failure_make(reason, xp_comm_world_rank(comm, comm->rank), culprit, text);
    return xp_comm_fail_with(comm, &failure);
}

xp_status xp_comm_fail(xp_comm *comm, const char *text) {
    return fail(comm, XP_FAILURE_LIBRARY, xp_comm_world_rank(comm, comm->rank), text);
}

xp_status xp_comm_fail_timeout(xp_comm *comm, int peer, const char *text) {
    return fail(comm, XP_FAILURE_TIMEOUT, xp_comm_world_rank(comm, peer), text);
}

xp_status xp_comm_fail_mismatch(xp_comm *comm, const char *text) {
    return fail(comm, XP_FAILURE_MISMATCH, -1, text);
}

/* The text behind the name of its rank, which the sentence around it says already. */
static const char *without_rank(const char *text, int rank) {
    char name[32];
    const int n = snprintf(name, sizeof name, "rank %d: ", rank);
    return strncmp(text, name, (size_t)n) == 0 ? text + n : text;
}

void xp_comm_abort(xp_comm *comm, const char *reason) {
    char text[XP_FAILURE_TEXT];
    const char *phase = atomic_load(&comm->phase);
    int rank = -1;
    if (!reason) {
        /* A failure that all ranks have agreed on is its rank's, whoever comes here first. */
        rank = xp_last_error_rank();
        reason = xp_last_error();
    }
    if (rank < 0)
        rank = xp_comm_world_rank(comm, comm->rank);
    snprintf(text, sizeof text, "rank %d gave up in %s: %s", rank, phase ? phase : "the run",
             reason[0] ? without_rank(reason, rank) : "no reason given");
    const xp_failure failure =
        xp_failure_make(XP_FAILURE_ABORT, xp_comm_world_rank(comm, comm->rank), rank, text);
    comm->provider->fail(comm, &failure); /* the caller's last error stays */
}

bool xp_comm_get_failure(const xp_comm *comm, xp_failure *failure) {
    const xp_failure *first = comm->provider->failure(comm);
    if (first)
        *failure = *first;
    return first != NULL;
}

xp_status xp_comm_async_error(const xp_comm *comm) {
    const xp_failure *failure = comm->provider->failure(comm);
    return failure ? xp_error(XP_ECOMM, "%s", failure->text) : XP_OK;
}
