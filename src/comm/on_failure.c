#include "comm/on_failure.h"

#include "comm/provider.h"

void xp_failure_hooks_init(xp_failure_hooks *hooks) {
    pthread_mutex_init(&hooks->lock, NULL);
    hooks->first = NULL;
    hooks->fired = false;
}

void xp_failure_hooks_destroy(xp_failure_hooks *hooks) {
    pthread_mutex_destroy(&hooks->lock);
}

void xp_failure_hooks_fire(xp_failure_hooks *hooks) {
    pthread_mutex_lock(&hooks->lock);
    if (!hooks->fired) {
        hooks->fired = true;
        for (xp_failure_hook *hook = hooks->first; hook; hook = hook->next)
            hook->call(hook->context);
    }
    pthread_mutex_unlock(&hooks->lock);
}

void xp_failure_hooks_add(xp_failure_hooks *hooks, xp_failure_hook *hook) {
    pthread_mutex_lock(&hooks->lock);
    hook->next = hooks->first;
    hooks->first = hook;
    if (hooks->fired)
        hook->call(hook->context);
    pthread_mutex_unlock(&hooks->lock);
}

void xp_comm_on_failure(xp_comm *comm, xp_failure_hook *hook) {
    xp_failure_hooks_add(comm->hooks, hook);
}

void xp_comm_remove_on_failure(xp_comm *comm, xp_failure_hook *hook) {
    xp_failure_hooks *hooks = comm->hooks;
    pthread_mutex_lock(&hooks->lock);
    for (xp_failure_hook **at = &hooks->first; *at; at = &(*at)->next) {
        if (*at != hook)
            continue;
        *at = hook->next;
        break;
    }
    pthread_mutex_unlock(&hooks->lock);
}
