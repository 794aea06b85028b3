/* Worlds, their failure, and communicators: creation, split, destruction. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/thread/collectives.h"
#include "comm/thread/device_collectives.h"
#include "comm/thread/simulate_nodes.h"
#include "comm/thread/window.h"

xp_status xp_thread_world_create(int n_ranks, double timeout_s, xp_thread_world **world) {
    if (!world || n_ranks < 1 || !(timeout_s > 0))
        return xp_error(
            XP_EINVAL,
            "xp_thread_world_create: %d ranks with a timeout of %g s; both must be positive",
            n_ranks, timeout_s);
    xp_status status = XP_ENOMEM;
    xp_thread_world *w = calloc(1, sizeof *w);
    int *ranks = calloc((size_t)n_ranks, sizeof *ranks);
    if (!w || !ranks)
        goto fail_memory;
    w->n_ranks = n_ranks;
    w->timeout_s = timeout_s;
    w->nodes = calloc((size_t)n_ranks, sizeof *w->nodes);
    w->n_waits = calloc((size_t)n_ranks, sizeof *w->n_waits);
    if (!w->nodes || !w->n_waits)
        goto fail_memory;
    for (int i = 0; i < n_ranks; i++)
        ranks[i] = i;
    if (pthread_mutex_init(&w->lock, NULL) != 0)
        goto fail_memory;
    XP_TRY_GOTO(status, xp_team_create(w, ranks, n_ranks, &w->all), fail_lock);
    xp_failure_hooks_init(&w->hooks);
    free(ranks);
    *world = w;
    return XP_OK;
fail_lock:
    pthread_mutex_destroy(&w->lock);
fail_memory:
    if (w) {
        free(w->nodes);
        free(w->n_waits);
    }
    free(w);
    free(ranks);
    return status == XP_ENOMEM
               ? xp_error(XP_ENOMEM, "no memory for a world of %d rank threads", n_ranks)
               : status;
}

xp_status xp_thread_world_simulate_nodes(xp_thread_world *world, const int *nodes) {
    if (!world || !nodes)
        return xp_error(XP_EINVAL,
                        "xp_thread_world_simulate_nodes: world and nodes must not be NULL");
    int n_ranks = world->n_ranks;
    int *all = calloc((size_t)n_ranks, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for the node map of %d ranks", n_ranks);
    for (int i = 0; i < n_ranks; i++) {
        all[i] = i;
        world->nodes[i] = nodes[i];
    }
    xp_team *team;
    xp_status status = xp_team_create(world, all, n_ranks, &team);
    free(all);
    if (status != XP_OK)
        return status;
    xp_team *old = world->all;
    world->all = team;
    for (int i = 0; i < n_ranks; i++)
        xp_team_release(old);
    return XP_OK;
}

void xp_thread_world_destroy(xp_thread_world *world) {
    if (!world)
        return;
    /* Left over: references of ranks that never came, and of communicators whose threads died. */
    while (world->teams) {
        atomic_store(&world->teams->n_refs, 1);
        xp_team_release(world->teams);
    }
    xp_failure_hooks_destroy(&world->hooks);
    pthread_mutex_destroy(&world->lock);
    free(world->nodes);
    free(world->n_waits);
    free(world);
}

static const xp_comm_provider thread_provider;

/* This rank's communicator over the team; takes over one reference, also on failure. */
static xp_status join(xp_team *team, int rank, xp_comm **comm) {
    xp_thread_comm *c = calloc(1, sizeof *c);
    if (!c) {
        xp_team_release(team);
        return xp_error(XP_ENOMEM, "no memory for a communicator");
    }
    c->src = calloc((size_t)team->size, sizeof *c->src);
    c->dst = calloc((size_t)team->size, sizeof *c->dst);
    if (!c->src || !c->dst) {
        free(c->src);
        free(c->dst);
        free(c);
        xp_team_release(team);
        return xp_error(XP_ENOMEM, "no memory for rank %d's communicator", rank);
    }
    c->base = (xp_comm){
        .provider = &thread_provider,
        .rank = rank,
        .size = team->size,
        .n_nodes = team->n_nodes,
        .nodes = team->nodes,
        .world_ranks = team->world_ranks,
        .one_node = team->n_nodes == 1,
        .same_process = team->n_nodes == 1,
        .timeout_s = team->world->timeout_s,
        .hooks = &team->world->hooks,
    };
    c->team = team;
    *comm = &c->base;
    return XP_OK;
}

xp_status xp_thread_world_comm(xp_thread_world *world, int rank, xp_comm **comm) {
    if (!world || !comm || rank < 0 || rank >= world->n_ranks)
        return xp_error(XP_EINVAL, "xp_thread_world_comm: no rank %d in this world", rank);
    atomic_fetch_add(&world->all->n_refs, 1);
    return join(world->all, rank, comm);
}

void xp_thread_world_abort(xp_thread_world *world, int rank, const char *reason) {
    char text[XP_FAILURE_TEXT];
    snprintf(text, sizeof text, "rank %d gave up before it had a communicator: %s", rank,
             reason ? reason : xp_last_error());
    const xp_failure failure = xp_failure_make(XP_FAILURE_ABORT, rank, rank, text);
    xp_world_fail(world, &failure);
}

static void thread_destroy(xp_comm *base) {
    xp_thread_comm *comm = (xp_thread_comm *)base;
    xp_team_release(comm->team);
    free(comm->src);
    free(comm->dst);
    free(comm);
}

/* The culprit's phase is what it last told this communicator. */
static void thread_fail(xp_comm *base, const xp_failure *failure) {
    const xp_team *team = ((xp_thread_comm *)base)->team;
    xp_failure whole = *failure;
    for (int i = 0; i < team->size && whole.phase[0] == '\0'; i++) {
        if (team->world_ranks[i] != failure->culprit)
            continue;
        const char *phase = i == base->rank ? atomic_load(&base->phase) : NULL;
        if (!phase)
            phase = atomic_load(&team->slots[i].phase);
        snprintf(whole.phase, sizeof whole.phase, "%s", phase ? phase : "");
    }
    xp_world_fail(team->world, &whole);
}

static void thread_mark_waiting(xp_comm *base, int change) {
    atomic_fetch_add(&((xp_thread_comm *)base)->team->world->n_waits[base->world_ranks[base->rank]],
                     change);
}

/* Simulated nodes see as little of each other as real ones. */
static xp_wait_state thread_wait_state(const xp_comm *base, int rank) {
    const xp_thread_world *world = ((const xp_thread_comm *)base)->team->world;
    if (base->nodes[rank] != base->nodes[base->rank])
        return XP_WAIT_UNKNOWN;
    return atomic_load(&world->n_waits[base->world_ranks[rank]]) > 0 ? XP_WAIT_WAITING
                                                                     : XP_WAIT_BUSY;
}

static bool thread_final_barrier(xp_comm *base, int64_t id) {
    return xp_team_final_barrier((xp_thread_comm *)base, id);
}

static const xp_failure *thread_failure(const xp_comm *base) {
    const xp_thread_world *world = ((const xp_thread_comm *)base)->team->world;
    return atomic_load(&world->failed) ? &world->failure : NULL;
}

/* The ranks of one colour: the lowest makes the team and leaves it in its slot. */
static xp_status make_sub(xp_thread_comm *comm, int color) {
    xp_team *team = comm->team;
    int *ranks = malloc((size_t)team->size * sizeof *ranks);
    if (!ranks)
        return xp_error(XP_ENOMEM, "split: no memory for a team of %d ranks", team->size);
    int n = 0;
    for (int i = 0; i < team->size; i++) {
        if (team->slots[i].color == color)
            ranks[n++] = team->world_ranks[i];
    }
    xp_status status = xp_team_create(team->world, ranks, n, &team->slots[comm->base.rank].sub);
    free(ranks);
    return status;
}

static xp_status thread_split(xp_comm *base, int color, xp_comm **sub) {
    xp_thread_comm *comm = (xp_thread_comm *)base;
    xp_team *team = comm->team;
    team->slots[base->rank].color = color;
    XP_TRY(xp_team_enter(comm, XP_COMM_SPLIT, atomic_load(&base->phase)));
    int leader = -1, place = 0;
    for (int i = 0; i < team->size && color >= 0; i++) {
        if (team->slots[i].color != color)
            continue;
        if (leader < 0)
            leader = i;
        place += i < base->rank;
    }
    xp_status status = XP_OK;
    if (leader == base->rank) {
        status = make_sub(comm, color);
        if (status != XP_OK)
            xp_comm_abort(base, NULL);
    }
    xp_status left = xp_team_leave(comm);
    if (left != XP_OK) {
        /* A failed world makes no new team, and the one just made has nobody to join it. */
        if (status == XP_OK && leader == base->rank) {
            atomic_store(&team->slots[leader].sub->n_refs, 1);
            xp_team_release(team->slots[leader].sub);
        }
        return left;
    }
    *sub = NULL;
    return color < 0 ? XP_OK : join(team->slots[leader].sub, place, sub);
}

static const xp_comm_provider thread_provider = {
    .name = "thread",
    .run = xp_thread_run,
    .run_on_device = xp_thread_run_on_device,
    .split = thread_split,
    .destroy = thread_destroy,
    .fail = thread_fail,
    .failure = thread_failure,
    .mark_waiting = thread_mark_waiting,
    .wait_state = thread_wait_state,
    .window_create = xp_thread_window_create,
    .window_destroy = xp_thread_window_destroy,
    .final_barrier = thread_final_barrier,
};
