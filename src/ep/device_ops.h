/**
 * Devices that the host runs ahead of (GPUs): counts stay on the device, so one table of the
 * backend takes the place of the host's plan and of the transport's movements. Rounds are launched
 * max_rounds times; those that a routing does not need are empty.
 */
#ifndef XP_EP_DEVICE_OPS_H
#define XP_EP_DEVICE_OPS_H

#include "ep/plan.h"

typedef struct xp_ep_home xp_ep_home;

typedef struct xp_ep_device_ops {
    /** After the group's scratch; makes device_state and the transport's memory. XP_ENOTSUP for
     * shapes and transports without kernels. */
    xp_status (*create)(xp_ep_group *group);
    /** Before the transport's memory goes: returns when no rank's work can touch it any more. */
    void (*stop)(xp_ep_group *group);
    void (*destroy)(xp_ep_group *group); /* both also of a half-made state, NULL included */
    /** Queued, like all below but the last five. Bad routing found on the device: the plan is
     * empty on every rank, wait and async_error tell; where the host reads the counts anyway, build
     * does too. */
    xp_status (*build)(const xp_ep_step *step, const int32_t *topk_idx, const float *topk_weight,
                       int64_t n_tokens);
    xp_status (*dispatch)(const xp_ep_step *step, const void *x, void *recv);
    xp_status (*bring_home)(const xp_ep_step *step, const xp_ep_home *home);
    /** This rank refuses a call that others may make: counts it, so that the next ones match. */
    void (*miss)(const xp_ep_step *step);
    /** xp_ep_plan_wait(): waits for the plan's stream. */
    xp_status (*wait)(xp_ep_plan *plan, xp_ep_counts *counts);
    /** Words that the device can read, not 0 once it has refused a routing or a meeting has failed:
     * what was computed since is wrong. */
    void (*stop_words)(const xp_ep_group *group, const int32_t *words[2]);
    /** What the device has reported so far; never waits. */
    xp_status (*async_error)(const xp_ep_group *group);
    void (*add_stats)(const xp_ep_group *group, xp_ep_stats *stats);
    void (*reset_stats)(xp_ep_group *group);
} xp_ep_device_ops;

/** The device's table; NULL for devices whose work the host does itself. */
XP_NODISCARD xp_status xp_ep_device_ops_get(const xp_device *device, const xp_ep_device_ops **ops);

/** The table's stop_words(); NULLs for groups whose host knows at once. */
void xp_ep_group_stop_words(const xp_ep_group *group, const int32_t *words[2]);

#endif
