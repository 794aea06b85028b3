/**
 * The one interface of expert parallelism: a backend is a transport on a device. ep.c, plan.c and
 * group.c check arguments and call the group's backend; backends.c lists all of them; nothing else
 * knows which transport or device a group has. Tables are complete: no entry but `cpu` is NULL.
 */
#ifndef XP_EP_BACKEND_H
#define XP_EP_BACKEND_H

#include "ep/common/call.h"

typedef struct xp_ep_cpu_transport xp_ep_cpu_transport;

struct xp_ep_backend {
    const char *name;               /* "p2p/cuda" */
    const xp_ep_cpu_transport *cpu; /* CPU: what common/cpu/queue.c runs on the stream; else NULL */
    /** Nothing is computed and tensors need no memory: the null device. */
    bool counts_only;

    /* ---- sizes: plain functions of the configuration; config->on_gpu says what is reserved where */

    /** Device bytes of one rank, all slots, without the plan kernels' scratch. */
    size_t (*group_bytes)(const xp_ep_shape *shape, const xp_ep_config *config);
    /** Device bytes of one plan. */
    size_t (*plan_bytes)(const xp_ep_shape *shape, const xp_ep_config *config);
    /** Device bytes of the communicators of one slot where each rank has a GPU. */
    size_t (*comm_bytes)(const xp_ep_config *config, int n_ranks);

    /* ---- life */

    /** Collective. Makes transport_state and device_state. XP_ENOTSUP: it cannot work here. */
    xp_status (*group_create)(xp_ep_group *group);
    /** Returns when no rank can touch this rank's memory any more. Also after a create that failed
     * half way. */
    void (*group_destroy)(xp_ep_group *group);
    xp_status (*plan_create)(xp_ep_plan *plan);
    void (*plan_destroy)(xp_ep_plan *plan); /* also of a half-made plan */

    /* ---- calls: queued on call->stream. XP_ECOMM: the group is unusable */

    /** A routing that a device refuses leaves an empty plan on every rank; plan_wait and async_error
     * tell. Where the host reads the counts anyway, plan_build returns XP_EINVAL. */
    xp_status (*plan_build)(const xp_ep_call *call, const xp_ep_routing *routing);
    /** Wait for the plan's stream and read its counts. */
    xp_status (*plan_wait)(xp_ep_plan *plan, xp_ep_counts *counts);
    /** dispatch and combine_backward: token rows x [T, D] to recv [recv_capacity, D]. */
    xp_status (*dispatch)(const xp_ep_call *call, const void *x, void *recv);
    /** combine and dispatch_backward: expert rows to their sources, summed. */
    xp_status (*combine)(const xp_ep_call *call, const xp_ep_combine_args *args);
    /** What other ranks wait for of a combine. call->n_tokens is not known.
     * @param[out] sent  false: nothing was done, combine does all of it */
    xp_status (*combine_send)(const xp_ep_call *call, const void *y, bool *sent);
    /** The rest of it, when it was sent. XP_EINVAL: nothing was done, and it is still to be received. */
    xp_status (*combine_recv)(const xp_ep_call *call, const xp_ep_combine_args *args);

    /* ---- reports: never wait */

    /** The group's sticky failure; else the first routing that the device has refused. */
    xp_status (*async_error)(const xp_ep_group *group);
    /** See xp_ep_group_abort_flags(). */
    void (*abort_flags)(const xp_ep_group *group, const int32_t *flags[2]);
    /** Add what the device has counted to the host's totals. */
    void (*add_stats)(const xp_ep_group *group, xp_ep_stats *stats);
    void (*reset_stats)(xp_ep_group *group);
};

#endif
