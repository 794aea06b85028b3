/* The world and its communicators. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "comm/process_window.h"
#include "comm/rendezvous.h"
#include "comm/mpi/collectives.h"
#include "comm/mpi/failure.h"
#include "comm/mpi/progress.h"
#include "core/sync.h"

static void free_comm(xp_mpi_comm *c) {
    xp_mpi_exchange *x = &c->exchange;
    free(x->peers);
    free(x->out);
    free(x->in);
    free(x->requests);
    free(x->statuses);
    free(x->indices);
    free(c->ranks);
    free(c->nodes);
    free(c->scratch);
    free(c->sources);
    free(c);
}

static bool reserve(xp_mpi_comm *c, size_t size) {
    xp_mpi_exchange *x = &c->exchange;
    x->peers = calloc(size, sizeof *x->peers);
    x->out = calloc(size, sizeof *x->out);
    x->in = calloc(size, sizeof *x->in);
    x->requests = calloc(size * XP_MPI_N_MESSAGES, sizeof *x->requests);
    x->statuses = calloc(size * XP_MPI_N_MESSAGES, sizeof *x->statuses);
    x->indices = calloc(size * XP_MPI_N_MESSAGES, sizeof *x->indices);
    c->ranks = calloc(size, sizeof *c->ranks);
    c->nodes = calloc(size, sizeof *c->nodes);
    c->sources = calloc(size, sizeof *c->sources);
    return x->peers && x->out && x->in && x->requests && x->statuses && x->indices && c->ranks &&
           c->nodes && c->sources;
}

static const xp_comm_provider mpi_provider;

/* A communicator over these ranks of the world; takes a reference of the world. */
static xp_status create_comm(xp_mpi_world *world, const int *ranks, int size, int rank, int tag,
                             xp_comm **comm) {
    xp_mpi_comm *c = calloc(1, sizeof *c);
    if (!c || !reserve(c, (size_t)size) || pthread_mutex_init(&c->lock, NULL) != 0) {
        if (c)
            free_comm(c);
        return xp_error(XP_ENOMEM, "no memory for a communicator of %d ranks", size);
    }
    c->world = world;
    c->tag = tag;
    c->exchange.comm = c;
    memcpy(c->ranks, ranks, (size_t)size * sizeof *ranks);
    c->base = (xp_comm){.provider = &mpi_provider,
                        .rank = rank,
                        .size = size,
                        .nodes = c->nodes,
                        .world_ranks = c->ranks,
                        .timeout_s = world->timeout_s,
                        .hooks = &world->hooks};
    c->base.n_nodes = xp_comm_number_nodes(world->nodes, c->ranks, size, c->nodes);
    c->base.one_node = c->base.n_nodes == 1;
    pthread_mutex_lock(&world->lock);
    world->n_comms++;
    pthread_mutex_unlock(&world->lock);
    *comm = &c->base;
    return XP_OK;
}

/* A tag that no other communicator has or had, should this rank be the first of a new one. */
static int next_tag(xp_mpi_world *world) {
    pthread_mutex_lock(&world->lock);
    int n = ++world->n_tags;
    pthread_mutex_unlock(&world->lock);
    /* The maker's rank makes it unlike every other rank's. */
    int64_t tag = XP_MPI_TAG_FIRST + (int64_t)n * world->size + world->rank;
    return tag <= world->max_tag ? (int)tag : -1;
}

static void free_world(xp_mpi_world *world) {
    xp_liveness_close(&world->liveness);
    pthread_cond_destroy(&world->changed);
    xp_failure_hooks_destroy(&world->hooks);
    pthread_mutex_destroy(&world->lock);
    xp_forward_map_destroy(&world->map);
    free(world->forward_targets);
    free(world->forward_requests);
    free(world->nodes);
    free(world);
}

/* The last communicator is gone. A final barrier keeps every process alive until all have come. */
static void close_world(xp_mpi_world *world, xp_comm *all) {
    if (!atomic_load(&world->failed)) {
        xp_comm_call barrier = {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = "final barrier"};
        if (xp_mpi_run(all, &barrier) != XP_OK)
            xp_error_clear(); /* all results are there; a rank that dies now takes nothing along */
    }
    bool stopped = xp_mpi_progress_stop(world);
    free_comm((xp_mpi_comm *)all);
    if (stopped)
        free_world(world);
}

static void mpi_destroy(xp_comm *base) {
    xp_mpi_comm *comm = (xp_mpi_comm *)base;
    xp_mpi_world *world = comm->world;
    pthread_mutex_lock(&world->lock);
    bool last = --world->n_comms == 0;
    pthread_mutex_unlock(&world->lock);
    xp_comm *all = world->all;
    if (base != all) {
        pthread_mutex_destroy(&comm->lock);
        free_comm(comm);
    }
    if (last)
        close_world(world, all);
}

static void fail_waiting(xp_mpi_world *world, int rank, const char *text) {
    char whole[XP_FAILURE_TEXT];
    const int culprit = xp_liveness_explain_timeout(&world->liveness, rank, text, whole);
    xp_mpi_fail(world, XP_FAILURE_TIMEOUT, culprit, whole);
}

static void mpi_fail(xp_comm *base, const xp_failure *failure) {
    xp_mpi_world *world = ((xp_mpi_comm *)base)->world;
    if (failure->reason == XP_FAILURE_TIMEOUT && failure->culprit >= 0)
        fail_waiting(world, failure->culprit, failure->text);
    else
        xp_mpi_fail(world, (xp_failure_reason)failure->reason, failure->culprit, failure->text);
}

static const xp_failure *mpi_failure(const xp_comm *base) {
    const xp_mpi_world *world = ((const xp_mpi_comm *)base)->world;
    return atomic_load(&world->failed) ? &world->failure : NULL;
}

/** What each rank sends in a split. */
typedef struct split_entry {
    int32_t color;
    int32_t tag; /* of the new communicator, should this rank be its first */
} split_entry;

static xp_status make_sub(xp_mpi_comm *comm, const split_entry *all, xp_comm **sub) {
    int *ranks = malloc((size_t)comm->base.size * sizeof *ranks);
    if (!ranks)
        return xp_error(XP_ENOMEM, "split: no memory for %d ranks", comm->base.size);
    int n = 0, place = 0, tag = -1;
    for (int i = 0; i < comm->base.size; i++) {
        if (all[i].color != all[comm->base.rank].color)
            continue;
        if (n == 0)
            tag = all[i].tag;
        place += i < comm->base.rank;
        ranks[n++] = comm->ranks[i];
    }
    xp_status status = tag < 0
                           ? xp_error(XP_ENOTSUP,
                                      "split: this MPI has no message tags left (the highest is "
                                      "%d); make communicators once, not in every step",
                                      comm->world->max_tag)
                           : create_comm(comm->world, ranks, n, place, tag, sub);
    free(ranks);
    return status;
}

static xp_status mpi_split(xp_comm *base, int color, xp_comm **sub) {
    xp_mpi_comm *comm = (xp_mpi_comm *)base;
    split_entry mine = {.color = color < 0 ? -1 : color, .tag = next_tag(comm->world)};
    split_entry *all = calloc((size_t)base->size, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "split: no memory for %d ranks", base->size);
    xp_status status = xp_mpi_gather_bytes(comm, XP_COMM_SPLIT, &mine, all, sizeof mine);
    if (status == XP_OK) {
        *sub = NULL;
        if (color >= 0)
            status = make_sub(comm, all, sub);
    }
    free(all);
    if (status != XP_OK)
        xp_comm_abort(base, NULL);
    return status;
}

static void mpi_mark_waiting(xp_comm *base, int change) {
    atomic_fetch_add(&((xp_mpi_comm *)base)->world->liveness.mine->n_waits, change);
}

static xp_wait_state mpi_wait_state(const xp_comm *base, int rank) {
    const xp_mpi_world *world = ((const xp_mpi_comm *)base)->world;
    return xp_liveness_wait_state(&world->liveness, base->world_ranks[rank]);
}

static void mpi_set_phase(xp_comm *base, const char *phase) {
    xp_liveness_set_activity(&((xp_mpi_comm *)base)->world->liveness, phase ? phase : "");
}

/* After a failure the barrier returns at once: the processes end soon, and what they have opened
 * stays mapped until then. */
static bool mpi_final_barrier(xp_comm *base, int64_t id) {
    const xp_comm_call barrier = {
        .kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = "final barrier of a window"};
    (void)id; /* calls that do not match are found by the barrier itself */
    if (xp_mpi_run(base, &barrier) != XP_OK)
        xp_error_clear();
    return true;
}

static const xp_comm_provider mpi_provider = {
    .name = "mpi",
    .run = xp_mpi_run,
    .split = mpi_split,
    .destroy = mpi_destroy,
    .fail = mpi_fail,
    .failure = mpi_failure,
    .window_create = xp_process_window_create,
    .window_destroy = xp_process_window_destroy,
    .final_barrier = mpi_final_barrier,
    .set_phase = mpi_set_phase,
    .mark_waiting = mpi_mark_waiting,
    .wait_state = mpi_wait_state,
    .final_error = xp_mpi_final_error,
};

static xp_status make_all(xp_mpi_world *world, xp_comm **comm) {
    int *ranks = malloc((size_t)world->size * sizeof *ranks);
    if (!ranks)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
    for (int i = 0; i < world->size; i++)
        ranks[i] = i;
    xp_status status = create_comm(world, ranks, world->size, world->rank, XP_MPI_TAG_FIRST, comm);
    free(ranks);
    return status;
}

/* The progress thread connects while this thread watches which ranks arrive. A world whose progress
 * thread is stuck in MPI_Init is left as it is: the process is about to end. */
static xp_status start(xp_mpi_world *world, xp_rendezvous *rendezvous, double timeout_s) {
    xp_rendezvous_deadline(rendezvous, timeout_s);
    do {
        XP_TRY(xp_rendezvous_check(rendezvous));
    } while (!xp_mpi_progress_wait_start(world, XP_RENDEZVOUS_LOOK_S));
    if (world->start_status != XP_OK)
        return xp_error(world->start_status, "%s", world->start_error);
    if (rendezvous->size > 1 && world->size != rendezvous->size)
        return xp_error(XP_ECOMM,
                        "the launcher started %d ranks, but MPI sees %d: this MPI was built for "
                        "another launcher; use the mpirun of the same MPI, or srun --mpi=pmix",
                        rendezvous->size, world->size);
    return XP_OK;
}

/** libexpar_mpi.so's one symbol; see XP_MPI_ENTRY. */
XP_API xp_status xp_mpi_provider(const xp_mpi_args *args, xp_comm **comm);

xp_status xp_mpi_provider(const xp_mpi_args *args, xp_comm **comm) {
    int initialized = 0;
    if (MPI_Initialized(&initialized) != MPI_SUCCESS || initialized)
        return xp_error(XP_EINVAL,
                        "MPI is in use already: there is one world of MPI ranks a process");
    xp_mpi_world *world = calloc(1, sizeof *world);
    if (!world)
        return xp_error(XP_ENOMEM, "no memory for the world of MPI ranks");
    pthread_mutex_init(&world->lock, NULL);
    xp_cond_init(&world->changed);
    xp_failure_hooks_init(&world->hooks);
    world->timeout_s = args->timeout_s;
    world->failure_request = MPI_REQUEST_NULL;
    gethostname(world->host, sizeof world->host - 1);
    xp_rendezvous rendezvous;
    xp_status status = xp_rendezvous_enter(args->rendezvous_folder, &rendezvous);
    if (status == XP_OK)
        status = xp_mpi_progress_start(world);
    if (status == XP_OK)
        status = start(world, &rendezvous, args->init_timeout_s);
    if (status == XP_OK)
        status = make_all(world, &world->all);
    if (status == XP_OK)
        *comm = world->all;
    return xp_rendezvous_leave(&rendezvous, status);
}
