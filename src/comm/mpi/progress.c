/* The thread that makes every MPI call. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "comm/mpi/progress.h"
#include "comm/mpi/connect.h"
#include "comm/mpi/exchange.h"
#include "comm/mpi/failure.h"
#include "core/file.h"
#include "core/sync.h"

/* How often to look at the liveness table and for failures from other nodes. A peer's death and new
 * work wake the progress thread themselves. */
#define CHECK_S 0.05
/* A wait spins as long as two running ranks need for a barrier, then leaves the core to whoever has
 * work, then sleeps a tenth of the time it has waited, so that waiting adds little to a wait and
 * ranks may outnumber the cores by far. */
#define SPIN_S       30e-6
#define YIELD_S      200e-6
#define SLEEP_MIN_S  20e-6
#define SLEEP_MAX_S  2e-3
#define FAR_GRACE_S  1.0
#define NEAR_GRACE_S 4.0
/* MPI_Finalize waits for all ranks; one that dies in it must not keep the others. */
#define FINALIZE_S 10.0

static void wake(xp_mpi_world *world) {
    uint64_t one = 1;
    if (atomic_load(&world->sleeping) && write(world->wake, &one, sizeof one) < 0 &&
        errno != EAGAIN)
        return; /* cannot happen; the progress thread checks by itself */
}

/* Hook of a failure that any thread has found. */
static void wake_for_failure(void *context) {
    wake(context);
}

xp_status xp_mpi_exchange_run(xp_mpi_exchange *x) {
    xp_mpi_world *world = x->comm->world;
    XP_TRY(xp_mpi_world_status(world));
    x->status = XP_OK;
    x->done = false;
    pthread_mutex_lock(&world->lock);
    xp_mpi_exchange **last = &world->queued;
    while (*last)
        last = &(*last)->next;
    x->next = NULL;
    *last = x;
    pthread_mutex_unlock(&world->lock);
    wake(world);
    pthread_mutex_lock(&world->lock);
    while (!x->done)
        pthread_cond_wait(&world->changed, &world->lock);
    pthread_mutex_unlock(&world->lock);
    if (x->status == XP_ECOMM)
        return xp_mpi_world_status(world);
    return x->status == XP_OK ? XP_OK : xp_error(x->status, "%s", x->error);
}

static void finish(xp_mpi_exchange *x, xp_status status) {
    xp_mpi_world *world = x->comm->world;
    pthread_mutex_lock(&world->lock);
    x->status = status;
    x->done = true;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

/* Errors of MPI itself end the run for all: nobody knows what has been sent. */
static bool ended_badly(xp_mpi_exchange *x, xp_status status) {
    if (status == XP_OK)
        return false;
    char text[XP_FAILURE_TEXT];
    snprintf(text, sizeof text, "rank %d in %s: %s", x->comm->world->rank,
             xp_comm_kind_name((xp_comm_kind)x->head.kind), xp_last_error());
    xp_mpi_fail(x->comm->world, XP_FAILURE_LIBRARY, -1, text);
    return true;
}

/* New exchanges start; they are done in whatever order their messages come. @return true: there
 * were some */
static bool take_queued(xp_mpi_world *world) {
    pthread_mutex_lock(&world->lock);
    xp_mpi_exchange *x = world->queued;
    world->queued = NULL;
    pthread_mutex_unlock(&world->lock);
    bool any = x != NULL;
    while (x) {
        xp_mpi_exchange *next = x->next;
        x->next = world->active;
        world->active = x;
        if (!atomic_load(&world->failed))
            ended_badly(x, xp_mpi_exchange_post(x));
        else
            x->n_open = 0;
        x = next;
    }
    return any;
}

/* A peer that waits in shared memory itself, or one that cannot be seen, gets a while longer to
 * name the rank at fault. */
static bool is_late(const xp_mpi_exchange *x, double now) {
    double timeout_s = x->comm->base.timeout_s, late_s = now - x->moved_s - timeout_s;
    if (late_s < 0)
        return false;
    const xp_liveness *table = &x->comm->world->liveness;
    int rank = xp_liveness_find_culprit(table, xp_mpi_exchange_waits_for(x));
    const xp_liveness_slot *slot = rank < 0 ? NULL : xp_liveness_find(table, rank);
    if (!slot)
        return rank < 0 || late_s > FAR_GRACE_S;
    double grace_s = timeout_s < NEAR_GRACE_S ? timeout_s : NEAR_GRACE_S;
    return !xp_liveness_is_waiting(slot) || late_s > grace_s;
}

static bool work(xp_mpi_world *world) {
    bool moved = false;
    double now = xp_time_s();
    for (xp_mpi_exchange **at = &world->active; *at;) {
        xp_mpi_exchange *x = *at;
        if (!ended_badly(x, xp_mpi_exchange_poll(x, &moved)) && x->n_open > 0 && is_late(x, now))
            xp_mpi_exchange_report(x);
        if (atomic_load(&world->failed))
            return true;
        if (x->n_open == 0) {
            *at = x->next;
            finish(x, XP_OK);
            continue;
        }
        at = &x->next;
    }
    return moved;
}

/* Whom this process has waited for longest, for peers that look for the end of a chain of waits. */
static void show_wait(xp_mpi_world *world) {
    const xp_mpi_exchange *oldest = NULL;
    for (const xp_mpi_exchange *x = world->active; x; x = x->next)
        if (!oldest || x->moved_s < oldest->moved_s)
            oldest = x;
    int rank = oldest ? xp_mpi_exchange_waits_for(oldest) : -1;
    atomic_store_explicit(&world->liveness.mine->waits_for, rank, memory_order_relaxed);
}

static void sleep_until_woken(xp_mpi_world *world, double seconds, bool watch) {
    struct pollfd fds[65];
    nfds_t n = 1;
    fds[0] = (struct pollfd){.fd = world->wake, .events = POLLIN};
    for (int i = 0; i < world->liveness.n_slots && watch && n < sizeof fds / sizeof fds[0]; i++)
        if (world->liveness.pidfds[i] >= 0 &&
            !atomic_load(&world->liveness.memory->slots[i].finalized))
            fds[n++] = (struct pollfd){.fd = world->liveness.pidfds[i], .events = POLLIN};
    struct timespec limit = {.tv_sec = (time_t)seconds};
    limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
    atomic_store(&world->sleeping, true);
    pthread_mutex_lock(&world->lock);
    bool idle = !world->queued;
    pthread_mutex_unlock(&world->lock);
    uint64_t count = 0;
    if (idle && ppoll(fds, n, &limit, NULL) > 0 && (fds[0].revents & POLLIN) &&
        read(world->wake, &count, sizeof count) < 0)
        count = 0; /* another wake took it: as good */
    atomic_store(&world->sleeping, false);
}

static void sleep_a_while(xp_mpi_world *world, double moved_s) {
    if (!world->active) {
        sleep_until_woken(world, CHECK_S, true);
        return;
    }
    double waited = xp_time_s() - moved_s;
    if (waited < SPIN_S)
        return;
    if (waited < YIELD_S) {
        sched_yield();
        return;
    }
    /* Long messages move on only when somebody looks, and none of it shows before their end. */
    bool flowing = false;
    for (const xp_mpi_exchange *x = world->active; x && !flowing; x = x->next)
        flowing = xp_mpi_exchange_is_flowing(x);
    double seconds = flowing ? SLEEP_MIN_S : waited / 10;
    seconds = seconds < SLEEP_MIN_S ? SLEEP_MIN_S : seconds;
    sleep_until_woken(world, seconds > SLEEP_MAX_S ? SLEEP_MAX_S : seconds, false);
}

/* Everything under way ends with the failure of all. MPI is not used any more. */
static void end_all(xp_mpi_world *world) {
    for (xp_mpi_exchange *x = world->active; x; x = x->next)
        if (x->n_open > 0)
            xp_mpi_exchange_cancel(x);
    xp_mpi_forward_failure(world);
    for (;;) {
        take_queued(world);
        while (world->active) {
            xp_mpi_exchange *x = world->active;
            world->active = x->next;
            finish(x, XP_ECOMM);
        }
        pthread_mutex_lock(&world->lock);
        bool stopping = world->stopping;
        pthread_mutex_unlock(&world->lock);
        if (stopping)
            return;
        sleep_until_woken(world, CHECK_S, false);
    }
}

static void serve(xp_mpi_world *world) {
    double moved_s = xp_time_s(), checked_s = 0;
    for (;;) {
        bool moved = take_queued(world);
        moved |= work(world);
        double now = xp_time_s();
        if (now - checked_s > CHECK_S) {
            show_wait(world);
            xp_mpi_check_peers(world);
            checked_s = now;
        }
        if (atomic_load(&world->failed)) {
            end_all(world);
            return;
        }
        if (moved) {
            moved_s = now;
            continue;
        }
        pthread_mutex_lock(&world->lock);
        bool stopping = world->stopping && !world->active && !world->queued;
        pthread_mutex_unlock(&world->lock);
        if (stopping)
            return;
        sleep_a_while(world, moved_s);
    }
}

static void set_flag(xp_mpi_world *world, bool *what) {
    pthread_mutex_lock(&world->lock);
    *what = true;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

/* Open MPI writes to connections whose other end may be dead: that is an error it returns, not the
 * end of this process. The threads that MPI starts from here block the signal as well. */
static void block_broken_pipes(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void *progress_main(void *context) {
    xp_mpi_world *world = context;
    block_broken_pipes();
    world->start_status = xp_mpi_connect(world);
    if (world->start_status != XP_OK)
        snprintf(world->start_error, sizeof world->start_error, "%s", xp_last_error());
    bool connected = world->start_status == XP_OK;
    set_flag(world, &world->started);
    if (connected) {
        serve(world);
        if (!atomic_load(&world->failed)) {
            MPI_Cancel(&world->failure_request);
            MPI_Wait(&world->failure_request, MPI_STATUS_IGNORE);
            MPI_Finalize();
        }
    }
    set_flag(world, &world->stopped);
    return NULL;
}

/* Under the lock. @return false: it did not come to pass in time */
static bool wait_for(xp_mpi_world *world, const bool *what, double seconds) {
    const double deadline_s = xp_time_s() + seconds;
    while (!*what)
        if (!xp_cond_wait_until(&world->changed, &world->lock, deadline_s))
            return *what;
    return true;
}

bool xp_mpi_progress_wait_start(xp_mpi_world *world, double seconds) {
    pthread_mutex_lock(&world->lock);
    bool started = wait_for(world, &world->started, seconds);
    pthread_mutex_unlock(&world->lock);
    return started;
}

xp_status xp_mpi_progress_start(xp_mpi_world *world) {
    world->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (world->wake < 0)
        return xp_error(XP_ENOMEM, "cannot make an eventfd: %s", strerror(errno));
    world->wake_hook = (xp_failure_hook){.call = wake_for_failure, .context = world};
    xp_failure_hooks_add(&world->hooks, &world->wake_hook);
    int code = pthread_create(&world->progress_thread, NULL, progress_main, world);
    if (code != 0) {
        close(world->wake);
        return xp_error(XP_ENOMEM, "cannot start the thread that serves MPI: %s", strerror(code));
    }
    return XP_OK;
}

bool xp_mpi_progress_stop(xp_mpi_world *world) {
    atomic_store(&world->liveness.mine->finalized, !atomic_load(&world->failed));
    pthread_mutex_lock(&world->lock);
    world->stopping = true;
    pthread_mutex_unlock(&world->lock);
    wake(world);
    pthread_mutex_lock(&world->lock);
    bool stopped = wait_for(world, &world->stopped, FINALIZE_S);
    pthread_mutex_unlock(&world->lock);
    if (!stopped)
        return false;
    pthread_join(world->progress_thread, NULL);
    close(world->wake);
    return true;
}
