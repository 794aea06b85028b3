/* The first root cause, the same record on every rank. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "comm/mpi/failure.h"
#include "core/error.h"
#include "core/file.h"

/* Ranks that know of a failure leave within this time; the one that tells the user waits for them.
 */
#define OTHERS_S 3.0
/* A launcher collects the output of many processes through pipes of their own. */
#define OUTPUT_S 0.2
/* A message to another node is under way this long at most before the sender gives up. */
#define FORWARD_S 1.0

xp_status xp_mpi_error(const char *what, int code) {
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int n = 0;
    MPI_Error_string(code, text, &n);
    return xp_error(XP_ECOMM, "%s failed: %s", what, text);
}

static void adopt(xp_mpi_world *world, const xp_failure *failure) {
    pthread_mutex_lock(&world->lock);
    bool first = !atomic_load(&world->failed);
    if (first) {
        world->failure = *failure;
        world->failure.text[XP_FAILURE_TEXT - 1] = '\0';
        world->failure.phase[XP_FAILURE_PHASE - 1] = '\0';
        atomic_store(&world->failed, true);
    }
    pthread_mutex_unlock(&world->lock);
    xp_failure_hooks_fire(&world->hooks);
}

/* First in the node's liveness table: one process wins, and all take its record. */
static void publish(xp_mpi_world *world, const xp_failure *failure) {
    xp_failure first = *failure;
    xp_liveness_settle(&world->liveness, &first);
    adopt(world, &first);
}

void xp_mpi_fail(xp_mpi_world *world, xp_failure_reason reason, int culprit, const char *text) {
    if (atomic_load(&world->failed))
        return;
    xp_failure failure = xp_failure_make(reason, world->rank, culprit, text);
    xp_liveness_activity_of(&world->liveness, culprit, failure.phase);
    publish(world, &failure);
}

xp_status xp_mpi_world_status(const xp_mpi_world *world) {
    if (!atomic_load(&world->failed))
        return XP_OK;
    return xp_error(XP_ECOMM, "%s", world->failure.text);
}

static void report_death(xp_mpi_world *world, const xp_liveness_slot *slot) {
    char text[XP_FAILURE_TEXT];
    xp_liveness_describe_death(slot, world->host, text);
    xp_mpi_fail(world, XP_FAILURE_LOST, atomic_load(&slot->rank), text);
}

void xp_mpi_check_peers(xp_mpi_world *world) {
    if (xp_liveness_has_failed(&world->liveness)) {
        xp_failure failure;
        xp_liveness_get_failure(&world->liveness, &failure);
        adopt(world, &failure);
        return;
    }
    const xp_liveness_slot *dead = xp_liveness_find_dead(&world->liveness);
    if (dead) {
        report_death(world, dead);
        return;
    }
    int come = 0;
    if (MPI_Test(&world->failure_request, &come, MPI_STATUS_IGNORE) == MPI_SUCCESS && come)
        publish(world, &world->failure_received);
}

/* See comm/mpi/forward.h. */
void xp_mpi_forward_failure(xp_mpi_world *world) {
    const int n_targets = xp_forward_targets(&world->map, world->rank, world->failure.reporter,
                                             world->forward_targets);
    MPI_Request *requests = world->forward_requests;
    int n = 0, done = 0;
    for (int i = 0; i < n_targets; i++)
        if (MPI_Isend(&world->failure, sizeof world->failure, MPI_BYTE, world->forward_targets[i],
                      XP_MPI_TAG_FAILURE, world->mpi, &requests[n]) == MPI_SUCCESS)
            n++;
    double deadline = xp_time_s() + FORWARD_S;
    while (n > 0 && !done && xp_time_s() < deadline) {
        int come = world->failure_request == MPI_REQUEST_NULL;
        if (MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS)
            return;
        if (world->failure_request != MPI_REQUEST_NULL &&
            MPI_Test(&world->failure_request, &come, MPI_STATUS_IGNORE) == MPI_SUCCESS && come &&
            world->failure_received.wall_s < world->failure.wall_s)
            atomic_store(&world->superseded, true);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

/*
 * Every rank prints one line. The rank that found the failure has the root cause to tell, and waits
 * until the others have printed theirs and ended.
 */
xp_status xp_mpi_final_error(xp_comm *base, xp_status status) {
    xp_mpi_world *world = ((xp_mpi_comm *)base)->world;
    const xp_failure *failure = &world->failure;
    if (!atomic_load(&world->failed))
        return status;
    if (failure->reporter == world->rank && !atomic_load(&world->superseded)) {
        /* Ranks that compute learn of it when they come to their next call. */
        bool late = failure->reason == XP_FAILURE_TIMEOUT;
        bool soon = late || world->timeout_s < OTHERS_S;
        /* Who is late may stay away; who gave up has its line to print as well. */
        int except = late ? failure->culprit : -1;
        xp_liveness_wait_for_exits(&world->liveness, except, soon ? OTHERS_S : world->timeout_s);
        double more = OUTPUT_S * (world->n_nodes > 1 ? 5 : 1);
        nanosleep(&(struct timespec){.tv_sec = (time_t)more,
                                     .tv_nsec = (long)((more - (double)(time_t)more) * 1e9)},
                  NULL);
        return xp_error(status, "%s", failure->text);
    }
    char mine[XP_FAILURE_PHASE];
    xp_liveness_get_activity(world->liveness.mine, mine);
    if (failure->culprit < 0 || failure->culprit == world->rank)
        xp_error(status, "rank %d ends: %s", world->rank, failure->text);
    else
        xp_error(status, "rank %d ends in %s: rank %d failed in %s", world->rank,
                 mine[0] ? mine : "start", failure->culprit,
                 failure->phase[0] ? failure->phase : "start");
    xp_error_set_rank(failure->reporter); /* not this rank's own words */
    return status;
}
