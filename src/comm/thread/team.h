/** A world of rank threads, and teams: what the communicators of a world's ranks have in common. */
#ifndef XP_COMM_THREAD_TEAM_H
#define XP_COMM_THREAD_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include "comm/futex_event.h"
#include "comm/on_failure.h"
#include "comm/provider.h"
#include "comm/reduce.h"

typedef struct xp_team xp_team;

struct xp_thread_world {
    int n_ranks;
    double timeout_s;
    int *nodes;           /* [n_ranks] simulated node of each rank */
    pthread_mutex_t lock; /* the list of teams; the failure until `failed` is set */
    _Atomic int *n_waits; /* [n_ranks] waits each rank is in now, in whichever communicator */
    xp_team *teams;       /* every living team, to wake them all */
    xp_team *all;         /* the team of all ranks */
    xp_failure_hooks hooks;
    _Atomic bool failed; /* release-stored after `failure` is complete */
    xp_failure failure;
};

/** What one rank publishes to the others of its team. Written by its owner between barriers, read
 * by the others after one. */
typedef struct xp_team_slot {
    _Alignas(64) _Atomic uint32_t arrived; /* barriers this rank has entered */
    _Atomic(const char *)
        phase; /* what its last request was for, and its kind: for the missing rank's error */
    _Atomic int kind;
    xp_comm_call call;
    xp_event *ready, *done; /* of a collective on a device: data there, part of the work queued */
    const char *device_name;
    int color;
    xp_team *sub;
    void *window;
} xp_team_slot;

/** A final barrier that some rank has come to. */
typedef struct xp_team_end {
    struct xp_team_end *next;
    int64_t id;
    _Atomic int n_arrived;
    int n_left; /* under the world's lock */
} xp_team_end;

struct xp_team {
    xp_thread_world *world;
    xp_team *next;
    int size, n_nodes;
    bool one_node;
    int *world_ranks, *nodes; /* [size] */
    _Atomic int n_refs;
    _Atomic uint32_t n_arrived; /* entries into all barriers so far */
    _Atomic uint32_t
        state; /* completed barriers << 1 | failed; no barrier completes once failed is set */
    xp_futex_event event;
    xp_team_slot *slots; /* [size] */
    xp_team_end *ends;   /* under the world's lock */
};

typedef struct xp_thread_comm {
    xp_comm base;
    xp_team *team;
    int64_t n_device_calls;
    uint32_t epoch;   /* barriers this rank has entered */
    const void **src; /* [size] a reduction's sources and results */
    void **dst;
} xp_thread_comm;

/** A team over these ranks of the world with one reference for each; joins the world's list. Failed
 * worlds refuse (XP_ECOMM). */
XP_NODISCARD xp_status xp_team_create(xp_thread_world *world, const int *world_ranks, int size,
                                      xp_team **team);
/** Drop one reference; the last frees. */
void xp_team_release(xp_team *team);

/** The first failure wins; every waiting rank of every team wakes. */
void xp_world_fail(xp_thread_world *world, const xp_failure *failure);
/** XP_ECOMM with the world's reason as the last error, or XP_OK. */
xp_status xp_world_status(xp_thread_world *world);

/**
 * A barrier in two halves. `enter` may fail before anyone looks at another's slot. `leave` closes
 * what `enter` opened: even when it fails, no rank uses another's buffers any more.
 */
XP_NODISCARD xp_status xp_team_enter(xp_thread_comm *comm, xp_comm_kind kind, const char *phase);
XP_NODISCARD xp_status xp_team_leave(xp_thread_comm *comm);
/**
 * See xp_comm_provider.final_barrier. Each id counts for itself, so ranks that a failure has left
 * in different calls cannot take each other's end of one thing for the end of another.
 */
bool xp_team_final_barrier(xp_thread_comm *comm, int64_t id);

#endif
