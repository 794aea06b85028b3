#include "comm/callbacks/failure.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"

/* How often to look at the liveness table; a peer's death wakes the watcher itself. */
#define LOOK_MS 50
/* A transport that breaks because a peer has died may say so before the system does. */
#define DEATH_S 0.3

static void adopt(xp_callback_world *world, const xp_failure *failure) {
    pthread_mutex_lock(&world->lock);
    if (!atomic_load(&world->failed)) {
        world->failure = *failure;
        world->failure.text[XP_FAILURE_TEXT - 1] = '\0';
        world->failure.phase[XP_FAILURE_PHASE - 1] = '\0';
        atomic_store(&world->failed, true);
    }
    pthread_mutex_unlock(&world->lock);
    xp_failure_hooks_fire(&world->hooks);
}

void xp_callback_fail(xp_callback_world *world, xp_failure_reason reason, int culprit,
                      const char *text) {
    if (atomic_load(&world->failed))
        return;
    xp_failure failure = xp_failure_make(reason, world->rank, culprit, text);
    xp_liveness_activity_of(&world->liveness, culprit, failure.phase);
    xp_liveness_settle(&world->liveness, &failure);
    adopt(world, &failure);
}

void xp_callback_fail_timeout(xp_callback_world *world, int rank, const char *text) {
    char whole[XP_FAILURE_TEXT];
    const int culprit = xp_liveness_explain_timeout(&world->liveness, rank, text, whole);
    xp_callback_fail(world, XP_FAILURE_TIMEOUT, culprit, whole);
}

xp_status xp_callback_world_status(const xp_callback_world *world) {
    if (!atomic_load(&world->failed))
        return XP_OK;
    return xp_error(XP_ECOMM, "%s", world->failure.text);
}

xp_status xp_callback_fail_transport(xp_callback_world *world, const xp_comm_call *call,
                                     const char *what, int code) {
    char text[XP_FAILURE_TEXT], why[600];
    const char *phase = call->phase;
    snprintf(why, sizeof why, "%s", xp_last_error());
    const double deadline = xp_time_s() + DEATH_S;
    while (!atomic_load(&world->failed) && xp_time_s() < deadline)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    snprintf(text, sizeof text, "rank %d in %s%s%s%s: the caller's %s returned %d%s%s", world->rank,
             xp_comm_kind_name(call->kind), phase ? " (" : "", phase ? phase : "", phase ? ")" : "",
             what, code, why[0] ? ": " : "", why);
    xp_callback_fail(world, XP_FAILURE_LIBRARY, world->rank, text);
    return xp_callback_world_status(world);
}

/* ---- the watcher -------------------------------------------------------------------------- */

static void look(xp_callback_world *world) {
    if (xp_liveness_has_failed(&world->liveness)) {
        xp_failure failure;
        xp_liveness_get_failure(&world->liveness, &failure);
        adopt(world, &failure);
        return;
    }
    const xp_liveness_slot *dead = xp_liveness_find_dead(&world->liveness);
    if (!dead)
        return;
    char text[XP_FAILURE_TEXT];
    xp_liveness_describe_death(dead, world->host, text);
    xp_callback_fail(world, XP_FAILURE_LOST, atomic_load(&dead->rank), text);
}

/* @return false: the watcher is to end */
static bool sleep_until_something(xp_callback_world *world) {
    struct pollfd fds[65];
    nfds_t n = 1;
    fds[0] = (struct pollfd){.fd = world->wake, .events = POLLIN};
    for (int i = 0; i < world->liveness.n_slots && n < sizeof fds / sizeof fds[0]; i++) {
        const xp_liveness_slot *slot = &world->liveness.memory->slots[i];
        if (world->liveness.pidfds[i] >= 0 && !atomic_load(&slot->finalized))
            fds[n++] = (struct pollfd){.fd = world->liveness.pidfds[i], .events = POLLIN};
    }
    return poll(fds, n, LOOK_MS) <= 0 || fds[0].revents == 0;
}

static void *watch(void *context) {
    xp_callback_world *world = context;
    while (!atomic_load(&world->failed) && sleep_until_something(world))
        look(world);
    return NULL;
}

/* Signals are the caller's threads' to take. */
xp_status xp_callback_watch_start(xp_callback_world *world) {
    sigset_t all, before;
    world->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (world->wake < 0)
        return xp_error(XP_ENOMEM, "cannot make an eventfd: %s", strerror(errno));
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&world->watcher, NULL, watch, world);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        close(world->wake);
        return xp_error(XP_ENOMEM,
                        "cannot start the thread that watches the ranks of this node: %s",
                        strerror(code));
    }
    world->watched = true;
    return XP_OK;
}

void xp_callback_watch_stop(xp_callback_world *world) {
    const uint64_t one = 1;
    if (!world->watched)
        return;
    if (write(world->wake, &one, sizeof one) < 0)
        xp_error_clear(); /* cannot happen: the counter of an eventfd is not full */
    pthread_join(world->watcher, NULL);
    close(world->wake);
    world->watched = false;
}
