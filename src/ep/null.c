/* The null device: memory is counted and nothing is computed. One backend a transport, for its
 * sizes. */
#include "ep/a2a/a2a.h"
#include "ep/backends.h"
#include "ep/common/defaults.h"
#include "ep/hierarchical/forwarding.h"
#include "ep/local/local.h"
#include "ep/p2p/p2p.h"

static xp_status group_create(xp_ep_group *group) {
    const size_t n_bytes = group->backend->group_bytes(&group->shape, &group->config);
    return xp_device_alloc(group->device, n_bytes, "ep", &group->transport_state);
}

static void group_destroy(xp_ep_group *group) {
    xp_device_free(group->device, group->transport_state);
}

static xp_status plan_create(xp_ep_plan *plan) {
    const xp_ep_group *group = plan->group;
    const size_t n_bytes = group->backend->plan_bytes(&group->shape, &group->config);
    return xp_device_alloc(group->device, n_bytes, "ep", &plan->memory);
}

static xp_status plan_build(const xp_ep_call *call, const xp_ep_routing *routing) {
    (void)call;
    (void)routing;
    return XP_OK;
}

static xp_status plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    (void)plan;
    *counts = (xp_ep_counts){.n_rounds = 1};
    return XP_OK;
}

static xp_status dispatch(const xp_ep_call *call, const void *x, void *recv) {
    (void)call;
    (void)x;
    (void)recv;
    return XP_OK;
}

static xp_status combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    (void)call;
    (void)args;
    return XP_OK;
}

#define COUNTS_ONLY                                                                                \
    .counts_only = true, .group_create = group_create, .group_destroy = group_destroy,             \
    .plan_create = plan_create, .plan_destroy = xp_ep_plan_release, .plan_build = plan_build,      \
    .plan_wait = plan_wait, .dispatch = dispatch, .combine = combine,                              \
    .combine_send = xp_ep_no_combine_send, .combine_recv = combine,                                \
    .async_error = xp_ep_no_device_error, .abort_flags = xp_ep_no_abort_flags,                     \
    .add_stats = xp_ep_no_device_stats, .reset_stats = xp_ep_no_device_stats_reset

const xp_ep_backend xp_ep_null_local = {.name = "local/null",
                                        .group_bytes = xp_ep_local_group_bytes,
                                        .plan_bytes = xp_ep_plan_bytes,
                                        .comm_bytes = xp_ep_no_comm_bytes,
                                        COUNTS_ONLY};

const xp_ep_backend xp_ep_null_p2p = {.name = "p2p/null",
                                      .group_bytes = xp_ep_p2p_group_bytes,
                                      .plan_bytes = xp_ep_plan_bytes,
                                      .comm_bytes = xp_ep_no_comm_bytes,
                                      COUNTS_ONLY};

const xp_ep_backend xp_ep_null_a2a = {.name = "a2a/null",
                                      .group_bytes = xp_ep_a2a_group_bytes,
                                      .plan_bytes = xp_ep_plan_bytes,
                                      .comm_bytes = xp_ep_a2a_comm_bytes,
                                      COUNTS_ONLY};

const xp_ep_backend xp_ep_null_hierarchical = {.name = "hierarchical/null",
                                               .group_bytes = xp_ep_hier_group_bytes,
                                               .plan_bytes = xp_ep_hier_plan_bytes,
                                               .comm_bytes = xp_ep_hier_comm_bytes,
                                               COUNTS_ONLY};
