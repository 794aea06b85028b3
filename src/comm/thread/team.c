/* A world's failure; a team: membership and the barrier everything else is made of. */
#include "comm/thread/team.h"

#include <stdio.h>
#include <stdlib.h>
#include "core/file.h"
#include "core/text.h"

void xp_world_fail(xp_thread_world *world, const xp_failure *failure) {
    pthread_mutex_lock(&world->lock);
    if (!atomic_load(&world->failed)) {
        world->failure = *failure;
        atomic_store(&world->failed, true);
        for (xp_team *team = world->teams; team; team = team->next) {
            atomic_fetch_or(&team->state, 1U);
            xp_futex_event_signal(&team->event);
        }
    }
    pthread_mutex_unlock(&world->lock);
    xp_failure_hooks_fire(&world->hooks);
}

xp_status xp_world_status(xp_thread_world *world) {
    if (!atomic_load(&world->failed))
        return XP_OK;
    return xp_error(XP_ECOMM, "%s", world->failure.text);
}

xp_status xp_team_create(xp_thread_world *world, const int *world_ranks, int size, xp_team **team) {
    xp_team *t = calloc(1, sizeof *t);
    if (!t)
        return xp_error(XP_ENOMEM, "no memory for a communicator");
    t->world = world;
    t->size = size;
    t->world_ranks = malloc((size_t)size * sizeof *t->world_ranks);
    t->nodes = malloc((size_t)size * sizeof *t->nodes);
    t->slots = aligned_alloc(64, (size_t)size * sizeof *t->slots);
    if (!t->world_ranks || !t->nodes || !t->slots) {
        free(t->world_ranks);
        free(t->nodes);
        free(t->slots);
        free(t);
        return xp_error(XP_ENOMEM, "no memory for a communicator of %d ranks", size);
    }
    for (int i = 0; i < size; i++) {
        t->world_ranks[i] = world_ranks[i];
        t->slots[i] = (xp_team_slot){.color = -1};
    }
    t->n_nodes = xp_comm_number_nodes(world->nodes, t->world_ranks, size, t->nodes);
    atomic_init(&t->n_refs, size);
    pthread_mutex_lock(&world->lock);
    t->next = world->teams;
    world->teams = t;
    if (atomic_load(&world->failed))
        atomic_store(&t->state, 1U);
    pthread_mutex_unlock(&world->lock);
    *team = t;
    return XP_OK;
}

void xp_team_release(xp_team *team) {
    if (atomic_fetch_sub(&team->n_refs, 1) != 1)
        return;
    xp_thread_world *world = team->world;
    pthread_mutex_lock(&world->lock);
    xp_team **at = &world->teams;
    while (*at != team)
        at = &(*at)->next;
    *at = team->next;
    pthread_mutex_unlock(&world->lock);
    while (team->ends) {
        xp_team_end *end = team->ends;
        team->ends = end->next;
        free(end);
    }
    free(team->world_ranks);
    free(team->nodes);
    free(team->slots);
    free(team);
}

typedef struct wait_state {
    xp_team *team;
    uint32_t target;
} wait_state;

static bool reached(uint32_t at, uint32_t target) {
    return (int32_t)(at - target) >= 0;
}

/* 31 bits of epoch: compare in the shifted form so that wrapping stays right. */
static bool completed(const xp_team *team, uint32_t target) {
    uint32_t state = atomic_load(&team->state);
    return (int32_t)((state & ~1U) - (target << 1)) >= 0;
}

static bool completed_or_failed(void *context) {
    const wait_state *wait = context;
    return completed(wait->team, wait->target) || (atomic_load(&wait->team->state) & 1U) != 0;
}

static bool all_arrived(void *context) {
    const wait_state *wait = context;
    for (int i = 0; i < wait->team->size; i++) {
        if (!reached(atomic_load(&wait->team->slots[i].arrived), wait->target))
            return false;
    }
    return true;
}

static bool is_missing(const xp_thread_comm *comm, int rank) {
    return !reached(atomic_load(&comm->team->slots[rank].arrived), comm->epoch);
}

/* Missing, and known not to wait for anybody itself. */
static bool is_at_fault(const xp_thread_comm *comm, int rank) {
    return is_missing(comm, rank) && xp_comm_wait_state(&comm->base, rank) == XP_WAIT_BUSY;
}

static int count_at_fault(const xp_thread_comm *comm) {
    int n = 0;
    for (int i = 0; i < comm->team->size; i++)
        n += is_at_fault(comm, i);
    return n;
}

/* Name who is missing, where this rank waits, and what each missing rank was last seen doing. */
static void report_timeout(xp_thread_comm *comm, xp_comm_kind kind, const char *phase) {
    const xp_team *team = comm->team;
    bool all_wait = count_at_fault(comm) == 0;
    xp_text who = {0};
    int n_named = 0, n_missing = 0, first = -1;
    for (int i = 0; i < team->size; i++) {
        const xp_team_slot *slot = &team->slots[i];
        if (all_wait ? !is_missing(comm, i) : !is_at_fault(comm, i))
            continue;
        first = first < 0 ? i : first;
        n_missing++;
        if (n_named >= 8)
            continue;
        const char *last = atomic_load(&slot->phase);
        uint32_t seen = atomic_load(&slot->arrived);
        xp_text_printf(&who, "%srank %d (at barrier %u, expected %u; last in %s)",
                       n_named++ > 0 ? ", " : "", team->world_ranks[i], seen, comm->epoch,
                       seen == 0 ? "nothing yet"
                       : last    ? last
                                 : xp_comm_kind_name((xp_comm_kind)atomic_load(&slot->kind)));
    }
    if (n_missing > n_named)
        xp_text_printf(&who, " and %d more", n_missing - n_named);
    char text[600];
    snprintf(text, sizeof text, "rank %d waited %g s in %s%s%s%s for %s",
             team->world_ranks[comm->base.rank], team->world->timeout_s, xp_comm_kind_name(kind),
             phase ? " (" : "", phase ? phase : "", phase ? ")" : "",
             n_missing > 0 && who.data ? who.data : "ranks that came too late");
    xp_text_free(&who);
    if (xp_comm_fail_timeout(&comm->base, first, text) != XP_OK)
        xp_error_clear(); /* xp_team_enter reports it */
}

/* Wait for the barrier or a failure. When time is up but every missing rank waits for others
 * itself, those get a while longer to name the rank at fault: they began later. */
static void wait_for_barrier(xp_thread_comm *comm, xp_comm_kind kind, const char *phase) {
    xp_team *team = comm->team;
    wait_state wait = {.team = team, .target = comm->epoch};
    double timeout = team->world->timeout_s, deadline = xp_time_s() + timeout;
    double last = deadline + (timeout < 4.0 ? timeout : 4.0);
    if (completed_or_failed(&wait))
        return;
    xp_comm_mark_waiting(&comm->base, 1);
    while (!xp_futex_event_wait(&team->event, completed_or_failed, &wait, deadline, timeout)) {
        double now = xp_time_s();
        if (now >= last || count_at_fault(comm) > 0) {
            report_timeout(comm, kind, phase);
            break;
        }
        deadline = now + 0.05;
    }
    xp_comm_mark_waiting(&comm->base, -1);
}

/* The last to arrive completes the barrier, unless the team has failed: then it never completes. */
static void arrive(xp_thread_comm *comm) {
    xp_team *team = comm->team;
    comm->epoch++;
    atomic_store(&team->slots[comm->base.rank].arrived, comm->epoch);
    uint32_t n = atomic_fetch_add(&team->n_arrived, 1) + 1;
    if (n != comm->epoch * (uint32_t)team->size)
        return;
    uint32_t state = atomic_load(&team->state);
    while ((state & 1U) == 0 && !atomic_compare_exchange_weak(&team->state, &state, state + 2)) {
    }
    xp_futex_event_signal(&team->event);
}

xp_status xp_team_enter(xp_thread_comm *comm, xp_comm_kind kind, const char *phase) {
    xp_team *team = comm->team;
    XP_TRY(xp_world_status(team->world));
    xp_team_slot *slot = &team->slots[comm->base.rank];
    atomic_store(&slot->phase, phase);
    atomic_store(&slot->kind, (int)kind);
    arrive(comm);
    wait_for_barrier(comm, kind, phase);
    if (completed(team, comm->epoch))
        return XP_OK;
    return xp_world_status(team->world);
}

xp_status xp_team_leave(xp_thread_comm *comm) {
    xp_team *team = comm->team;
    arrive(comm);
    wait_state wait = {.team = team, .target = comm->epoch};
    const xp_team_slot *slot = &team->slots[comm->base.rank];
    wait_for_barrier(comm, (xp_comm_kind)atomic_load(&slot->kind), atomic_load(&slot->phase));
    if (completed(team, comm->epoch))
        return XP_OK;
    /* Failed between enter and leave: whoever still copies finishes soon and arrives; our buffers
     * must stay until then. Nobody signals a single arrival, hence the short slice. */
    xp_futex_event_wait(&team->event, all_arrived, &wait, xp_time_s() + team->world->timeout_s,
                        1e-4);
    return xp_world_status(team->world);
}

/* Found or made under the world's lock; NULL: no memory. */
static xp_team_end *find_end(xp_team *team, int64_t id) {
    xp_team_end *end = team->ends;
    while (end && end->id != id)
        end = end->next;
    if (end)
        return end;
    end = calloc(1, sizeof *end);
    if (!end)
        return NULL;
    end->id = id;
    end->next = team->ends;
    team->ends = end;
    return end;
}

/* The last one to leave takes it away. Under the world's lock. */
static void leave_end(xp_team *team, xp_team_end *end) {
    if (++end->n_left < team->size)
        return;
    xp_team_end **at = &team->ends;
    while (*at != end)
        at = &(*at)->next;
    *at = end->next;
    free(end);
}

typedef struct end_wait {
    xp_team_end *end;
    int size;
} end_wait;

static bool all_ended(void *context) {
    const end_wait *wait = context;
    return atomic_load(&wait->end->n_arrived) == wait->size;
}

bool xp_team_final_barrier(xp_thread_comm *comm, int64_t id) {
    xp_team *team = comm->team;
    xp_thread_world *world = team->world;
    pthread_mutex_lock(&world->lock);
    xp_team_end *end = find_end(team, id);
    if (end)
        atomic_fetch_add(&end->n_arrived, 1);
    pthread_mutex_unlock(&world->lock);
    if (!end)
        return false;
    xp_futex_event_signal(&team->event);
    end_wait wait = {.end = end, .size = team->size};
    const double started = xp_time_s(), healthy = started + world->timeout_s;
    /* In a failed world a rank may never come: long enough for a copy under way, no longer. */
    const double failed = started + (world->timeout_s < 1.0 ? world->timeout_s : 1.0);
    bool all = false;
    while (!(all = xp_futex_event_wait(&team->event, all_ended, &wait, xp_time_s() + 0.05, 0.05))) {
        const double now = xp_time_s();
        if (now > healthy || (now > failed && atomic_load(&world->failed)))
            break;
    }
    pthread_mutex_lock(&world->lock);
    leave_end(team, end);
    pthread_mutex_unlock(&world->lock);
    return all;
}
