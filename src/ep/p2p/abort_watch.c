#include "ep/p2p/abort_watch.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define PERIOD_NS 20000000L

struct xp_ep_abort_watch {
    xp_ep_abort_watch_args args;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stopped;
    bool stop;
};

static struct timespec next_look(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += PERIOD_NS;
    at.tv_sec += at.tv_nsec / 1000000000L;
    at.tv_nsec %= 1000000000L;
    return at;
}

static bool has_failed(const xp_ep_abort_watch_args *args) {
    return args->kernel_error(args->context) != XP_OK || xp_comm_async_error(args->comm) != XP_OK;
}

static void *watch_main(void *context) {
    xp_ep_abort_watch *w = context;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        if (has_failed(&w->args)) {
            __atomic_store_n(w->args.flag, 1U, __ATOMIC_RELEASE);
            break;
        }
        const struct timespec at = next_look();
        pthread_cond_timedwait(&w->stopped, &w->lock, &at);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Signals are for the threads that asked for them. */
static int create_thread(xp_ep_abort_watch *w) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int result = pthread_create(&w->thread, NULL, watch_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

static void destroy(xp_ep_abort_watch *w) {
    pthread_cond_destroy(&w->stopped);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

xp_status xp_ep_abort_watch_start(const xp_ep_abort_watch_args *args, xp_ep_abort_watch **watch) {
    xp_ep_abort_watch *w = calloc(1, sizeof *w);
    pthread_condattr_t monotonic;
    if (!w)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    w->args = *args;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&w->stopped, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (create_thread(w) != 0) {
        destroy(w);
        return xp_error(XP_ENOMEM, "no thread to watch an expert parallel group's failures");
    }
    *watch = w;
    return XP_OK;
}

void xp_ep_abort_watch_stop(xp_ep_abort_watch *watch) {
    if (!watch)
        return;
    pthread_mutex_lock(&watch->lock);
    watch->stop = true;
    pthread_cond_signal(&watch->stopped);
    pthread_mutex_unlock(&watch->lock);
    pthread_join(watch->thread, NULL);
    destroy(watch);
}
