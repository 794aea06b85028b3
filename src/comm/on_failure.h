/**
 * Callbacks that run when a world of ranks fails: for layers whose device kernels wait for peers
 * and must be told to stop (an abort flag in mapped memory, ncclCommAbort).
 */
#ifndef XP_COMM_ON_FAILURE_H
#define XP_COMM_ON_FAILURE_H

#include <pthread.h>
#include <stdbool.h>
#include "expar/comm.h"

/** One registered callback. The caller owns the memory and keeps it valid until it is removed. */
typedef struct xp_failure_hook {
    /**
     * Called once, from the thread that learns of the failure first: a rank thread, a watcher, or
     * MPI's progress thread. It must return at once: store to memory or signal an event; no
     * blocking lock, no CUDA call, no call on a communicator or a hook.
     */
    void (*call)(void *context);
    void *context;
    struct xp_failure_hook *next; /* of the list; not the caller's */
} xp_failure_hook;

/**
 * Register `hook` with the world of `comm`: its `call` runs as soon as this process knows that any
 * rank of the world has failed, died or timed out, also while every other thread waits for a
 * device. When the world has failed already, `call` runs before this returns. Any thread.
 *
 * How soon: rank threads, at once; processes of one node, within 0.1 s (shared-memory liveness
 * table); processes of other nodes, when the message arrives.
 */
void xp_comm_on_failure(xp_comm *comm, xp_failure_hook *hook);
/** Remove the hook: once this returns `call` is not running and will not run. A hook that is not
 * registered is accepted. */
void xp_comm_remove_on_failure(xp_comm *comm, xp_failure_hook *hook);

/** The hooks of one world. A provider keeps one and points each of its communicators to it
 * (xp_comm.hooks). */
typedef struct xp_failure_hooks {
    pthread_mutex_t lock; /* held while callbacks run, so that removal waits for them */
    xp_failure_hook *first;
    bool fired;
} xp_failure_hooks;

void xp_failure_hooks_init(xp_failure_hooks *hooks);
void xp_failure_hooks_destroy(xp_failure_hooks *hooks);
/** See xp_comm_on_failure(). */
void xp_failure_hooks_add(xp_failure_hooks *hooks, xp_failure_hook *hook);
/** The world has failed: run every hook, the first time only. The failure is recorded by now. */
void xp_failure_hooks_fire(xp_failure_hooks *hooks);

#endif
