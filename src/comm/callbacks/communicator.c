/* Communicators of a world: creation, split, destruction, and the provider's table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "comm/callbacks/collectives.h"
#include "comm/callbacks/failure.h"
#include "comm/callbacks/world.h"
#include "comm/process_window.h"

/* ---- create and free ----------------------------------------------------------------------- */

static bool reserve(xp_callback_comm *c, size_t size) {
    c->ranks = calloc(size, sizeof *c->ranks);
    c->nodes = calloc(size, sizeof *c->nodes);
    c->sources = calloc(size, sizeof *c->sources);
    bool all = c->ranks && c->nodes && c->sources;
    for (int i = 0; i < 4; i++) {
        c->counts[i] = calloc(size, sizeof *c->counts[i]);
        all = all && c->counts[i];
    }
    return all;
}

static void free_memory(xp_callback_comm *c) {
    for (int i = 0; i < 4; i++)
        free(c->counts[i]);
    free(c->ranks);
    free(c->nodes);
    free(c->sources);
    free(c->scratch);
    free(c);
}

xp_status xp_callback_comm_create(xp_callback_world *world, const int *ranks, int size, int rank,
                                  xp_callback_comm **comm) {
    xp_callback_comm *c = calloc(1, sizeof *c);
    if (!c || !reserve(c, (size_t)size)) {
        if (c)
            free_memory(c);
        return xp_error(XP_ENOMEM, "no memory for a communicator of %d ranks", size);
    }
    pthread_mutex_init(&c->lock, NULL);
    c->world = world;
    memcpy(c->ranks, ranks, (size_t)size * sizeof *ranks);
    c->base = (xp_comm){.provider = &xp_callback_provider,
                        .rank = rank,
                        .size = size,
                        .nodes = c->nodes,
                        .world_ranks = c->ranks,
                        .timeout_s = world->timeout_s,
                        .hooks = &world->hooks};
    c->base.n_nodes = xp_comm_number_nodes(world->nodes, c->ranks, size, c->nodes);
    c->base.one_node = c->base.n_nodes == 1;
    c->base.same_process = c->base.one_node && world->one_process;
    c->base.calls_back = !c->base.one_node;
    c->transport = c->base.one_node ? NULL : &world->transport;
    pthread_mutex_lock(&world->lock);
    world->n_comms++;
    pthread_mutex_unlock(&world->lock);
    *comm = c;
    return xp_node_area_members(c);
}

void xp_callback_comm_free(xp_callback_comm *comm) {
    xp_callback_world *world = comm->world;
    if (comm->own_transport.destroy)
        comm->own_transport.destroy(comm->own_transport.context, !atomic_load(&world->failed));
    xp_node_area_close(&comm->area);
    pthread_mutex_destroy(&comm->lock);
    free_memory(comm);
    xp_callback_world_release(world);
}

static void callback_destroy(xp_comm *base) {
    xp_callback_comm_free((xp_callback_comm *)base);
}

/* ---- split --------------------------------------------------------------------------------- */

typedef struct split_step {
    xp_node_offer offer;
    int32_t color, status;
} split_step;

/* The ranks of one color. @return whether they are on several nodes and not all ranks */
static bool needs_transport(const xp_callback_comm *comm, const split_step *all, int color) {
    int n = 0, node = -1;
    bool several = false;
    for (int r = 0; r < comm->base.size; r++) {
        if (all[r].color != color)
            continue;
        several = several || (node >= 0 && comm->nodes[r] != node);
        node = comm->nodes[r];
        n++;
    }
    return several && n < comm->base.size;
}

static bool any_needs_transport(const xp_callback_comm *comm, const split_step *all) {
    for (int r = 0; r < comm->base.size; r++)
        if (all[r].color >= 0 && needs_transport(comm, all, all[r].color))
            return true;
    return false;
}

/* This rank's group, without shared memory yet. */
static xp_status make_sub(xp_callback_comm *comm, const split_step *all, xp_callback_comm **sub) {
    int *ranks = malloc((size_t)comm->base.size * sizeof *ranks);
    if (!ranks)
        return xp_error(XP_ENOMEM, "split: no memory for %d ranks", comm->base.size);
    int n = 0, place = 0;
    for (int r = 0; r < comm->base.size; r++) {
        if (all[r].color != all[comm->base.rank].color)
            continue;
        place += r < comm->base.rank;
        ranks[n++] = comm->ranks[r];
    }
    const xp_status status = xp_callback_comm_create(comm->world, ranks, n, place, sub);
    free(ranks);
    return status;
}

/* The place in `all` of the first rank of this rank's group on this node. */
static int find_leader(const xp_callback_comm *comm, const split_step *all) {
    const int me = comm->base.rank;
    int r = 0;
    while (all[r].color != all[me].color || comm->nodes[r] != comm->nodes[me])
        r++;
    return r;
}

static xp_status use_transport(xp_callback_comm *comm, xp_callback_comm *sub, int color,
                               bool split) {
    if (split)
        XP_TRY(comm->transport->split(comm->transport->context, color,
                                      sub ? &sub->own_transport : &(xp_callback_transport){0}));
    if (!sub || !sub->transport)
        return XP_OK;
    sub->transport =
        split && sub->base.size < comm->base.size ? &sub->own_transport : comm->transport;
    return XP_OK;
}

static xp_status exchange_step(xp_callback_comm *comm, const split_step *mine, split_step *all) {
    static const char phase[] = "making a communicator";
    const xp_comm_call call = {.kind = XP_COMM_ALL_GATHER,
                               .dtype = XP_U8,
                               .n = sizeof *mine,
                               .send = mine,
                               .recv = all,
                               .phase = phase};
    XP_TRY(xp_callback_run(&comm->base, &call));
    for (int r = 0; r < comm->base.size; r++)
        if (all[r].status != XP_OK && r != comm->base.rank)
            return xp_error(XP_ECOMM, "split: rank %d could not set up its part", comm->ranks[r]);
    return XP_OK;
}

/* Every rank takes part in every exchange, also those that get no communicator. */
static xp_status split(xp_callback_comm *comm, split_step *all, int color, int *fd,
                       xp_callback_comm **sub) {
    split_step mine = {.color = color, .offer = {.fd = -1}};
    XP_TRY(exchange_step(comm, &mine, all));
    const bool several = any_needs_transport(comm, all);
    if (several && !comm->transport->split)
        return xp_error(XP_ENOTSUP,
                        "split: a group of some of the ranks of several nodes needs a transport of "
                        "its own; make a communicator for it from a callback table of that group");
    xp_status status = color >= 0 ? make_sub(comm, all, sub) : XP_OK;
    if (status == XP_OK && *sub)
        status = xp_node_area_offer(*sub, &mine.offer);
    *fd = mine.offer.fd;
    mine.status = status;
    const xp_status offered = exchange_step(comm, &mine, all);
    XP_TRY(status);
    XP_TRY(offered);
    if (*sub)
        status = xp_node_area_open(*sub, &all[find_leader(comm, all)].offer);
    mine.status = status;
    const xp_status opened = exchange_step(comm, &mine, all);
    XP_TRY(status);
    XP_TRY(opened);
    return use_transport(comm, *sub, color, several);
}

xp_status xp_callback_split(xp_comm *base, int color, xp_comm **sub) {
    xp_callback_comm *comm = (xp_callback_comm *)base, *made = NULL;
    int fd = -1;
    split_step *all = calloc((size_t)base->size, sizeof *all);
    xp_status status = all ? split(comm, all, color < 0 ? -1 : color, &fd, &made)
                           : xp_error(XP_ENOMEM, "split: no memory for %d ranks", base->size);
    free(all);
    if (fd >= 0)
        close(fd);
    if (status == XP_OK) {
        *sub = made ? &made->base : NULL;
        return XP_OK;
    }
    if (status != XP_ENOTSUP) /* which all ranks find alike */
        xp_comm_abort(base, NULL);
    char why[1024];
    snprintf(why, sizeof why, "%s", xp_last_error());
    if (made)
        xp_callback_comm_free(made);
    return xp_error(status, "%s", why);
}

/* ---- the table ----------------------------------------------------------------------------- */

static void callback_fail(xp_comm *base, const xp_failure *failure) {
    xp_callback_world *world = ((xp_callback_comm *)base)->world;
    if (failure->reason == XP_FAILURE_TIMEOUT && failure->culprit >= 0)
        xp_callback_fail_timeout(world, failure->culprit, failure->text);
    else
        xp_callback_fail(world, (xp_failure_reason)failure->reason, failure->culprit,
                         failure->text);
}

static const xp_failure *callback_failure(const xp_comm *base) {
    const xp_callback_world *world = ((const xp_callback_comm *)base)->world;
    return atomic_load(&world->failed) ? &world->failure : NULL;
}

static void callback_mark_waiting(xp_comm *base, int change) {
    atomic_fetch_add(&((xp_callback_comm *)base)->world->liveness.mine->n_waits, change);
}

static xp_wait_state callback_wait_state(const xp_comm *base, int rank) {
    const xp_callback_world *world = ((const xp_callback_comm *)base)->world;
    return xp_liveness_wait_state(&world->liveness, base->world_ranks[rank]);
}

static void callback_set_phase(xp_comm *base, const char *phase) {
    xp_liveness_set_activity(&((xp_callback_comm *)base)->world->liveness, phase ? phase : "");
}

static bool callback_final_barrier(xp_comm *base, int64_t id) {
    return xp_node_final_barrier((xp_callback_comm *)base, id);
}

const xp_comm_provider xp_callback_provider = {
    .name = "callbacks",
    .run = xp_callback_run,
    .split = xp_callback_split,
    .destroy = callback_destroy,
    .fail = callback_fail,
    .failure = callback_failure,
    .window_create = xp_process_window_create,
    .window_destroy = xp_process_window_destroy,
    .final_barrier = callback_final_barrier,
    .set_phase = callback_set_phase,
    .mark_waiting = callback_mark_waiting,
    .wait_state = callback_wait_state,
};
