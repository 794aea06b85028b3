/* Groups: which backend, what memory, and what they report. */
#include <stdlib.h>
#include "comm/provider.h"
#include "ep/backends.h"
#include "ep/internal.h"
#include "device/scope.h"

/* ---- sizes --------------------------------------------------------------------------------- */

static xp_ep_sizes measure(const xp_ep_shape *s, const xp_ep_config *config) {
    const xp_ep_backend *backend = xp_ep_backend_for_sizes(config->transport, s->n_ranks);
    return (xp_ep_sizes){
        .recv_capacity = s->recv_capacity,
        .assignment_capacity = s->assignment_capacity,
        .max_rounds = s->max_rounds,
        .group_bytes =
            xp_ep_scratch_bytes(s) * (size_t)s->n_slots + backend->group_bytes(s, config),
        .plan_bytes = backend->plan_bytes(s, config),
    };
}

xp_status xp_ep_query_sizes(const xp_ep_config *config, int n_ranks, xp_ep_sizes *sizes) {
    if (!config || !sizes)
        return xp_error(XP_EINVAL, "xp_ep_query_sizes: config and sizes must not be NULL");
    xp_ep_shape shape;
    XP_TRY(xp_ep_shape_make(config, n_ranks, &shape));
    if (config->on_gpu)
        XP_TRY(xp_ep_shape_check_gpu(&shape));
    *sizes = measure(&shape, config);
    return XP_OK;
}

size_t xp_ep_comm_bytes(const xp_ep_config *config, int n_ranks) {
    const int n_slots = config->n_slots > 0 ? config->n_slots : 1;
    if (!config->on_gpu)
        return 0;
    return (size_t)n_slots *
           xp_ep_backend_for_sizes(config->transport, n_ranks)->comm_bytes(config, n_ranks);
}

/* ---- create -------------------------------------------------------------------------------- */

static int config_nodes(const xp_ep_config *config) {
    return config->n_nodes > 0 ? config->n_nodes : 1;
}

xp_status xp_ep_choose_transport(xp_ep_config *config, bool peer_accessible) {
    if (config->transport == XP_EP_AUTO)
        config->transport = peer_accessible ? XP_EP_P2P : XP_EP_A2A;
    if (config->transport == XP_EP_P2P && !peer_accessible)
        return xp_error(XP_ENOTSUP,
                        "the p2p transport needs every rank of the EP group on one node, and this "
                        "group spans %d nodes; "
                        "choose a smaller expert parallel degree, or transport a2a or hierarchical",
                        config_nodes(config));
    return XP_OK;
}

/* How the ranks turned out to be placed. */
static xp_status complete_config(xp_ep_group *g) {
    const xp_comm *comm = g->comm;
    const bool accessible = !comm || xp_comm_is_one_node(comm);
    g->config.n_nodes = comm ? xp_comm_n_nodes(comm) : config_nodes(&g->config);
    XP_TRY(xp_ep_choose_transport(&g->config, accessible));
    g->config.on_gpu = xp_device_like(g->device) == XP_DEVICE_CUDA;
    if (comm)
        g->config.separate_processes = !xp_comm_same_process(comm) && accessible;
    return XP_OK;
}

static xp_status reserve(xp_ep_group *g) {
    const xp_ep_shape *s = &g->shape;
    g->sums = calloc((size_t)s->n_slots, sizeof *g->sums);
    g->combines = calloc((size_t)s->n_slots, sizeof *g->combines);
    g->targets = calloc((size_t)s->n_slots * (size_t)s->n_ranks, sizeof *g->targets);
    if (!g->sums || !g->combines || !g->targets)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    for (int slot = 0; slot < s->n_slots; slot++)
        XP_TRY(xp_event_create(g->device, &g->combines[slot].recorded));
    XP_TRY(
        xp_device_alloc(g->device, xp_ep_scratch_bytes(s) * (size_t)s->n_slots, "ep", &g->scratch));
    return g->backend->group_create(g);
}

static xp_status check_arguments(xp_comm *comm, const xp_device *device, const xp_ep_config *config,
                                 xp_ep_group **group) {
    if (!device || !config || !group)
        return xp_error(XP_EINVAL, "xp_ep_group_create: device, config and group must not be NULL");
    if (!comm && config->n_ranks > 1 && xp_device_get_kind(device) != XP_DEVICE_NULL)
        return xp_error(XP_EINVAL,
                        "xp_ep_group_create: %d ranks need a communicator (only the null device "
                        "counts without)",
                        config->n_ranks);
    if (comm && config->n_ranks > 0 && config->n_ranks != xp_comm_size(comm))
        return xp_error(XP_EINVAL,
                        "xp_ep_group_create: the config says %d ranks, the communicator has %d",
                        config->n_ranks, xp_comm_size(comm));
    return XP_OK;
}

xp_status xp_ep_group_create(xp_comm *comm, xp_device *device, const xp_ep_config *config,
                             xp_ep_group **group) {
    XP_DEVICE_SCOPE(device);
    XP_TRY(check_arguments(comm, device, config, group));
    const int n_ranks = comm ? xp_comm_size(comm) : config->n_ranks > 0 ? config->n_ranks : 1;
    xp_ep_group *g = calloc(1, sizeof *g);
    if (!g)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    g->comm = comm;
    g->device = device;
    g->config = *config;
    g->rank = comm ? xp_comm_rank(comm) : 0;
    g->timeout_s = config->timeout_s > 0 ? config->timeout_s : comm ? xp_comm_timeout(comm) : 1.0;
    xp_status status = XP_OK;
    XP_TRY_GOTO(status, complete_config(g), fail);
    XP_TRY_GOTO(status, xp_ep_check_same_config(comm, &g->config), fail);
    XP_TRY_GOTO(status, xp_ep_shape_make(&g->config, n_ranks, &g->shape), fail);
    XP_TRY_GOTO(
        status,
        xp_ep_backend_find(xp_device_get_kind(device), g->config.transport, n_ranks, &g->backend),
        fail);
    XP_TRY_GOTO(status, reserve(g), fail);
    *group = g;
    return XP_OK;
fail:
    xp_ep_group_destroy(g);
    return status;
}

void xp_ep_group_destroy(xp_ep_group *group) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    if (!group)
        return;
    if (group->backend)
        group->backend->group_destroy(group);
    for (int slot = 0; group->combines && slot < group->shape.n_slots; slot++)
        xp_event_destroy(group->combines[slot].recorded);
    free(group->combines);
    free(group->sums);
    free(group->targets);
    xp_device_free(group->device, group->scratch);
    free(group);
}

/* ---- what a group says --------------------------------------------------------------------- */

void xp_ep_group_set_sms(xp_ep_group *group, int n_sms) {
    group->call_sms = n_sms;
}

xp_ep_sizes xp_ep_group_sizes(const xp_ep_group *group) {
    return measure(&group->shape, &group->config);
}

int xp_ep_group_rank(const xp_ep_group *group) {
    return group->rank;
}

int xp_ep_group_n_ranks(const xp_ep_group *group) {
    return group->shape.n_ranks;
}

xp_ep_transport xp_ep_group_transport(const xp_ep_group *group) {
    return group->config.transport;
}

bool xp_ep_group_is_local(const xp_ep_group *group) {
    return group->shape.local;
}

void xp_ep_group_abort_flags(const xp_ep_group *group, const int32_t *flags[2]) {
    group->backend->abort_flags(group, flags);
}

xp_status xp_ep_async_error(const xp_ep_group *group) {
    XP_TRY(group->backend->async_error(group));
    return group->comm ? xp_comm_async_error(group->comm) : XP_OK;
}

void xp_ep_get_stats(const xp_ep_group *group, xp_ep_stats *stats) {
    const xp_ep_totals *t = &group->totals;
    *stats = (xp_ep_stats){
        .bytes_sent_remote = atomic_load(&t->bytes_sent_remote),
        .bytes_kept = atomic_load(&t->bytes_kept),
        .n_dispatches = atomic_load(&t->n_dispatches),
        .n_combines = atomic_load(&t->n_combines),
        .n_host_waits = atomic_load(&t->n_host_waits),
        .overflow_rows = atomic_load(&t->overflow_rows),
        .wait_s = (double)atomic_load(&t->wait_ns) * 1e-9,
    };
    group->backend->add_stats(group, stats);
}

void xp_ep_reset_stats(xp_ep_group *group) {
    xp_ep_totals *t = &group->totals;
    _Atomic int64_t *const all[] = {
        &t->bytes_sent_remote, &t->bytes_kept,    &t->n_dispatches, &t->n_combines,
        &t->n_host_waits,      &t->overflow_rows, &t->wait_ns};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        atomic_store(all[i], 0);
    group->backend->reset_stats(group);
}
