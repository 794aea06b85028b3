/* Relay rows of a plan: which token goes to which node in which round, and who there needs it. */
#include <stdlib.h>
#include "comm/provider.h"
#include "ep/transport/hierarchical.h"

int64_t xp_ep_hier_max_in(const xp_ep_shape *s, int n_nodes) {
    int n_places = s->n_ranks / n_nodes;
    return n_nodes * s->max_tokens * (s->top_k < n_places ? s->top_k : n_places);
}

static size_t carve(const xp_ep_shape *s, int n_nodes, char *base, xp_ep_relay *relay) {
    xp_ep_carver c = {.base = base};
    size_t nodes = (size_t)n_nodes, rows = (size_t)s->max_send_rows, tokens = (size_t)s->max_tokens;
    size_t rounds = (size_t)s->max_rounds + 1;
    relay->row_base = xp_ep_carve(&c, (nodes + 1) * sizeof(int32_t));
    relay->round = xp_ep_carve(&c, rounds * nodes * sizeof(int32_t));
    relay->token = xp_ep_carve(&c, rows * sizeof(int32_t));
    relay->mask = xp_ep_carve(&c, rows * sizeof(uint64_t));
    relay->token_first = xp_ep_carve(&c, (tokens + 1) * sizeof(int32_t));
    relay->token_row = xp_ep_carve(&c, rows * sizeof(int32_t));
    relay->in_round = xp_ep_carve(&c, rounds * nodes * sizeof(int32_t));
    relay->in_mask = xp_ep_carve(&c, (size_t)xp_ep_hier_max_in(s, n_nodes) * sizeof(uint64_t));
    return c.used;
}

size_t xp_ep_relay_measure(const xp_ep_shape *shape, int n_nodes) {
    xp_ep_relay relay;
    return carve(shape, n_nodes, NULL, &relay);
}

xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay) {
    int n_nodes = xp_ep_config_nodes(&group->config);
    xp_ep_relay *r = calloc(1, sizeof *r);
    if (!r)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel plan");
    xp_status status = xp_device_alloc(group->device, xp_ep_relay_measure(&group->shape, n_nodes),
                                       "ep", &r->memory);
    if (status != XP_OK) {
        free(r);
        return status;
    }
    carve(&group->shape, n_nodes, r->memory, r);
    *relay = r;
    return XP_OK;
}

void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay) {
    if (!relay)
        return;
    xp_device_free(group->device, relay->memory);
    free(relay);
}

/* Relay rows to one node in one round, from `row` on; returns the row after the last. */
static int32_t collect(const xp_ep_step *step, int node, int64_t round, int32_t row) {
    const xp_ep_plan *plan = step->plan;
    const hier_state *state = step->group->state;
    xp_ep_relay *relay = plan->relay;
    uint64_t *mask = xp_ep_hier_slot(step)->token_mask;
    int64_t low = plan->n_tokens, high = 0;
    for (int place = 0; place < state->n_places; place++) {
        xp_ep_span rows =
            xp_ep_plan_send_rows(plan, state->rank_at[node * state->n_places + place], round);
        for (int32_t i = rows.first; i < rows.first + rows.n; i++)
            mask[plan->send_token[i]] |= (uint64_t)1 << place;
        if (rows.n > 0) { /* tokens ascend inside a span */
            int64_t first = plan->send_token[rows.first],
                    last = plan->send_token[rows.first + rows.n - 1];
            low = first < low ? first : low;
            high = last + 1 > high ? last + 1 : high;
        }
    }
    for (int64_t t = low; t < high; t++) {
        if (mask[t] == 0)
            continue;
        relay->token[row] = (int32_t)t;
        relay->mask[row++] = mask[t];
        mask[t] = 0;
    }
    return row;
}

static void list_by_token(const xp_ep_step *step, int32_t n_rows) {
    xp_ep_relay *relay = step->plan->relay;
    int32_t *cursor = xp_ep_hier_slot(step)->cursor;
    int64_t n_tokens = step->plan->n_tokens;
    for (int64_t t = 0; t < n_tokens; t++)
        cursor[t] = 0;
    for (int32_t i = 0; i < n_rows; i++)
        cursor[relay->token[i]]++;
    relay->token_first[0] = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        relay->token_first[t + 1] = relay->token_first[t] + cursor[t];
        cursor[t] = relay->token_first[t];
    }
    for (int32_t i = 0; i < n_rows; i++)
        relay->token_row[cursor[relay->token[i]]++] = i;
}

/* Tell the ranks with this place on the other nodes how many relay rows come, and whom they are
 * for. */
static xp_status announce(const xp_ep_step *step) {
    const hier_state *state = step->group->state;
    hier_slot *slot = xp_ep_hier_slot(step);
    xp_ep_relay *relay = step->plan->relay;
    int64_t rounds = step->plan->n_rounds;
    int n_nodes = state->n_nodes;
    for (int c = 0; c < n_nodes; c++) {
        for (int64_t r = 0; r < rounds; r++) {
            const int32_t *at = relay->round + r * n_nodes + state->cross_node[c];
            slot->counts_out[c * rounds + r] = at[n_nodes] - at[0];
        }
    }
    xp_comm_set_phase(slot->cross, step->phase);
    XP_TRY(xp_comm_all_to_all(slot->cross, slot->counts_out, slot->counts_in,
                              rounds * (int64_t)sizeof(int32_t), NULL));
    int32_t row = 0;
    for (int node = 0; node < n_nodes; node++) {
        for (int c = 0; c < n_nodes; c++) {
            for (int64_t r = 0; r <= rounds && state->cross_node[c] == node; r++) {
                relay->in_round[r * n_nodes + node] = row;
                row += r < rounds ? slot->counts_in[c * rounds + r] : 0;
            }
        }
    }
    const int64_t size = sizeof(uint64_t);
    for (int c = 0; c < n_nodes; c++) {
        int node = state->cross_node[c];
        int64_t out = relay->row_base[node], in = relay->in_round[node];
        xp_ep_mailbox_set(&slot->box, c, (relay->row_base[node + 1] - out) * size, out * size,
                          (relay->in_round[rounds * n_nodes + node] - in) * size, in * size);
    }
    return xp_ep_mailbox_exchange(step, &slot->box, slot->cross, relay->mask, relay->in_mask);
}

xp_status xp_ep_relay_build(const xp_ep_step *step) {
    const hier_state *state = step->group->state;
    xp_ep_relay *relay = step->plan->relay;
    int64_t rounds = step->plan->n_rounds;
    int32_t row = 0;
    for (int node = 0; node < state->n_nodes; node++) {
        relay->row_base[node] = row;
        for (int64_t r = 0; r < rounds; r++) {
            relay->round[r * state->n_nodes + node] = row;
            row = collect(step, node, r, row);
        }
        relay->round[rounds * state->n_nodes + node] = row;
    }
    relay->row_base[state->n_nodes] = row;
    list_by_token(step, row);
    return announce(step);
}
