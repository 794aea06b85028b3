/**
 * Building a plan on the CPU: this rank's counts, rows and assignments; one exchange; this rank's
 * experts' lists. A backend says how it exchanges.
 */
#ifndef XP_EP_COMMON_CPU_PLAN_H
#define XP_EP_COMMON_CPU_PLAN_H

#include "ep/common/call.h"

typedef struct xp_ep_cpu_plan_exchange {
    /** Before anything is written to targets; may be NULL. */
    xp_status (*begin)(const xp_ep_call *call);
    /** Where this rank's assignments for `dest` are written, before the exchange.
     * plan->send_assignment_base is known. */
    xp_ep_assignment *(*target)(const xp_ep_call *call, int dest);
    /**
     * Every rank's counts into plan->rank_counts, and the assignments for this rank.
     * @param own_counts  [counts_ints]; when they carry a routing error, targets hold nothing
     * @param[out] assignments  of all ranks, ordered (source, token, expert); not needed, and need not
     *             be exchanged, when some rank's counts carry an error
     */
    xp_status (*run)(const xp_ep_call *call, const int32_t *own_counts,
                     const xp_ep_assignment **assignments);
    /** What is left once the lists are there; may be NULL. */
    xp_status (*complete)(const xp_ep_call *call);
} xp_ep_cpu_plan_exchange;

/** xp_ep_backend.plan_build, on the stream. */
XP_NODISCARD xp_status xp_ep_cpu_plan_build(const xp_ep_call *call, const xp_ep_routing *routing,
                                            const xp_ep_cpu_plan_exchange *exchange);

/** xp_ep_backend.plan_wait */
xp_status xp_ep_cpu_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts);

#endif
