/* Groups: which transport, what memory, and the numbers about them. */
#include "ep/group.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/plugin.h"
#include "ep/device_ops.h"
#include "ep/transport/hierarchical.h"
#include "ep/transport/transport.h"

static const xp_ep_transport_ops *ops_of(xp_ep_transport transport, int n_ranks) {
    if (n_ranks == 1)
        return &xp_ep_local_ops;
    switch (transport) {
    case XP_EP_A2A:
        return &xp_ep_a2a_ops;
    case XP_EP_HIERARCHICAL:
        return &xp_ep_hierarchical_ops;
    default:
        return &xp_ep_p2p_ops;
    }
}

/* Scratch of the plan kernels: counts by tile, then this rank's block. */
static size_t scratch_bytes(const xp_ep_shape *s) {
    int64_t ints = s->n_tiles * (s->n_experts + s->n_ranks + 3) + s->block_ints;
    return ((size_t)ints * sizeof(int32_t) + 255) / 256 * 256;
}

xp_ep_sizes xp_ep_group_measure(const xp_ep_shape *s, const xp_ep_config *config) {
    const xp_ep_transport_ops *ops = ops_of(config->transport, s->n_ranks);
    size_t relay = ops == &xp_ep_hierarchical_ops ? xp_ep_relay_measure(s, config) : 0;
    return (xp_ep_sizes){
        .recv_capacity = s->recv_capacity,
        .assignment_capacity = s->assignment_capacity,
        .max_rounds = s->max_rounds,
        .group_bytes = scratch_bytes(s) * (size_t)s->n_slots + ops->measure(s, config),
        .plan_bytes = xp_ep_plan_measure(s) + relay,
    };
}

int xp_ep_config_nodes(const xp_ep_config *config) {
    return config->n_nodes > 0 ? config->n_nodes : 1;
}

size_t xp_ep_comm_bytes(const xp_ep_config *config, int n_ranks) {
    const int n_nodes = xp_ep_config_nodes(config), n_places = n_ranks / n_nodes;
    const bool by_node = config->transport == XP_EP_HIERARCHICAL;
    size_t n_bytes = 0;
    if (config->on_gpu && n_ranks > 1 && (by_node || config->transport == XP_EP_A2A))
        n_bytes += xp_comm_device_bytes(n_ranks, XP_EP_A2A_PIECE_BYTES);
    if (n_bytes > 0 && by_node && n_places > 1)
        n_bytes += xp_comm_device_bytes(n_places, XP_EP_A2A_PIECE_BYTES);
    if (n_bytes > 0 && by_node && n_nodes > 1)
        n_bytes += xp_comm_device_bytes(n_nodes, XP_EP_A2A_PIECE_BYTES);
    return n_bytes * (size_t)(config->n_slots > 0 ? config->n_slots : 1);
}

xp_status xp_ep_device_ops_get(const xp_device *device, const xp_ep_device_ops **ops) {
    const xp_cuda_backend *backend;
    *ops = NULL;
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA)
        return XP_OK;
    XP_TRY(xp_cuda_backend_get(&backend));
    *ops = backend->ep_kernels;
    return *ops ? XP_OK
                : xp_error(XP_ENOTSUP, "expert parallelism on %s: this build has no kernels for it",
                           xp_device_name(device));
}

xp_status xp_ep_choose_transport(xp_ep_config *config, bool shares_memory) {
    if (config->transport == XP_EP_AUTO)
        config->transport = shares_memory ? XP_EP_P2P : XP_EP_A2A;
    if (config->transport == XP_EP_P2P && !shares_memory)
        return xp_error(XP_ENOTSUP,
                        "the p2p transport needs every rank of the EP group on one node, and this "
                        "group spans %d nodes; "
                        "choose a smaller expert parallel degree, or transport a2a or hierarchical",
                        xp_ep_config_nodes(config));
    return XP_OK;
}

static xp_status choose_transport(xp_ep_group *g) {
    const xp_comm *comm = g->comm;
    const bool shares = !comm || xp_comm_shares_memory(comm);
    g->config.n_nodes = comm ? xp_comm_n_nodes(comm) : xp_ep_config_nodes(&g->config);
    XP_TRY(xp_ep_choose_transport(&g->config, shares));
    g->transport = g->config.transport;
    g->config.on_gpu = xp_device_like(g->device) == XP_DEVICE_CUDA;
    if (comm)
        g->config.separate_processes = !xp_comm_shares_addresses(comm) && shares;
    return XP_OK;
}

/* The real thing; on the null device only the byte counts of all that. */
static xp_status reserve(xp_ep_group *g) {
    const xp_ep_shape *s = &g->shape;
    size_t each = scratch_bytes(s), scratch = each * (size_t)s->n_slots;
    if (xp_device_get_kind(g->device) == XP_DEVICE_NULL)
        return xp_device_alloc(g->device, xp_ep_group_measure(s, &g->config).group_bytes, "ep",
                               &g->memory);
    g->tile_counts = calloc((size_t)s->n_slots, sizeof *g->tile_counts);
    g->targets = calloc((size_t)s->n_slots, sizeof *g->targets);
    g->sums = calloc((size_t)s->n_slots, sizeof *g->sums);
    if (!g->tile_counts || !g->targets || !g->sums)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(xp_device_alloc(g->device, scratch, "ep", &g->memory));
    for (int i = 0; i < s->n_slots; i++) {
        g->tile_counts[i] = (int32_t *)((char *)g->memory + each * (size_t)i);
        g->targets[i] = calloc((size_t)s->n_ranks, sizeof *g->targets[i]);
        if (!g->targets[i])
            return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    }
    return g->device_ops ? g->device_ops->create(g) : g->ops->create(g);
}

xp_status xp_ep_group_create(xp_comm *comm, xp_device *device, const xp_ep_config *config,
                             xp_ep_group **group) {
    if (!device || !config || !group)
        return xp_error(XP_EINVAL, "xp_ep_group_create: device, config and group must not be NULL");
    bool counting = xp_device_get_kind(device) == XP_DEVICE_NULL;
    int n_ranks = comm ? xp_comm_size(comm) : config->n_ranks > 0 ? config->n_ranks : 1;
    if (!comm && n_ranks > 1 && !counting)
        return xp_error(XP_EINVAL,
                        "xp_ep_group_create: %d ranks need a communicator (only the null device "
                        "counts without)",
                        n_ranks);
    if (comm && config->n_ranks > 0 && config->n_ranks != n_ranks)
        return xp_error(XP_EINVAL,
                        "xp_ep_group_create: the config says %d ranks, the communicator has %d",
                        config->n_ranks, n_ranks);
    xp_ep_group *g = calloc(1, sizeof *g);
    if (!g)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    g->comm = comm;
    g->device = device;
    g->config = *config;
    g->rank = comm ? xp_comm_rank(comm) : 0;
    g->timeout_s = config->timeout_s > 0 ? config->timeout_s : comm ? xp_comm_timeout(comm) : 1.0;
    xp_status status = XP_OK;
    XP_TRY_GOTO(status, xp_ep_shape_make(config, n_ranks, &g->shape), fail);
    XP_TRY_GOTO(status, choose_transport(g), fail);
    XP_TRY_GOTO(status, xp_ep_device_ops_get(device, &g->device_ops), fail);
    g->kernels = &xp_ep_cpu_kernels; /* not run where the device has its own table */
    g->ops = ops_of(g->transport, n_ranks);
    XP_TRY_GOTO(status, reserve(g), fail);
    *group = g;
    return XP_OK;
fail:
    xp_ep_group_destroy(g);
    return status;
}

void xp_ep_group_destroy(xp_ep_group *group) {
    if (!group)
        return;
    if (group->device_ops)
        group->device_ops->stop(group);
    if (group->ops)
        group->ops->destroy(group);
    if (group->device_ops)
        group->device_ops->destroy(group);
    for (int i = 0; i < group->shape.n_slots && group->targets; i++)
        free(group->targets[i]);
    free(group->targets);
    free(group->tile_counts);
    free(group->sums);
    xp_device_free(group->device, group->memory);
    free(group);
}

xp_ep_sizes xp_ep_group_sizes(const xp_ep_group *group) {
    return xp_ep_group_measure(&group->shape, &group->config);
}

int xp_ep_group_rank(const xp_ep_group *group) {
    return group->rank;
}

int xp_ep_group_n_ranks(const xp_ep_group *group) {
    return group->shape.n_ranks;
}

xp_ep_transport xp_ep_group_transport(const xp_ep_group *group) {
    return group->transport;
}

bool xp_ep_group_is_local(const xp_ep_group *group) {
    return group->shape.local;
}

void xp_ep_group_stop_words(const xp_ep_group *group, const int32_t *words[2]) {
    words[0] = words[1] = NULL;
    if (group->device_ops)
        group->device_ops->stop_words(group, words);
}

xp_status xp_ep_async_error(const xp_ep_group *group) {
    if (group->device_ops)
        XP_TRY(group->device_ops->async_error(group));
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
    if (group->device_ops)
        group->device_ops->add_stats(group, stats);
}

void xp_ep_reset_stats(xp_ep_group *group) {
    xp_ep_totals *t = &group->totals;
    _Atomic int64_t *const all[] = {
        &t->bytes_sent_remote, &t->bytes_kept,    &t->n_dispatches, &t->n_combines,
        &t->n_host_waits,      &t->overflow_rows, &t->wait_ns};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        atomic_store(all[i], 0);
    if (group->device_ops)
        group->device_ops->reset_stats(group);
}
