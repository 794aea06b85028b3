/** Calls on a CPU: checked and run when the stream reaches them. What all CPU backends' tables hold. */
#ifndef XP_EP_COMMON_CPU_QUEUE_H
#define XP_EP_COMMON_CPU_QUEUE_H

#include "ep/backend.h"
#include "ep/common/cpu/plan.h"

/** What a transport does on the stream, once the call has been checked. */
struct xp_ep_cpu_transport {
    xp_ep_cpu_plan_exchange exchange; /* of a plan */
    xp_status (*dispatch)(const xp_ep_call *call, const void *x, void *recv);
    xp_status (*combine)(const xp_ep_call *call, const xp_ep_combine_args *args);
};

/** xp_ep_backend.plan_build, dispatch and combine, with xp_ep_backend.cpu. */
XP_NODISCARD xp_status xp_ep_cpu_queue_build(const xp_ep_call *call, const xp_ep_routing *routing);
XP_NODISCARD xp_status xp_ep_cpu_queue_dispatch(const xp_ep_call *call, const void *x, void *recv);
XP_NODISCARD xp_status xp_ep_cpu_queue_combine(const xp_ep_call *call,
                                               const xp_ep_combine_args *args);

#endif
