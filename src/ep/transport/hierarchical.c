#include "ep/transport/hierarchical.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"

/* `host` is the same carver where the device's memory is the host's. */
static void carve(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c, xp_ep_carver *host,
                  hier_slot *slot) {
    size_t transit = (size_t)n_nodes * (size_t)s->max_tokens,
           in = (size_t)xp_ep_relay_max_in(s, n_nodes);
    size_t counts = (size_t)n_nodes * (size_t)s->max_rounds * sizeof(int32_t);
    xp_ep_mailbox_carve(s, c, &slot->box);
    slot->out = xp_ep_carve(c, (size_t)s->max_send_rows * s->row_bytes);
    slot->transit = xp_ep_carve(c, transit * s->row_bytes);
    slot->fan = xp_ep_carve(c, in * s->row_bytes);
    slot->rows = xp_ep_carve(c, (size_t)s->recv_capacity * s->row_bytes);
    slot->token_mask = xp_ep_carve(host, (size_t)s->max_tokens * sizeof(uint64_t));
    slot->cursor = xp_ep_carve(host, (size_t)s->max_tokens * sizeof(int32_t));
    slot->counts_out = xp_ep_carve(host, counts);
    slot->counts_in = xp_ep_carve(host, counts);
    xp_ep_exchange_carve(host, s->n_ranks, &slot->exchange);
}

/* Device bytes of all slots. @param[out] host_bytes  page-locked ones, on a GPU */
static size_t measure_both(const xp_ep_shape *shape, const xp_ep_config *config,
                           size_t *host_bytes) {
    hier_slot slot = {0};
    xp_ep_carver carver = {0}, host = {0};
    carve(shape, xp_ep_config_nodes(config), &carver, config->on_gpu ? &host : &carver, &slot);
    *host_bytes = host.used * (size_t)shape->n_slots;
    return carver.used * (size_t)shape->n_slots;
}

static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    size_t host_bytes;
    return measure_both(shape, config, &host_bytes);
}

hier_slot *xp_ep_hier_slot(const xp_ep_step *step) {
    const hier_state *state = step->group->state;
    return &state->slots[step->plan->slot];
}

/* Give every rank its (node, place); XP_ENOTSUP when the nodes do not have equally many ranks. */
static xp_status find_places(xp_ep_group *group, xp_ep_relay_grid *grid) {
    int n_ranks = group->shape.n_ranks, n_nodes = xp_comm_n_nodes(group->comm);
    grid->n_nodes = n_nodes;
    grid->n_places = n_ranks / n_nodes;
    grid->rank_at = calloc((size_t)n_ranks, sizeof *grid->rank_at);
    grid->cross_node = calloc((size_t)n_nodes, sizeof *grid->cross_node);
    int *found = calloc((size_t)n_nodes, sizeof *found);
    if (!grid->rank_at || !grid->cross_node || !found) {
        free(found);
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    }
    bool equal = n_nodes * grid->n_places == n_ranks && grid->n_places <= XP_EP_MAX_PLACES;
    for (int r = 0; r < n_ranks && equal; r++) {
        int node = xp_comm_node(group->comm, r), place = found[node]++;
        equal = place < grid->n_places;
        if (!equal)
            break;
        grid->rank_at[node * grid->n_places + place] = r;
        if (r == group->rank) {
            grid->my_node = node;
            grid->my_place = place;
        }
    }
    free(found);
    if (!equal)
        return xp_error(XP_ENOTSUP,
                        "the hierarchical transport needs equally many ranks (at most %d) on each "
                        "node, and this group has %d ranks on %d nodes; use transport a2a",
                        XP_EP_MAX_PLACES, n_ranks, n_nodes);
    /* `cross` orders its ranks as the group does, which need not be by node. */
    int n = 0;
    for (int r = 0; r < n_ranks; r++) {
        int node = xp_comm_node(group->comm, r);
        if (grid->rank_at[node * grid->n_places + grid->my_place] == r)
            grid->cross_node[n++] = node;
    }
    return XP_OK;
}

static xp_status reserve(xp_ep_group *group, hier_state *state) {
    const xp_ep_shape *s = &group->shape;
    size_t host_bytes, n_bytes = measure_both(s, &group->config, &host_bytes);
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

static xp_status create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    hier_state *state = calloc(1, sizeof *state);
    group->state = state;
    if (state)
        state->slots = calloc((size_t)s->n_slots, sizeof *state->slots);
    if (!state || !state->slots)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(find_places(group, &state->grid));
    XP_TRY(reserve(group, state));
    for (int i = 0; i < s->n_slots; i++) {
        hier_slot *slot = &state->slots[i];
        XP_TRY(xp_ep_mailbox_open(group, &slot->box));
        XP_TRY(open_comm(group, state->grid.my_node, &slot->node));
        XP_TRY(open_comm(group, state->grid.my_place, &slot->cross));
    }
    return XP_OK;
}

static void destroy(xp_ep_group *group) {
    hier_state *state = group->state;
    if (!state)
        return;
    for (int i = 0; i < group->shape.n_slots && state->slots; i++) {
        xp_ep_mailbox_close(&state->slots[i].box);
        xp_comm_destroy(state->slots[i].node);
        xp_comm_destroy(state->slots[i].cross);
    }
    xp_device_free(group->device, state->memory);
    xp_host_free(group->device, state->host_memory);
    free(state->grid.rank_at);
    free(state->grid.cross_node);
    free(state->slots);
    free(state);
}

static xp_status share_blocks(const xp_ep_step *step, const int32_t *block) {
    return xp_ep_mailbox_share_blocks(step, &xp_ep_hier_slot(step)->box, block);
}

static void aim_assignments(const xp_ep_step *step, xp_ep_assignment **targets) {
    xp_ep_mailbox_aim_assignments(step, &xp_ep_hier_slot(step)->box, targets);
}

static xp_status share_assignments(const xp_ep_step *step, const xp_ep_assignment **assignments) {
    return xp_ep_mailbox_share_assignments(step, &xp_ep_hier_slot(step)->box, assignments);
}

/* The host's plan is all there: the lists follow from it. */
static xp_status finish_plan(const xp_ep_step *step) {
    const xp_ep_plan *plan = step->plan;
    plan->relay->plan = (xp_ep_relay_plan){.n_tokens = plan->n_tokens,
                                           .n_rounds = plan->n_rounds,
                                           .send_token = plan->send_token,
                                           .send_round = plan->send_round,
                                           .recv_row_base = plan->recv_row_base,
                                           .round_row = plan->round_row};
    return xp_ep_relay_build(step);
}

/* ---- rows -------------------------------------------------------------------------------- */

static void count_bytes(const xp_ep_step *step, bool stays, int64_t n_bytes) {
    xp_ep_totals *totals = &step->group->totals;
    xp_ep_add(stays ? &totals->bytes_kept : &totals->bytes_sent_remote, n_bytes);
}

static xp_stream *exchange_stream(const xp_ep_step *step, const xp_ep_hier_moves *moves) {
    return moves->on_stream ? step->stream : NULL;
}

/* Relay rows of this round between this rank's `out` and the `transit` of the ranks with its place.
 */
static xp_status cross_nodes(const xp_ep_step *step, const xp_ep_hier_moves *moves, bool home) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    hier_slot *slot = xp_ep_hier_slot(step);
    const xp_ep_exchange *exchange = &slot->exchange;
    xp_ep_relay_node_exchange(grid, &step->plan->relay->lists, step->round, home,
                              (int64_t)step->group->shape.row_bytes, exchange);
    for (int c = 0; c < grid->n_nodes; c++)
        count_bytes(step, grid->cross_node[c] == grid->my_node, exchange->send_bytes[c]);
    return xp_ep_exchange_run(step, exchange, slot->cross, home ? slot->transit : slot->out,
                              home ? slot->out : slot->transit, exchange_stream(step, moves));
}

/* Between the `fan` of the ranks of this node and their `rows`. */
static xp_status cross_places(const xp_ep_step *step, const xp_ep_hier_moves *moves, bool home) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    hier_slot *slot = xp_ep_hier_slot(step);
    const xp_ep_exchange *exchange = &slot->exchange;
    xp_ep_relay_place_exchange(grid, &step->plan->relay->lists, step->round, home,
                               (int64_t)step->group->shape.row_bytes, exchange);
    for (int place = 0; place < grid->n_places; place++)
        count_bytes(step, place == grid->my_place, exchange->send_bytes[place]);
    return xp_ep_exchange_run(step, exchange, slot->node, home ? slot->rows : slot->fan,
                              home ? slot->fan : slot->rows, exchange_stream(step, moves));
}

/* Token rows into `out`, one for each node that wants them in this round. */
static xp_status pack(const xp_ep_step *step, const xp_ep_hier_moves *moves, const void *x) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    const xp_ep_relay *relay = step->plan->relay;
    const size_t row_bytes = step->group->shape.row_bytes;
    for (int node = 0; node < grid->n_nodes; node++) {
        const xp_ep_span rows = xp_ep_relay_out(grid, &relay->lists, node, step->round);
        XP_TRY(moves->copy_rows(
            step,
            &(xp_ep_copy_args){.n_rows = rows.n,
                               .row_bytes = row_bytes,
                               .src = x,
                               .dst = xp_ep_hier_slot(step)->out + (size_t)rows.first * row_bytes,
                               .src_index = relay->on_device.token + rows.first}));
    }
    return XP_OK;
}

/* Transit rows into `fan`. */
static xp_status fan_out(const xp_ep_step *step, const xp_ep_hier_moves *moves) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    const xp_ep_relay *relay = step->plan->relay;
    const hier_slot *slot = xp_ep_hier_slot(step);
    const int32_t *at = relay->lists.fan_at + step->round * (grid->n_places + 1);
    return moves->copy_rows(step, &(xp_ep_copy_args){.n_rows = at[grid->n_places] - at[0],
                                                     .row_bytes = step->group->shape.row_bytes,
                                                     .dst = slot->fan,
                                                     .src = slot->transit,
                                                     .src_index = relay->on_device.fan + at[0]});
}

/* `rows` into the order of the plan. */
static xp_status unpack(const xp_ep_step *step, const xp_ep_hier_moves *moves, void *recv) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    const xp_ep_relay_plan *plan = &step->plan->relay->plan;
    const size_t row_bytes = step->group->shape.row_bytes;
    const char *from = xp_ep_hier_slot(step)->rows;
    for (int place = 0; place < grid->n_places; place++) {
        for (int node = 0; node < grid->n_nodes; node++) {
            const int source = grid->rank_at[node * grid->n_places + place];
            const xp_ep_span rows = xp_ep_relay_recv(plan, source, step->round);
            const size_t to = (size_t)(rows.first - plan->round_row[step->round]) * row_bytes;
            XP_TRY(moves->copy_rows(step, &(xp_ep_copy_args){.n_rows = rows.n,
                                                             .row_bytes = row_bytes,
                                                             .dst = (char *)recv + to,
                                                             .src = from}));
            from += (size_t)rows.n * row_bytes;
        }
    }
    return XP_OK;
}

xp_status xp_ep_hier_dispatch(const xp_ep_step *step, const xp_ep_hier_moves *moves, const void *x,
                              void *recv) {
    XP_TRY(pack(step, moves, x));
    XP_TRY(cross_nodes(step, moves, false));
    XP_TRY(fan_out(step, moves));
    XP_TRY(cross_places(step, moves, false));
    return unpack(step, moves, recv);
}

/* First-level sums of this rank's recv rows into `rows`. */
static xp_status sum_assignments(const xp_ep_step *step, const xp_ep_hier_moves *moves,
                                 const void *y) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &step->group->shape;
    char *to = xp_ep_hier_slot(step)->rows;
    for (int place = 0; place < grid->n_places; place++) {
        for (int node = 0; node < grid->n_nodes; node++) {
            const int source = grid->rank_at[node * grid->n_places + place];
            const xp_ep_span rows = xp_ep_relay_recv(&plan->relay->plan, source, step->round);
            XP_TRY(moves->reduce_rows(
                step, &(xp_ep_reduce_args){.n_rows = rows.n,
                                           .dim = s->dim,
                                           .dtype = s->dtype,
                                           .y = y,
                                           .first = plan->recv_assignment + rows.first,
                                           .pos = plan->assignment_pos,
                                           .dst = to}));
            to += (size_t)rows.n * s->row_bytes;
        }
    }
    return XP_OK;
}

/* Add what the ranks of this node answered for each transit row, ascending place. */
static xp_status sum_node(const xp_ep_step *step, const xp_ep_hier_moves *moves) {
    const xp_ep_relay *relay = step->plan->relay;
    const xp_ep_shape *s = &step->group->shape;
    const hier_slot *slot = xp_ep_hier_slot(step);
    const int32_t *at = relay->lists.transit_at + step->round;
    return moves->reduce_rows(step,
                              &(xp_ep_reduce_args){.n_rows = at[1] - at[0],
                                                   .dim = s->dim,
                                                   .dtype = s->dtype,
                                                   .y = slot->fan,
                                                   .first = relay->on_device.sum_first + at[0],
                                                   .pos = relay->on_device.sum_row,
                                                   .dst = slot->transit});
}

/* Add the nodes' rows of each token. */
static xp_status sum_nodes(const xp_ep_step *step, const xp_ep_hier_moves *moves, void *out) {
    const xp_ep_relay_lists *lists = &step->plan->relay->on_device;
    const xp_ep_shape *s = &step->group->shape;
    const int n_nodes = ((const hier_state *)step->group->state)->grid.n_nodes;
    const int32_t *round = lists->round + step->round * n_nodes;
    const bool rounds = step->plan->n_rounds > 1;
    return moves->sum_rows(step, &(xp_ep_sum_args){.n_tokens = step->plan->n_tokens,
                                                   .dim = s->dim,
                                                   .dtype = s->dtype,
                                                   .token_first = lists->token_first,
                                                   .token_row = lists->token_row,
                                                   .row_base = lists->row_base,
                                                   .fresh = rounds ? round : NULL,
                                                   .seen = rounds ? round + n_nodes : NULL,
                                                   .n_dests = n_nodes,
                                                   .write_all = step->round == 0,
                                                   .rows = xp_ep_hier_slot(step)->out,
                                                   .out = out});
}

xp_status xp_ep_hier_bring_home(const xp_ep_step *step, const xp_ep_hier_moves *moves,
                                const xp_ep_home *home) {
    XP_TRY(sum_assignments(step, moves, home->y));
    XP_TRY(cross_places(step, moves, true));
    XP_TRY(sum_node(step, moves));
    /* Rows of earlier rounds lie at other places of `out` and are still there for the sum. */
    XP_TRY(cross_nodes(step, moves, true));
    XP_TRY(sum_nodes(step, moves, home->out));
    return moves->weights(step, &xp_ep_hier_slot(step)->box, home);
}

/* ---- on a CPU ---------------------------------------------------------------------------- */

static xp_status copy_rows(const xp_ep_step *step, const xp_ep_copy_args *args) {
    step->group->kernels->copy_rows(step->stream, args);
    return XP_OK;
}

static xp_status reduce_rows(const xp_ep_step *step, const xp_ep_reduce_args *args) {
    step->group->kernels->reduce_rows(step->stream, args);
    return XP_OK;
}

static xp_status sum_rows(const xp_ep_step *step, const xp_ep_sum_args *args) {
    step->group->kernels->sum_rows(step->stream, args);
    return XP_OK;
}

static const xp_ep_hier_moves host_moves = {.copy_rows = copy_rows,
                                            .reduce_rows = reduce_rows,
                                            .sum_rows = sum_rows,
                                            .weights = xp_ep_mailbox_weights};

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    return xp_ep_hier_dispatch(step, &host_moves, x, recv);
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    return xp_ep_hier_bring_home(step, &host_moves, home);
}

const xp_ep_transport_ops xp_ep_hierarchical_ops = {
    .name = "hierarchical",
    .measure = measure,
    .create = create,
    .destroy = destroy,
    .share_blocks = share_blocks,
    .aim_assignments = aim_assignments,
    .share_assignments = share_assignments,
    .finish_plan = finish_plan,
    .dispatch = dispatch,
    .bring_home = bring_home,
};
