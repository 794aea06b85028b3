/* Flags and waits of the p2p transport. */
#include <stdio.h>
#include "comm/provider.h"
#include "core/file.h"
#include "ep/transport/p2p.h"

/* How often a waiting rank looks whether the communicator has failed; nobody rings its bell for
 * that. */
#define LOOK_AROUND_S 0.01

static const char *const point_names[P2P_N_POINTS] = {
    [P2P_COUNTS] = "counts",
    [P2P_ASSIGNMENTS] = "assignments",
    [P2P_STARTS] = "starts of rounds",
    [P2P_READY] = "ready",
    [P2P_DATA] = "rows",
    [P2P_BUSY] = "end of use",
};

const char *xp_ep_p2p_point_name(p2p_point point) {
    return (unsigned)point < P2P_N_POINTS ? point_names[point] : "?";
}

static p2p_state *state_of(const xp_ep_step *step) {
    return step->group->state;
}

p2p_area *xp_ep_p2p_area(const xp_ep_step *step, int rank) {
    return state_of(step)->areas + step->plan->slot * step->group->shape.n_ranks + rank;
}

static _Atomic uint32_t *flag_at(const xp_ep_step *step, int owner, p2p_point point, int writer) {
    return &xp_ep_p2p_area(step, owner)
                ->flags[(int)point * step->group->shape.n_ranks + writer]
                .epoch;
}

void xp_ep_p2p_begin(const xp_ep_step *step) {
    xp_comm_show_phase(step->group->comm, step->phase);
    state_of(step)->epochs[step->plan->slot]++;
}

void xp_ep_p2p_post(const xp_ep_step *step, int peer, p2p_point point) {
    uint32_t epoch = state_of(step)->epochs[step->plan->slot];
    atomic_store_explicit(flag_at(step, peer, point, step->group->rank), epoch,
                          memory_order_release);
    xp_bell_ring(xp_ep_p2p_area(step, peer)->bell);
}

typedef struct flag_wait {
    const xp_comm *comm;
    _Atomic uint32_t *flag;
    uint32_t epoch;
} flag_wait;

static bool reached(const flag_wait *wait) {
    return (int32_t)(atomic_load_explicit(wait->flag, memory_order_acquire) - wait->epoch) >= 0;
}

static bool reached_or_failed(void *context) {
    const flag_wait *wait = context;
    return reached(wait) || xp_comm_async_error(wait->comm) != XP_OK;
}

xp_status xp_ep_p2p_wait(const xp_ep_step *step, int peer, p2p_point point) {
    xp_ep_group *group = step->group;
    flag_wait wait = {.comm = group->comm,
                      .flag = flag_at(step, group->rank, point, peer),
                      .epoch = state_of(step)->epochs[step->plan->slot]};
    if (reached(&wait))
        return XP_OK;
    xp_bell *bell = xp_ep_p2p_area(step, group->rank)->bell;
    double started = xp_time_s(), deadline = started + group->timeout_s;
    /* A peer that waits for others itself gets a while longer to name the rank at fault. */
    double last = deadline + (group->timeout_s < 4.0 ? group->timeout_s : 4.0);
    bool in_time;
    xp_comm_mark_waiting(group->comm, 1);
    while (!(in_time = xp_bell_wait(bell, reached_or_failed, &wait, deadline, LOOK_AROUND_S)) &&
           xp_time_s() < last && xp_comm_is_waiting(group->comm, peer))
        deadline = xp_time_s() + 0.05;
    xp_comm_mark_waiting(group->comm, -1);
    xp_ep_add(&group->totals.wait_ns, (int64_t)((xp_time_s() - started) * 1e9));
    if (reached(&wait))
        return XP_OK;
    if (in_time)
        return xp_comm_async_error(group->comm);
    char text[256];
    snprintf(text, sizeof text,
             "rank %d waited %g s in %s (%s, round %lld) for rank %d (at call %u, expected %u)",
             xp_comm_world_rank(group->comm, group->rank), group->timeout_s, step->phase,
             xp_ep_p2p_point_name(point), (long long)step->round,
             xp_comm_world_rank(group->comm, peer), atomic_load(wait.flag), wait.epoch);
    return xp_comm_fail_timeout(group->comm, peer, text);
}

xp_status xp_ep_p2p_lock(const xp_ep_step *step, int peer) {
    /* Either this load sees the failure, or the peer that saw it sees the flag: both sides are
     * sequentially consistent. */
    atomic_store(flag_at(step, peer, P2P_BUSY, step->group->rank), 1);
    xp_status status = xp_comm_async_error(step->group->comm);
    if (status != XP_OK)
        xp_ep_p2p_unlock(step, peer);
    return status;
}

void xp_ep_p2p_unlock(const xp_ep_step *step, int peer) {
    atomic_store(flag_at(step, peer, P2P_BUSY, step->group->rank), 0);
}

typedef struct quiet_wait {
    const p2p_flag *flags;
    int n_ranks;
} quiet_wait;

static bool is_quiet(void *context) {
    const quiet_wait *wait = context;
    for (int r = 0; r < wait->n_ranks; r++) {
        if (atomic_load(&wait->flags[(int)P2P_BUSY * wait->n_ranks + r].epoch) != 0)
            return false;
    }
    return true;
}

void xp_ep_p2p_quiesce(const xp_ep_step *step) {
    p2p_area *mine = xp_ep_p2p_area(step, step->group->rank);
    quiet_wait wait = {.flags = mine->flags, .n_ranks = step->group->shape.n_ranks};
    xp_bell_wait(mine->bell, is_quiet, &wait, xp_time_s() + step->group->timeout_s, 1e-3);
}
