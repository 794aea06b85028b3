#include "ep/p2p/cpu/barrier.h"

#include <stdio.h>
#include "comm/provider.h"
#include "core/file.h"

/* How often a waiting rank checks whether the communicator has failed: a failure wakes nobody. */
#define CHECK_FAILURE_S 0.01

int xp_ep_p2p_peer(const xp_ep_call *call, int i) {
    return (call->group->rank + 1 + i) % call->group->shape.n_ranks;
}

static _Atomic uint32_t *flag_at(const xp_ep_call *call, int owner, p2p_point point, int writer) {
    return &xp_ep_p2p_area(call, owner)
                ->flags[(int)point * call->group->shape.n_ranks + writer]
                .epoch;
}

void xp_ep_p2p_signal(const xp_ep_call *call, int peer, p2p_point point) {
    atomic_store_explicit(flag_at(call, peer, point, call->group->rank), xp_ep_p2p_epoch(call),
                          memory_order_release);
    xp_futex_event_signal(&xp_ep_p2p_area(call, peer)->wait->wake);
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

xp_status xp_ep_p2p_wait(const xp_ep_call *call, int peer, p2p_point point) {
    xp_ep_group *group = call->group;
    flag_wait wait = {.comm = group->comm,
                      .flag = flag_at(call, group->rank, point, peer),
                      .epoch = xp_ep_p2p_epoch(call)};
    if (reached(&wait))
        return XP_OK;
    xp_futex_event *wake = &xp_ep_p2p_area(call, group->rank)->wait->wake;
    double started = xp_time_s(), deadline = started + group->timeout_s;
    /* A peer that waits for others itself gets a while longer to name the rank at fault. */
    double last = deadline + (group->timeout_s < 4.0 ? group->timeout_s : 4.0);
    bool in_time;
    xp_comm_mark_waiting(group->comm, 1);
    while (!(in_time =
                 xp_futex_event_wait(wake, reached_or_failed, &wait, deadline, CHECK_FAILURE_S)) &&
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
             xp_comm_world_rank(group->comm, group->rank), group->timeout_s, call->phase,
             xp_ep_p2p_point_name(point), (long long)call->round,
             xp_comm_world_rank(group->comm, peer), atomic_load(wait.flag), wait.epoch);
    return xp_comm_fail_timeout(group->comm, peer, text);
}

void xp_ep_p2p_signal_all(const xp_ep_call *call, p2p_point point) {
    for (int i = 0; i < call->group->shape.n_ranks; i++)
        xp_ep_p2p_signal(call, xp_ep_p2p_peer(call, i), point);
}

xp_status xp_ep_p2p_wait_all(const xp_ep_call *call, p2p_point point) {
    for (int i = 0; i < call->group->shape.n_ranks; i++)
        XP_TRY(xp_ep_p2p_wait(call, xp_ep_p2p_peer(call, i), point));
    return XP_OK;
}

xp_status xp_ep_p2p_barrier(const xp_ep_call *call, p2p_point point) {
    xp_ep_p2p_signal_all(call, point);
    return xp_ep_p2p_wait_all(call, point);
}

xp_status xp_ep_p2p_lock(const xp_ep_call *call, int peer) {
    /* Either this load sees the failure, or the peer that saw it sees the flag: both sides are
     * sequentially consistent. */
    atomic_store(flag_at(call, peer, P2P_BUSY, call->group->rank), 1);
    xp_status status = xp_comm_async_error(call->group->comm);
    if (status != XP_OK)
        xp_ep_p2p_unlock(call, peer);
    return status;
}

void xp_ep_p2p_unlock(const xp_ep_call *call, int peer) {
    atomic_store(flag_at(call, peer, P2P_BUSY, call->group->rank), 0);
}

static void unlock_first(const xp_ep_call *call, int n) {
    for (int i = 0; i < n; i++)
        xp_ep_p2p_unlock(call, xp_ep_p2p_peer(call, i));
}

xp_status xp_ep_p2p_lock_all(const xp_ep_call *call) {
    for (int i = 0; i < call->group->shape.n_ranks - 1; i++) {
        const xp_status status = xp_ep_p2p_lock(call, xp_ep_p2p_peer(call, i));
        if (status != XP_OK) {
            unlock_first(call, i);
            return status;
        }
    }
    return XP_OK;
}

void xp_ep_p2p_unlock_all(const xp_ep_call *call) {
    unlock_first(call, call->group->shape.n_ranks - 1);
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

void xp_ep_p2p_quiesce(const xp_ep_call *call) {
    p2p_area *mine = xp_ep_p2p_area(call, call->group->rank);
    quiet_wait wait = {.flags = mine->flags, .n_ranks = call->group->shape.n_ranks};
    xp_futex_event_wait(&mine->wait->wake, is_quiet, &wait, xp_time_s() + call->group->timeout_s,
                        1e-3);
}
