/**
 * The steps of building a plan on the CPU. A backend calls them in this order and exchanges between
 * them what its transport exchanges:
 *
 *   count    this rank's counts                 -> every rank's counts in plan->rank_counts
 *   offsets  all that follows from the counts
 *   send     this rank's rows and assignments   -> the assignments for this rank
 *   recv     this rank's experts' lists
 */
#ifndef XP_EP_COMMON_CPU_PLAN_H
#define XP_EP_COMMON_CPU_PLAN_H

#include "ep/common/call.h"

/** @return [counts_ints] in the slot's scratch */
const int32_t *xp_ep_cpu_plan_count(const xp_ep_call *call, const xp_ep_routing *routing);
/** [R] scratch of the slot: where the assignments for each rank go. The backend fills it in. */
xp_ep_assignment **xp_ep_cpu_plan_targets(const xp_ep_call *call);
/** Prefix sums, the number of rounds, tokens of each local expert. */
void xp_ep_cpu_plan_offsets(xp_ep_plan *plan);
/** Lists of rows and assignments; assignments go to the targets. */
void xp_ep_cpu_plan_send(const xp_ep_call *call, const xp_ep_routing *routing);
/** @param assignments  all of this rank's experts, ordered (source, token, expert) */
void xp_ep_cpu_plan_recv(const xp_ep_call *call, const xp_ep_assignment *assignments);
/** The plan can be used. */
void xp_ep_cpu_plan_finish(const xp_ep_call *call);

/** xp_ep_backend.plan_wait */
xp_status xp_ep_cpu_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts);

#endif
