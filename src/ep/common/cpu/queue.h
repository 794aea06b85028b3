/**
 * How CPU backends run: a call is queued on the stream and `run` is called in its turn, after the
 * checks that need the plan as it is then (a build queued before may still be on its way).
 */
#ifndef XP_EP_COMMON_CPU_QUEUE_H
#define XP_EP_COMMON_CPU_QUEUE_H

#include "ep/common/call.h"

typedef xp_status (*xp_ep_cpu_build_fn)(const xp_ep_call *call, const xp_ep_routing *routing);
typedef xp_status (*xp_ep_cpu_dispatch_fn)(const xp_ep_call *call, const void *x, void *recv);
typedef xp_status (*xp_ep_cpu_combine_fn)(const xp_ep_call *call, const xp_ep_combine_args *args);

XP_NODISCARD xp_status xp_ep_cpu_queue_build(const xp_ep_call *call, const xp_ep_routing *routing,
                                             xp_ep_cpu_build_fn run);
/** `run` is left out when this round is empty on every rank. */
XP_NODISCARD xp_status xp_ep_cpu_queue_dispatch(const xp_ep_call *call, const void *x, void *recv,
                                                xp_ep_cpu_dispatch_fn run);
XP_NODISCARD xp_status xp_ep_cpu_queue_combine(const xp_ep_call *call,
                                               const xp_ep_combine_args *args,
                                               xp_ep_cpu_combine_fn run);

#endif
