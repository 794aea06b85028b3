#include "ep/hierarchical/forwarding.h"

#include <stdlib.h>
#include "comm/provider.h"

static int nodes_of(const xp_ep_config *config) {
    return config->n_nodes > 0 ? config->n_nodes : 1;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* What kernels read. */
static void carve_read(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c,
                       xp_ep_forwarding_lists *l) {
    const int64_t max_in = xp_ep_forwarding_max_in(s, n_nodes);
    l->row_base = xp_ep_carve_ints(c, n_nodes + 1);
    l->round = xp_ep_carve_ints(c, (s->max_rounds + 1) * n_nodes);
    l->token = xp_ep_carve_ints(c, s->max_send_rows);
    l->token_first = xp_ep_carve_ints(c, s->max_tokens + 1);
    l->token_row = xp_ep_carve_ints(c, s->max_send_rows);
    l->fan_out = xp_ep_carve_ints(c, max_in);
    l->sum_first = xp_ep_carve_ints(c, max_in + 1);
    l->sum_row = xp_ep_carve_ints(c, max_in);
}

static void carve_rest(const xp_ep_shape *s, int n_nodes, xp_ep_carver *c,
                       xp_ep_forwarding_lists *l) {
    const int n_local_ranks = s->n_ranks / n_nodes;
    const size_t max_in = (size_t)xp_ep_forwarding_max_in(s, n_nodes);
    l->mask = xp_ep_carve(c, (size_t)s->max_send_rows * sizeof *l->mask);
    l->in_round = xp_ep_carve_ints(c, (s->max_rounds + 1) * n_nodes);
    l->in_mask = xp_ep_carve(c, max_in * sizeof *l->in_mask);
    l->forward_at = xp_ep_carve_ints(c, s->max_rounds + 1);
    l->fan_out_at = xp_ep_carve_ints(c, s->max_rounds * (n_local_ranks + 1));
    l->recv_at = xp_ep_carve_ints(c, s->max_rounds * (s->n_ranks + 1));
}

static void carve_fetched(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_forwarding *f) {
    f->send_token = xp_ep_carve_ints(c, s->max_send_rows);
    f->send_round = xp_ep_carve_ints(c, (s->max_rounds + 1) * s->n_ranks);
    f->recv_row_base = xp_ep_carve_ints(c, s->n_ranks + 1);
    f->round_row = xp_ep_carve_ints(c, s->max_rounds + 1);
}

/* Device memory, which on a CPU is the host's. */
static size_t carve_device(const xp_ep_shape *s, const xp_ep_config *config, void *base,
                           xp_ep_forwarding *f) {
    const int n_nodes = nodes_of(config);
    xp_ep_carver c = {.base = base};
    carve_read(s, n_nodes, &c, &f->on_device);
    if (!config->on_gpu) {
        f->lists = f->on_device;
        carve_rest(s, n_nodes, &c, &f->lists);
    }
    return c.used;
}

static size_t carve_host(const xp_ep_shape *s, const xp_ep_config *config, void *base,
                         xp_ep_forwarding *f) {
    const int n_nodes = nodes_of(config);
    xp_ep_carver c = {.base = base};
    carve_read(s, n_nodes, &c, &f->lists);
    carve_rest(s, n_nodes, &c, &f->lists);
    carve_fetched(s, &c, f);
    return c.used;
}

size_t xp_ep_forwarding_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    xp_ep_forwarding forwarding;
    return carve_device(shape, config, NULL, &forwarding);
}

size_t xp_ep_hier_plan_bytes(const xp_ep_shape *shape, const xp_ep_config *config) {
    return xp_ep_plan_bytes(shape, config) + xp_ep_forwarding_bytes(shape, config);
}

xp_status xp_ep_forwarding_create(xp_ep_plan *plan) {
    const xp_ep_shape *s = &plan->group->shape;
    const xp_ep_config *config = &plan->group->config;
    xp_ep_forwarding *f = calloc(1, sizeof *f);
    if (!f)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel plan");
    plan->forwarding = f;
    XP_TRY(
        xp_device_alloc(plan->group->device, xp_ep_forwarding_bytes(s, config), "ep", &f->memory));
    carve_device(s, config, f->memory, f);
    if (!config->on_gpu)
        return XP_OK;
    XP_TRY(
        xp_host_alloc(plan->group->device, carve_host(s, config, NULL, f), "ep", &f->host_memory));
    carve_host(s, config, f->host_memory, f);
    return XP_OK;
}

void xp_ep_forwarding_destroy(xp_ep_plan *plan) {
    if (!plan->forwarding)
        return;
    xp_device_free(plan->group->device, plan->forwarding->memory);
    xp_host_free(plan->group->device, plan->forwarding->host_memory);
    free(plan->forwarding);
    plan->forwarding = NULL;
}

/* ---- build --------------------------------------------------------------------------------- */

/* Exchange with the ranks that have this local rank on the other nodes: how many node rows come, and
 * which local ranks need them. */
static xp_status exchange_arrivals(const xp_ep_call *call) {
    const xp_ep_node_grid *grid = &xp_ep_hier_state(call)->grid;
    const hier_slot *slot = xp_ep_hier_slot(call);
    xp_ep_forwarding *f = call->plan->forwarding;
    xp_ep_forwarding_count_sends(grid, &f->plan, &f->lists, slot->counts_out);
    xp_comm_set_phase(slot->inter_node, call->phase);
    XP_TRY(xp_comm_all_to_all(slot->inter_node, slot->counts_out, slot->counts_in,
                              f->plan.n_rounds * (int64_t)sizeof(int32_t), NULL));
    xp_ep_forwarding_count_arrivals(grid, &f->plan, slot->counts_in, &f->lists);
    xp_ep_forwarding_mask_exchange(grid, &f->plan, &f->lists, &slot->exchange);
    return xp_ep_exchange_run(call, &slot->exchange, slot->inter_node, f->lists.mask,
                              f->lists.in_mask, NULL);
}

static xp_status build_lists(const xp_ep_call *call) {
    const xp_ep_node_grid *grid = &xp_ep_hier_state(call)->grid;
    const hier_slot *slot = xp_ep_hier_slot(call);
    xp_ep_forwarding *f = call->plan->forwarding;
    xp_ep_forwarding_list_sends(grid, &f->plan, slot->token_mask, slot->cursor, &f->lists);
    XP_TRY(exchange_arrivals(call));
    xp_ep_forwarding_list_arrivals(grid, &f->plan, &f->lists);
    return XP_OK;
}

xp_status xp_ep_forwarding_build(const xp_ep_call *call) {
    const xp_ep_plan *plan = call->plan;
    plan->forwarding->plan = (xp_ep_forwarding_plan){.n_tokens = plan->n_tokens,
                                                     .n_rounds = plan->n_rounds,
                                                     .send_token = plan->send_token,
                                                     .send_round = plan->send_round,
                                                     .recv_row_base = plan->recv_row_base,
                                                     .round_row = plan->round_row};
    return build_lists(call);
}

typedef struct upload {
    int32_t *to;
    const int32_t *from;
    int64_t n;
} upload;

/* What kernels read, as far as it is used. */
static xp_status copy_lists(const xp_ep_call *call) {
    const xp_ep_forwarding *f = call->plan->forwarding;
    const xp_ep_forwarding_lists *from = &f->lists, *to = &f->on_device;
    const int n_nodes = xp_ep_hier_state(call)->grid.n_nodes;
    const int64_t n_rounds = f->plan.n_rounds;
    const int64_t n_rows = from->row_base[n_nodes], n_forward = from->forward_at[n_rounds],
                  n_fan_out = from->sum_first[n_forward];
    const upload all[] = {
        {to->row_base, from->row_base, n_nodes + 1},
        {to->round, from->round, (n_rounds + 1) * n_nodes},
        {to->token, from->token, n_rows},
        {to->token_first, from->token_first, f->plan.n_tokens + 1},
        {to->token_row, from->token_row, n_rows},
        {to->fan_out, from->fan_out, n_fan_out},
        {to->sum_first, from->sum_first, n_forward + 1},
        {to->sum_row, from->sum_row, n_fan_out},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        XP_TRY(xp_copy(call->stream, all[i].to, all[i].from, (size_t)all[i].n * sizeof(int32_t)));
    return XP_OK;
}

xp_status xp_ep_forwarding_build_fetched(const xp_ep_call *call, const int32_t *rank_counts) {
    const xp_ep_group *group = call->group;
    const xp_ep_plan *plan = call->plan;
    xp_ep_forwarding *f = plan->forwarding;
    if (plan->n_rounds > 1)
        xp_ep_forwarding_recv_base(&group->shape, group->rank, rank_counts, f->recv_row_base);
    else
        xp_ep_forwarding_one_round(&group->shape, group->rank, rank_counts, f->send_round,
                                   f->recv_row_base, f->round_row);
    f->plan = (xp_ep_forwarding_plan){.n_tokens = plan->n_tokens,
                                      .n_rounds = plan->n_rounds,
                                      .send_token = f->send_token,
                                      .send_round = f->send_round,
                                      .recv_row_base = f->recv_row_base,
                                      .round_row = f->round_row};
    XP_TRY(build_lists(call));
    return copy_lists(call);
}
