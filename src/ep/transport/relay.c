/* Relay rows of a plan: their memory, and what the ranks with a place tell each other of them. */
#include <stdlib.h>
#include "comm/provider.h"
#include "ep/transport/hierarchical.h"

static int32_t *carve_ints(xp_ep_carver *carver, int64_t n) {
    return xp_ep_carve(carver, (size_t)n * sizeof(int32_t));
}

/* What kernels read. */
static void carve_read(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c, xp_ep_relay_lists *l) {
    const int64_t max_in = xp_ep_relay_max_in(s, n_nodes);
    l->row_base = carve_ints(c, n_nodes + 1);
    l->round = carve_ints(c, (s->max_rounds + 1) * n_nodes);
    l->token = carve_ints(c, s->max_send_rows);
    l->token_first = carve_ints(c, s->max_tokens + 1);
    l->token_row = carve_ints(c, s->max_send_rows);
    l->fan = carve_ints(c, max_in);
    l->sum_first = carve_ints(c, max_in + 1);
    l->sum_row = carve_ints(c, max_in);
}

static void carve_rest(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c, xp_ep_relay_lists *l) {
    const int n_places = s->n_ranks / n_nodes;
    const size_t max_in = (size_t)xp_ep_relay_max_in(s, n_nodes);
    l->mask = xp_ep_carve(c, (size_t)s->max_send_rows * sizeof *l->mask);
    l->in_round = carve_ints(c, (s->max_rounds + 1) * n_nodes);
    l->in_mask = xp_ep_carve(c, max_in * sizeof *l->in_mask);
    l->transit_at = carve_ints(c, s->max_rounds + 1);
    l->fan_at = carve_ints(c, s->max_rounds * (n_places + 1));
    l->rows_at = carve_ints(c, s->max_rounds * (s->n_ranks + 1));
}

static void carve_fetched(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_relay *relay) {
    relay->send_token = carve_ints(c, s->max_send_rows);
    relay->send_round = carve_ints(c, (s->max_rounds + 1) * s->n_ranks);
    relay->recv_row_base = carve_ints(c, s->n_ranks + 1);
    relay->round_row = carve_ints(c, s->max_rounds + 1);
}

/* Device memory, which on a CPU is the host's. */
static size_t carve_device(const xp_ep_shape *s, const xp_ep_config *config, void *base,
                           xp_ep_relay *relay) {
    const int n_nodes = xp_ep_config_nodes(config);
    xp_ep_carver c = {.base = base};
    carve_read(s, n_nodes, &c, &relay->on_device);
    if (!config->on_gpu) {
        relay->lists = relay->on_device;
        carve_rest(s, n_nodes, &c, &relay->lists);
    }
    return c.used;
}

static size_t carve_host(const xp_ep_shape *s, const xp_ep_config *config, void *base,
                         xp_ep_relay *relay) {
    const int n_nodes = xp_ep_config_nodes(config);
    xp_ep_carver c = {.base = base};
    carve_read(s, n_nodes, &c, &relay->lists);
    carve_rest(s, n_nodes, &c, &relay->lists);
    carve_fetched(s, &c, relay);
    return c.used;
}

size_t xp_ep_relay_measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    xp_ep_relay relay;
    return carve_device(shape, config, NULL, &relay);
}

static xp_status reserve(xp_ep_group *group, xp_ep_relay *r) {
    const xp_ep_shape *s = &group->shape;
    const xp_ep_config *config = &group->config;
    XP_TRY(xp_device_alloc(group->device, xp_ep_relay_measure(s, config), "ep", &r->memory));
    carve_device(s, config, r->memory, r);
    if (!config->on_gpu || xp_device_get_kind(group->device) == XP_DEVICE_NULL)
        return XP_OK;
    XP_TRY(xp_host_alloc(group->device, carve_host(s, config, NULL, r), "ep", &r->host_memory));
    carve_host(s, config, r->host_memory, r);
    return XP_OK;
}

xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay) {
    xp_ep_relay *r = calloc(1, sizeof *r);
    if (!r)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel plan");
    const xp_status status = reserve(group, r);
    if (status != XP_OK) {
        xp_ep_relay_destroy(group, r);
        return status;
    }
    *relay = r;
    return XP_OK;
}

void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay) {
    if (!relay)
        return;
    xp_device_free(group->device, relay->memory);
    xp_host_free(group->device, relay->host_memory);
    free(relay);
}

/* Tell the ranks with this place on the other nodes how many relay rows come, and whom they are
 * for. */
static xp_status announce(const xp_ep_step *step) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    hier_slot *slot = xp_ep_hier_slot(step);
    xp_ep_relay *relay = step->plan->relay;
    xp_ep_relay_lists *lists = &relay->lists;
    xp_ep_relay_count_sends(grid, &relay->plan, lists, slot->counts_out);
    xp_comm_set_phase(slot->cross, step->phase);
    XP_TRY(xp_comm_all_to_all(slot->cross, slot->counts_out, slot->counts_in,
                              relay->plan.n_rounds * (int64_t)sizeof(int32_t), NULL));
    xp_ep_relay_place_arrivals(grid, &relay->plan, slot->counts_in, lists);
    xp_ep_relay_mask_exchange(grid, &relay->plan, lists, &slot->exchange);
    return xp_ep_exchange_run(step, &slot->exchange, slot->cross, lists->mask, lists->in_mask,
                              NULL);
}

xp_status xp_ep_relay_build(const xp_ep_step *step) {
    const xp_ep_relay_grid *grid = &((const hier_state *)step->group->state)->grid;
    hier_slot *slot = xp_ep_hier_slot(step);
    xp_ep_relay *relay = step->plan->relay;
    xp_ep_relay_list_sends(grid, &relay->plan, slot->token_mask, slot->cursor, &relay->lists);
    XP_TRY(announce(step));
    xp_ep_relay_list_arrivals(grid, &relay->plan, &relay->lists);
    return XP_OK;
}

typedef struct upload {
    int32_t *to;
    const int32_t *from;
    int64_t n;
} upload;

/* What kernels read, as far as it is used. */
static xp_status copy_lists(const xp_ep_step *step) {
    const xp_ep_relay *relay = step->plan->relay;
    const xp_ep_relay_lists *from = &relay->lists, *to = &relay->on_device;
    const int n_nodes = ((const hier_state *)step->group->state)->grid.n_nodes;
    const int64_t n_rounds = relay->plan.n_rounds;
    const int64_t n_rows = from->row_base[n_nodes], n_transit = from->transit_at[n_rounds],
                  n_fan = from->sum_first[n_transit];
    const upload all[] = {
        {to->row_base, from->row_base, n_nodes + 1},
        {to->round, from->round, (n_rounds + 1) * n_nodes},
        {to->token, from->token, n_rows},
        {to->token_first, from->token_first, relay->plan.n_tokens + 1},
        {to->token_row, from->token_row, n_rows},
        {to->fan, from->fan, n_fan},
        {to->sum_first, from->sum_first, n_transit + 1},
        {to->sum_row, from->sum_row, n_fan},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        XP_TRY(xp_copy(step->stream, all[i].to, all[i].from, (size_t)all[i].n * sizeof(int32_t)));
    return XP_OK;
}

xp_status xp_ep_relay_build_fetched(const xp_ep_step *step, const int32_t *blocks) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    xp_ep_relay *relay = plan->relay;
    if (plan->n_rounds > 1)
        xp_ep_relay_recv_base(&group->shape, group->rank, blocks, relay->recv_row_base);
    else
        xp_ep_relay_one_round(&group->shape, group->rank, blocks, relay->send_round,
                              relay->recv_row_base, relay->round_row);
    relay->plan = (xp_ep_relay_plan){.n_tokens = plan->n_tokens,
                                     .n_rounds = plan->n_rounds,
                                     .send_token = relay->send_token,
                                     .send_round = relay->send_round,
                                     .recv_row_base = relay->recv_row_base,
                                     .round_row = relay->round_row};
    XP_TRY(xp_ep_relay_build(step));
    return copy_lists(step);
}
