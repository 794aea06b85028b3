#include "ep/hierarchical/state.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"

static int nodes_of(const xp_ep_config *config) {
    return config->n_nodes > 0 ? config->n_nodes : 1;
}

static size_t longest_rows(const xp_ep_shape *s, int n_nodes) {
    const int64_t each[] = {s->max_send_rows, n_nodes * s->max_tokens,
                            xp_ep_forwarding_max_in(s, n_nodes), s->recv_capacity};
    int64_t most = 0;
    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++)
        most = each[i] > most ? each[i] : most;
    return (size_t)most;
}

/* `host` is the same carver where the device's memory is the host's. */
static void carve(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c, xp_ep_carver *host,
                  hier_slot *slot) {
    const size_t forward = (size_t)n_nodes * (size_t)s->max_tokens,
                 in = (size_t)xp_ep_forwarding_max_in(s, n_nodes);
    const size_t counts = (size_t)n_nodes * (size_t)s->max_rounds * sizeof(int32_t);
    xp_ep_metadata_carve(s, c, &slot->metadata);
    slot->send_rows = xp_ep_carve(c, (size_t)s->max_send_rows * s->row_bytes);
    slot->forward_rows = xp_ep_carve(c, forward * s->row_bytes);
    slot->fan_out_rows = xp_ep_carve(c, in * s->row_bytes);
    slot->recv_rows = xp_ep_carve(c, (size_t)s->recv_capacity * s->row_bytes);
    slot->copies =
        s->send_copies > 1 ? xp_ep_carve(c, longest_rows(s, n_nodes) * s->row_bytes) : NULL;
    slot->token_mask = xp_ep_carve(host, (size_t)s->max_tokens * sizeof(uint64_t));
    slot->cursor = xp_ep_carve(host, (size_t)s->max_tokens * sizeof(int32_t));
    slot->counts_out = xp_ep_carve(host, counts);
    slot->counts_in = xp_ep_carve(host, counts);
    xp_ep_exchange_carve(host, s->n_ranks, &slot->exchange);
}

/* Device bytes of all slots. @param[out] host_bytes  page-locked ones, on a GPU */
static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config, size_t *host_bytes) {
    hier_slot slot = {0};
    xp_ep_carver carver = {0}, host = {0};
    carve(shape, nodes_of(config), &carver, config->on_gpu ? &host : &carver, &slot);
    *host_bytes = host.used * (size_t)shape->n_slots;
    return carver.used * (size_t)shape->n_slots;
}

size_t xp_ep_hier_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    size_t host_bytes;
    return measure(shape, config, &host_bytes);
}

size_t xp_ep_hier_comm_bytes(const xp_ep_config *config, int n_ranks) {
    const int n_nodes = nodes_of(config), n_local_ranks = n_ranks / n_nodes;
    size_t n_bytes = xp_comm_device_bytes(n_ranks, XP_EP_A2A_PIECE_BYTES);
    if (n_local_ranks > 1)
        n_bytes += xp_comm_device_bytes(n_local_ranks, XP_EP_A2A_PIECE_BYTES);
    if (n_nodes > 1)
        n_bytes += xp_comm_device_bytes(n_nodes, XP_EP_A2A_PIECE_BYTES);
    return n_bytes;
}

/* The group's ranks by (node, local rank); false when the nodes do not have equally many. */
static bool fill_grid(const xp_ep_group *group, xp_ep_node_grid *grid, int *n_found) {
    const int n_ranks = group->shape.n_ranks;
    if (grid->n_nodes * grid->n_local_ranks != n_ranks ||
        grid->n_local_ranks > XP_EP_MAX_LOCAL_RANKS)
        return false;
    for (int r = 0; r < n_ranks; r++) {
        const int node = xp_comm_node(group->comm, r), local_rank = n_found[node]++;
        if (local_rank >= grid->n_local_ranks)
            return false;
        grid->rank_at[node * grid->n_local_ranks + local_rank] = r;
        if (r == group->rank) {
            grid->my_node = node;
            grid->my_local_rank = local_rank;
        }
    }
    return true;
}

static xp_status create_grid(const xp_ep_group *group, xp_ep_node_grid *grid) {
    const int n_ranks = group->shape.n_ranks, n_nodes = xp_comm_n_nodes(group->comm);
    grid->n_nodes = n_nodes;
    grid->n_local_ranks = n_ranks / n_nodes;
    grid->rank_at = calloc((size_t)n_ranks, sizeof *grid->rank_at);
    grid->inter_node_order = calloc((size_t)n_nodes, sizeof *grid->inter_node_order);
    int *n_found = calloc((size_t)n_nodes, sizeof *n_found);
    if (!grid->rank_at || !grid->inter_node_order || !n_found) {
        free(n_found);
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    }
    const bool equal = fill_grid(group, grid, n_found);
    free(n_found);
    if (!equal)
        return xp_error(XP_ENOTSUP,
                        "the hierarchical transport needs equally many ranks (at most %d) on each "
                        "node, and this group has %d ranks on %d nodes; use transport a2a",
                        XP_EP_MAX_LOCAL_RANKS, n_ranks, n_nodes);
    /* The inter-node communicator orders its ranks as the group does, which need not be by node. */
    int n = 0;
    for (int r = 0; r < n_ranks; r++) {
        const int node = xp_comm_node(group->comm, r);
        if (grid->rank_at[node * grid->n_local_ranks + grid->my_local_rank] == r)
            grid->inter_node_order[n++] = node;
    }
    return XP_OK;
}

static xp_status reserve(xp_ep_group *group, hier_state *state) {
    const xp_ep_shape *s = &group->shape;
    size_t host_bytes, n_bytes = measure(s, &group->config, &host_bytes);
    XP_TRY(xp_device_alloc(group->device, n_bytes, "ep", &state->memory));
    if (group->config.on_gpu)
        XP_TRY(xp_host_alloc(group->device, host_bytes, "ep", &state->host_memory));
    xp_ep_carver carver = {.base = state->memory}, host = {.base = state->host_memory};
    for (int i = 0; i < s->n_slots; i++) {
        hier_slot *slot = &state->slots[i];
        carve(s, state->grid.n_nodes, &carver, group->config.on_gpu ? &host : &carver, slot);
        memset(slot->token_mask, 0, (size_t)s->max_tokens * sizeof *slot->token_mask);
    }
    return XP_OK;
}

/* A communicator of the ranks with equal `color`, ready for rows. */
static xp_status open_comm(xp_ep_group *group, int color, xp_comm **comm) {
    XP_TRY(xp_comm_split(group->comm, color, comm));
    return xp_comm_prepare(*comm, group->device, XP_EP_A2A_PIECE_BYTES);
}

xp_status xp_ep_hier_state_create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    hier_state *state = calloc(1, sizeof *state);
    group->transport_state = state;
    if (state)
        state->slots = calloc((size_t)s->n_slots, sizeof *state->slots);
    if (!state || !state->slots)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(create_grid(group, &state->grid));
    XP_TRY(reserve(group, state));
    for (int i = 0; i < s->n_slots; i++) {
        hier_slot *slot = &state->slots[i];
        XP_TRY(xp_ep_metadata_open(group, &slot->metadata));
        XP_TRY(open_comm(group, state->grid.my_node, &slot->intra_node));
        XP_TRY(open_comm(group, state->grid.my_local_rank, &slot->inter_node));
    }
    return XP_OK;
}

void xp_ep_hier_state_destroy(xp_ep_group *group) {
    hier_state *state = group->transport_state;
    if (!state)
        return;
    for (int i = 0; i < group->shape.n_slots && state->slots; i++) {
        xp_ep_metadata_close(&state->slots[i].metadata);
        xp_comm_destroy(state->slots[i].intra_node);
        xp_comm_destroy(state->slots[i].inter_node);
    }
    xp_device_free(group->device, state->memory);
    xp_host_free(group->device, state->host_memory);
    free(state->grid.rank_at);
    free(state->grid.inter_node_order);
    free(state->slots);
    free(state);
    group->transport_state = NULL;
}
