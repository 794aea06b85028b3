#include "ep/transport/hierarchical.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"

static void carve(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c, hier_slot *slot) {
    size_t transit = (size_t)n_nodes * (size_t)s->max_tokens,
           in = (size_t)xp_ep_hier_max_in(s, n_nodes);
    size_t counts = (size_t)n_nodes * (size_t)s->max_rounds * sizeof(int32_t);
    xp_ep_mailbox_carve(s, c, &slot->box);
    slot->out = xp_ep_carve(c, (size_t)s->max_send_rows * s->row_bytes);
    slot->transit = xp_ep_carve(c, transit * s->row_bytes);
    slot->fan = xp_ep_carve(c, in * s->row_bytes);
    slot->rows = xp_ep_carve(c, (size_t)s->recv_capacity * s->row_bytes);
    slot->first = xp_ep_carve(c, (transit + 1) * sizeof(int32_t));
    slot->index = xp_ep_carve(c, in * sizeof(int32_t));
    slot->token_mask = xp_ep_carve(c, (size_t)s->max_tokens * sizeof(uint64_t));
    slot->cursor = xp_ep_carve(c, (size_t)s->max_tokens * sizeof(int32_t));
    slot->counts_out = xp_ep_carve(c, counts);
    slot->counts_in = xp_ep_carve(c, counts);
}

static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    hier_slot slot = {0};
    xp_ep_carver carver = {0};
    carve(shape, xp_ep_config_nodes(config), &carver, &slot);
    return carver.used * (size_t)shape->n_slots;
}

hier_slot *xp_ep_hier_slot(const xp_ep_step *step) {
    const hier_state *state = step->group->state;
    return &state->slots[step->plan->slot];
}

/* Give every rank its (node, place); XP_ENOTSUP when the nodes do not have equally many ranks. */
static xp_status find_places(xp_ep_group *group, hier_state *state) {
    int n_ranks = group->shape.n_ranks, n_nodes = xp_comm_n_nodes(group->comm);
    state->n_nodes = n_nodes;
    state->n_places = n_ranks / n_nodes;
    state->rank_at = calloc((size_t)n_ranks, sizeof *state->rank_at);
    state->cross_node = calloc((size_t)n_nodes, sizeof *state->cross_node);
    int *found = calloc((size_t)n_nodes, sizeof *found);
    if (!state->rank_at || !state->cross_node || !found) {
        free(found);
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    }
    bool equal = n_nodes * state->n_places == n_ranks && state->n_places <= 64;
    for (int r = 0; r < n_ranks && equal; r++) {
        int node = xp_comm_node(group->comm, r), place = found[node]++;
        equal = place < state->n_places;
        if (!equal)
            break;
        state->rank_at[node * state->n_places + place] = r;
        if (r == group->rank) {
            state->my_node = node;
            state->my_place = place;
        }
    }
    free(found);
    if (!equal)
        return xp_error(XP_ENOTSUP,
                        "the hierarchical transport needs equally many ranks (at most 64) on each "
                        "node, and this group "
                        "has %d ranks on %d nodes; use transport a2a",
                        n_ranks, n_nodes);
    /* `cross` orders its ranks as the group does, which need not be by node. */
    int n = 0;
    for (int r = 0; r < n_ranks; r++) {
        int node = xp_comm_node(group->comm, r);
        if (state->rank_at[node * state->n_places + state->my_place] == r)
            state->cross_node[n++] = node;
    }
    return XP_OK;
}

static xp_status create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    hier_state *state = calloc(1, sizeof *state);
    group->state = state;
    if (state)
        state->slots = calloc((size_t)s->n_slots, sizeof *state->slots);
    if (!state || !state->slots)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    XP_TRY(find_places(group, state));
    XP_TRY(xp_device_alloc(group->device, measure(s, &group->config), "ep", &state->memory));
    xp_ep_carver carver = {.base = state->memory};
    for (int i = 0; i < s->n_slots; i++) {
        hier_slot *slot = &state->slots[i];
        carve(s, state->n_nodes, &carver, slot);
        memset(slot->token_mask, 0, (size_t)s->max_tokens * sizeof *slot->token_mask);
        XP_TRY(xp_ep_mailbox_open(group, &slot->box));
        XP_TRY(xp_comm_split(group->comm, state->my_node, &slot->node));
        XP_TRY(xp_comm_split(group->comm, state->my_place, &slot->cross));
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
    free(state->rank_at);
    free(state->cross_node);
    free(state->slots);
    free(state);
}

static xp_status share_blocks(const xp_ep_step *step, const int32_t *block) {
    return xp_ep_mailbox_share_blocks(step, &xp_ep_hier_slot(step)->box, block);
}

static void aim_picks(const xp_ep_step *step, xp_ep_pick **targets) {
    xp_ep_mailbox_aim_picks(step, &xp_ep_hier_slot(step)->box, targets);
}

static xp_status share_picks(const xp_ep_step *step, const xp_ep_pick **picks) {
    return xp_ep_mailbox_share_picks(step, &xp_ep_hier_slot(step)->box, picks);
}

static void count_bytes(const xp_ep_step *step, bool stays, int64_t n_bytes) {
    xp_ep_totals *totals = &step->group->totals;
    xp_ep_add(stays ? &totals->bytes_kept : &totals->bytes_sent_remote, n_bytes);
}

static xp_ep_span relay_span(const int32_t *by_round, int n_nodes, int node, int64_t round) {
    const int32_t *at = by_round + round * n_nodes + node;
    return (xp_ep_span){.first = at[0], .n = at[n_nodes] - at[0]};
}

/* Relay rows of this round between this rank's `out` and the `transit` of the ranks with its place.
 */
static xp_status cross_nodes(const xp_ep_step *step, bool home) {
    const hier_state *state = step->group->state;
    const xp_ep_relay *relay = step->plan->relay;
    hier_slot *slot = xp_ep_hier_slot(step);
    int64_t size = (int64_t)step->group->shape.row_bytes;
    for (int c = 0; c < state->n_nodes; c++) {
        int node = state->cross_node[c];
        xp_ep_span out = relay_span(relay->round, state->n_nodes, node, step->round);
        xp_ep_span in = relay_span(relay->in_round, state->n_nodes, node, step->round);
        int64_t in_at = 0; /* transit holds one round, by node */
        for (int before = 0; before < node; before++)
            in_at += relay_span(relay->in_round, state->n_nodes, before, step->round).n;
        if (home)
            xp_ep_mailbox_set(&slot->box, c, in.n * size, in_at * size, out.n * size,
                              out.first * size);
        else
            xp_ep_mailbox_set(&slot->box, c, out.n * size, out.first * size, in.n * size,
                              in_at * size);
        count_bytes(step, node == state->my_node, (home ? in.n : out.n) * size);
    }
    return home ? xp_ep_mailbox_exchange(step, &slot->box, slot->cross, slot->transit, slot->out)
                : xp_ep_mailbox_exchange(step, &slot->box, slot->cross, slot->out, slot->transit);
}

/* How many transit rows of this round place `place` needs. */
static int32_t fan_count(const xp_ep_step *step, int place) {
    const hier_state *state = step->group->state;
    const xp_ep_relay *relay = step->plan->relay;
    int32_t n = 0;
    for (int node = 0; node < state->n_nodes; node++) {
        xp_ep_span rows = relay_span(relay->in_round, state->n_nodes, node, step->round);
        for (int32_t i = rows.first; i < rows.first + rows.n; i++)
            n += (int32_t)(relay->in_mask[i] >> place & 1U);
    }
    return n;
}

/* Recv rows of this round whose sources have `place`. */
static int32_t rows_from_place(const xp_ep_step *step, int place) {
    const hier_state *state = step->group->state;
    int32_t n = 0;
    for (int node = 0; node < state->n_nodes; node++)
        n += xp_ep_plan_recv_rows(step->plan, state->rank_at[node * state->n_places + place],
                                  step->round)
                 .n;
    return n;
}

/* Between the `fan` of the ranks of this node and their `rows`. */
static xp_status cross_places(const xp_ep_step *step, bool home) {
    const hier_state *state = step->group->state;
    hier_slot *slot = xp_ep_hier_slot(step);
    int64_t size = (int64_t)step->group->shape.row_bytes, fan_at = 0, rows_at = 0;
    for (int place = 0; place < state->n_places; place++) {
        int64_t fan = fan_count(step, place) * size, rows = rows_from_place(step, place) * size;
        if (home)
            xp_ep_mailbox_set(&slot->box, place, rows, rows_at, fan, fan_at);
        else
            xp_ep_mailbox_set(&slot->box, place, fan, fan_at, rows, rows_at);
        count_bytes(step, place == state->my_place, home ? rows : fan);
        fan_at += fan;
        rows_at += rows;
    }
    return home ? xp_ep_mailbox_exchange(step, &slot->box, slot->node, slot->rows, slot->fan)
                : xp_ep_mailbox_exchange(step, &slot->box, slot->node, slot->fan, slot->rows);
}

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    const xp_ep_group *group = step->group;
    const hier_state *state = group->state;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_relay *relay = plan->relay;
    hier_slot *slot = xp_ep_hier_slot(step);
    size_t row_bytes = group->shape.row_bytes;
    for (int node = 0; node < state->n_nodes; node++) {
        xp_ep_span rows = relay_span(relay->round, state->n_nodes, node, step->round);
        group->kernels->copy_rows(
            step->stream, &(xp_ep_copy_args){.n_rows = rows.n,
                                             .row_bytes = row_bytes,
                                             .src = x,
                                             .dst = slot->out + (size_t)rows.first * row_bytes,
                                             .src_index = relay->token + rows.first});
    }
    XP_TRY(cross_nodes(step, false));
    int32_t n_fan = 0;
    for (int place = 0; place < state->n_places; place++) {
        int32_t at = 0;
        for (int node = 0; node < state->n_nodes; node++) {
            xp_ep_span rows = relay_span(relay->in_round, state->n_nodes, node, step->round);
            for (int32_t i = rows.first; i < rows.first + rows.n; i++, at++) {
                if (relay->in_mask[i] >> place & 1U)
                    slot->index[n_fan++] = at;
            }
        }
    }
    group->kernels->copy_rows(step->stream, &(xp_ep_copy_args){.n_rows = n_fan,
                                                               .row_bytes = row_bytes,
                                                               .dst = slot->fan,
                                                               .src = slot->transit,
                                                               .src_index = slot->index});
    XP_TRY(cross_places(step, false));
    const char *from = slot->rows;
    for (int place = 0; place < state->n_places; place++) {
        for (int node = 0; node < state->n_nodes; node++) {
            int source = state->rank_at[node * state->n_places + place];
            xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, step->round);
            size_t to = (size_t)(rows.first - plan->round_row[step->round]) * row_bytes;
            group->kernels->copy_rows(step->stream, &(xp_ep_copy_args){.n_rows = rows.n,
                                                                       .row_bytes = row_bytes,
                                                                       .dst = (char *)recv + to,
                                                                       .src = from});
            from += (size_t)rows.n * row_bytes;
        }
    }
    return XP_OK;
}

/* Add what the ranks of this node answered for each transit row, ascending place; the rows of a
 * place lie together in fan. */
static void sum_node(const xp_ep_step *step) {
    const xp_ep_group *group = step->group;
    const hier_state *state = group->state;
    const xp_ep_relay *relay = step->plan->relay;
    hier_slot *slot = xp_ep_hier_slot(step);
    int32_t cursor[64], n_transit = 0, n = 0;
    cursor[0] = 0;
    for (int place = 0; place + 1 < state->n_places; place++)
        cursor[place + 1] = cursor[place] + fan_count(step, place);
    for (int node = 0; node < state->n_nodes; node++) {
        xp_ep_span rows = relay_span(relay->in_round, state->n_nodes, node, step->round);
        for (int32_t i = rows.first; i < rows.first + rows.n; i++) {
            slot->first[n_transit++] = n;
            for (int place = 0; place < state->n_places; place++) {
                if (relay->in_mask[i] >> place & 1U)
                    slot->index[n++] = cursor[place]++;
            }
        }
    }
    slot->first[n_transit] = n;
    group->kernels->reduce_rows(step->stream, &(xp_ep_reduce_args){.n_rows = n_transit,
                                                                   .dim = group->shape.dim,
                                                                   .dtype = group->shape.dtype,
                                                                   .y = slot->fan,
                                                                   .first = slot->first,
                                                                   .pos = slot->index,
                                                                   .dst = slot->transit});
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    const hier_state *state = group->state;
    const xp_ep_plan *plan = step->plan;
    const xp_ep_relay *relay = plan->relay;
    hier_slot *slot = xp_ep_hier_slot(step);
    char *to = slot->rows;
    for (int place = 0; place < state->n_places; place++) {
        for (int node = 0; node < state->n_nodes; node++) {
            xp_ep_reduce_args part = xp_ep_partial_rows(
                step, state->rank_at[node * state->n_places + place], home->y, to);
            group->kernels->reduce_rows(step->stream, &part);
            to += (size_t)part.n_rows * group->shape.row_bytes;
        }
    }
    XP_TRY(cross_places(step, true));
    sum_node(step);
    XP_TRY(cross_nodes(step, true));
    const int32_t *round = relay->round + step->round * state->n_nodes;
    bool rounds = plan->n_rounds > 1;
    group->kernels->sum_rows(step->stream,
                             &(xp_ep_sum_args){.n_tokens = plan->n_tokens,
                                               .dim = group->shape.dim,
                                               .dtype = group->shape.dtype,
                                               .token_first = relay->token_first,
                                               .token_row = relay->token_row,
                                               .row_base = relay->row_base,
                                               .fresh = rounds ? round : NULL,
                                               .seen = rounds ? round + state->n_nodes : NULL,
                                               .n_dests = state->n_nodes,
                                               .write_all = step->round == 0,
                                               .rows = slot->out,
                                               .out = home->out});
    return xp_ep_mailbox_weights(step, &slot->box, home);
}

const xp_ep_transport_ops xp_ep_hierarchical_ops = {
    .name = "hierarchical",
    .measure = measure,
    .create = create,
    .destroy = destroy,
    .share_blocks = share_blocks,
    .aim_picks = aim_picks,
    .share_picks = share_picks,
    .finish_plan = xp_ep_relay_build,
    .dispatch = dispatch,
    .bring_home = bring_home,
};
