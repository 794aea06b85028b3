#include "train/launch.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/run_lock.h"
#include "core/error.h"
#include "core/file.h"
#include "launch/shim.h"
#include "train/signals.h"
#include "tune/adopt.h"

/* ---- ranks as threads -------------------------------------------------------------------- */

typedef struct rank_thread {
    pthread_t thread;
    const xp_config_set *config;
    xp_train_shared *shared;
    xp_thread_world *world; /* NULL: one rank */
    xp_log *log;
    int rank, n_ranks;
    xp_status status;
    double ended; /* when it failed */
    char error[1024];
    int error_rank; /* whose failure all have agreed on; -1: its own */
    xp_train_result result;
} rank_thread;

static xp_status run_rank(rank_thread *r) {
    xp_comm *comm = NULL;
    if (r->world) {
        const xp_status joined = xp_thread_world_comm(r->world, r->rank, &comm);
        if (joined != XP_OK) {
            xp_thread_world_abort(r->world, r->rank, NULL);
            return joined;
        }
    }
    xp_status status = xp_train_run(r->config, r->shared, comm, r->n_ranks, r->log, &r->result);
    xp_comm_destroy(comm);
    return status;
}

static void *rank_main(void *context) {
    rank_thread *r = context;
    r->status = run_rank(r);
    r->ended = xp_time_s();
    if (r->status != XP_OK)
        snprintf(r->error, sizeof r->error, "%s", xp_last_error());
    r->error_rank = xp_last_error_rank();
    return NULL;
}

/* The rank that failed first, and of its own: the others only report that it is gone. */
static const rank_thread *root_cause(const rank_thread *ranks, int n) {
    const rank_thread *cause = NULL;
    for (int i = 0; i < n; i++) {
        const rank_thread *r = &ranks[i];
        if (r->status == XP_OK)
            continue;
        bool own = r->status != XP_ECOMM;
        bool cause_own = cause && cause->status != XP_ECOMM;
        if (!cause || (own && !cause_own) || (own == cause_own && r->ended < cause->ended))
            cause = r;
    }
    return cause;
}

/* Errors that every rank meets alike (a wrong configuration) need no rank. */
static bool all_failed_alike(const rank_thread *ranks, int n, const rank_thread *cause) {
    for (int i = 0; i < n; i++)
        if (ranks[i].status != cause->status && ranks[i].status != XP_ECOMM)
            return false;
    return cause->status == XP_ECONFIG || cause->status == XP_ENUMERIC;
}

static xp_status join_ranks(rank_thread *ranks, int n_started, int n, xp_train_result *result) {
    for (int i = 0; i < n_started; i++)
        pthread_join(ranks[i].thread, NULL);
    if (n_started < n)
        return xp_error(XP_ENOMEM, "cannot start rank thread %d of %d", n_started, n);
    *result = ranks[0].result;
    const rank_thread *cause = root_cause(ranks, n);
    if (!cause)
        return XP_OK;
    /* What all have agreed on names its rank. */
    if (n == 1 || cause->error_rank >= 0 || all_failed_alike(ranks, n, cause))
        return xp_error(cause->status, "%s", cause->error);
    return xp_error(cause->status, "rank %d: %s", cause->rank, cause->error);
}

static xp_status run_threads(const xp_config_set *config, xp_train_shared *shared, xp_log *log,
                             int n, xp_train_result *result) {
    xp_thread_world *world = NULL;
    double timeout_s = (double)xp_config_get(config)->comm.train_timeout_seconds;
    if (n > 1)
        XP_TRY(xp_thread_world_create(n, timeout_s, &world));
    rank_thread *ranks = calloc((size_t)n, sizeof *ranks);
    if (!ranks) {
        xp_thread_world_destroy(world);
        return xp_error(XP_ENOMEM, "no memory for %d ranks", n);
    }
    int n_started = 0;
    for (; n_started < n; n_started++) {
        rank_thread *r = &ranks[n_started];
        *r = (rank_thread){.config = config,
                           .shared = shared,
                           .world = world,
                           .log = log,
                           .rank = n_started,
                           .n_ranks = n};
        if (pthread_create(&r->thread, NULL, rank_main, r) != 0) {
            if (world)
                xp_thread_world_abort(world, n_started, "its thread cannot be started");
            break;
        }
    }
    xp_status status = join_ranks(ranks, n_started, n, result);
    free(ranks);
    xp_thread_world_destroy(world);
    return status;
}

static xp_status launch_threads(xp_config_set *config, int n, xp_log *log,
                                xp_train_result *result) {
    const xp_config *c = xp_config_get(config);
    /* What can be known to be wrong is said before the data is read. */
    XP_TRY(xp_start_check(c, &(xp_start){.n_ranks = n}));
    XP_TRY(xp_tune_adopt(config, &(xp_adopt_args){.n_ranks = n, .n_cores = xp_train_n_cores()}));
    xp_run_lock *lock = NULL;
    XP_TRY(xp_run_lock_take(c->job.dump_folder, NULL, log, &lock));
    xp_train_shared *shared = NULL;
    xp_signals *signals = NULL;
    xp_status status = xp_train_shared_create(c, log, &shared);
    if (status == XP_OK) {
        xp_signals_args args = {.shared = shared, .log = log, .saves = c->checkpoint.enable};
        status = xp_signals_start(&args, &signals);
    }
    if (status == XP_OK)
        status = run_threads(config, shared, log, n, result);
    xp_signals_stop(signals);
    xp_train_shared_destroy(shared);
    xp_run_lock_release(lock);
    return status;
}

/* ---- this process is one rank ------------------------------------------------------------ */

static int count_local_ranks(xp_comm *comm) {
    int node = xp_comm_node(comm, xp_comm_rank(comm));
    int n = 0;
    for (int r = 0; r < xp_comm_size(comm); r++)
        n += xp_comm_node(comm, r) == node;
    return n;
}

/* Rank 0 prepares the data's cache; the others find it ready. */
static xp_status share_data(const xp_config *config, xp_comm *comm, xp_log *log,
                            xp_train_shared **shared) {
    bool first = xp_comm_rank(comm) == 0;
    xp_comm_set_phase(comm, "preparing the data");
    if (first)
        XP_TRY(xp_train_shared_create(config, log, shared));
    XP_TRY(xp_comm_barrier(comm, NULL));
    return first ? XP_OK : xp_train_shared_create(config, NULL, shared);
}

static xp_status run_process(const xp_config_set *config, xp_comm *comm, xp_log *log,
                             xp_train_result *result) {
    xp_train_shared *shared = NULL;
    xp_status status = share_data(xp_config_get(config), comm, log, &shared);
    if (status != XP_OK) {
        xp_comm_abort(comm, NULL);
        xp_train_shared_destroy(shared);
        return status;
    }
    xp_comm_set_phase(comm, "start of the run");
    xp_signals *signals = NULL;
    xp_signals_args args = {.shared = shared,
                            .log = xp_comm_rank(comm) == 0 ? log : NULL,
                            .saves = xp_config_get(config)->checkpoint.enable,
                            .patient = getenv(XP_LAUNCH_FOLDER) != NULL,
                            .comm = comm};
    status = xp_signals_start(&args, &signals);
    if (status == XP_OK)
        xp_rank_report_begun();
    if (status == XP_OK)
        status = xp_train_run(config, shared, comm, count_local_ranks(comm), log, result);
    xp_signals_stop(signals);
    xp_train_shared_destroy(shared);
    return status;
}

static xp_status launch_process(xp_config_set *config, xp_log *log, xp_train_result *result) {
    const xp_config *c = xp_config_get(config);
    xp_comm *comm = NULL;
    /* Ranks leave their marks in the launch's folder, or where all nodes write their checkpoints.
     */
    const char *folder = getenv(XP_LAUNCH_FOLDER);
    xp_mpi_args args = {.init_timeout_s = (double)c->comm.init_timeout_seconds,
                        .timeout_s = (double)c->comm.train_timeout_seconds,
                        .rendezvous_folder = folder ? folder : c->job.dump_folder};
    XP_TRY(xp_mpi_world_create(&args, &comm));
    xp_run_lock *lock = NULL;
    xp_status status = xp_run_lock_take(c->job.dump_folder, comm, log, &lock);
    if (status == XP_OK)
        status = xp_tune_adopt(config, &(xp_adopt_args){.world = comm,
                                                        .n_ranks = count_local_ranks(comm),
                                                        .n_cores = xp_train_n_cores()});
    if (status == XP_OK)
        status = run_process(config, comm, log, result);
    else
        xp_comm_abort(comm, NULL);
    if (status != XP_OK)
        status = xp_comm_final_error(comm, status);
    xp_comm_destroy(comm);
    xp_run_lock_release(lock);
    return status;
}

xp_status xp_train_launch(xp_config_set *config, const xp_start *start, xp_log *log,
                          xp_train_result *result) {
    memset(result, 0, sizeof *result);
    return start->kind == XP_START_RANK ? launch_process(config, log, result)
                                        : launch_threads(config, start->n_ranks, log, result);
}
