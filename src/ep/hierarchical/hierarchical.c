/* Dispatch and combine over nodes: what is copied, exchanged and added in which order. */
#include "ep/hierarchical/hierarchical.h"

static void count_bytes(const xp_ep_call *call, bool stays, int64_t n_bytes) {
    xp_ep_totals *totals = &call->group->totals;
    xp_ep_add(stays ? &totals->bytes_kept : &totals->bytes_sent_remote, n_bytes);
}

static xp_status exchange_rows(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                               const xp_ep_exchange_copy *copy, void *recv) {
    xp_stream *stream = kernels->on_stream ? call->stream : NULL;
    XP_TRY(xp_ep_exchange_run(call, copy->exchange, copy->comm, copy->send, recv, stream));
    return xp_ep_exchange_copies(call, copy, stream);
}

/* Node rows of this round between this rank's `send` and the `forward` of the ranks with its local
 * rank. */
static xp_status exchange_inter_node(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                                     bool combine) {
    const xp_ep_node_grid *grid = &xp_ep_hier_state(call)->grid;
    const hier_slot *slot = xp_ep_hier_slot(call);
    const xp_ep_exchange *exchange = &slot->exchange;
    xp_ep_forwarding_inter_node_exchange(grid, &call->plan->forwarding->lists, call->round, combine,
                                         (int64_t)call->group->shape.row_bytes, exchange);
    xp_ep_exchange_copy copy = {.exchange = exchange,
                                .comm = slot->inter_node,
                                .send = combine ? slot->forward_rows : slot->send_rows,
                                .copies = slot->copies};
    for (int i = 0; i < grid->n_nodes; i++) {
        const bool stays = grid->inter_node_order[i] == grid->my_node;
        count_bytes(call, stays, exchange->send_bytes[i]);
        copy.own = stays ? i : copy.own;
    }
    return exchange_rows(call, kernels, &copy, combine ? slot->send_rows : slot->forward_rows);
}

/* Between the `fan_out` of the ranks of this node and their `recv`. */
static xp_status exchange_intra_node(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                                     bool combine) {
    const xp_ep_node_grid *grid = &xp_ep_hier_state(call)->grid;
    const hier_slot *slot = xp_ep_hier_slot(call);
    const xp_ep_exchange *exchange = &slot->exchange;
    xp_ep_forwarding_intra_node_exchange(grid, &call->plan->forwarding->lists, call->round, combine,
                                         (int64_t)call->group->shape.row_bytes, exchange);
    for (int i = 0; i < grid->n_local_ranks; i++)
        count_bytes(call, i == grid->my_local_rank, exchange->send_bytes[i]);
    const xp_ep_exchange_copy copy = {.exchange = exchange,
                                      .comm = slot->intra_node,
                                      .own = grid->my_local_rank,
                                      .send = combine ? slot->recv_rows : slot->fan_out_rows,
                                      .copies = slot->copies};
    return exchange_rows(call, kernels, &copy, combine ? slot->fan_out_rows : slot->recv_rows);
}

/* ---- dispatch ------------------------------------------------------------------------------ */

/* Token rows into `send`: those that `node` needs in this round. */
static xp_ep_copy_args pack(const xp_ep_call *call, int node, const void *x) {
    const xp_ep_forwarding *forwarding = call->plan->forwarding;
    const size_t row_bytes = call->group->shape.row_bytes;
    const xp_ep_span rows =
        xp_ep_forwarding_out(&xp_ep_hier_state(call)->grid, &forwarding->lists, node, call->round);
    return (xp_ep_copy_args){.n_rows = rows.n,
                             .row_bytes = row_bytes,
                             .src = x,
                             .dst =
                                 xp_ep_hier_slot(call)->send_rows + (size_t)rows.first * row_bytes,
                             .src_index = forwarding->on_device.token + rows.first};
}

/* Forward rows into `fan_out`. */
static xp_ep_copy_args fan_out(const xp_ep_call *call) {
    const int n_local_ranks = xp_ep_hier_state(call)->grid.n_local_ranks;
    const xp_ep_forwarding *forwarding = call->plan->forwarding;
    const hier_slot *slot = xp_ep_hier_slot(call);
    const int32_t *at = forwarding->lists.fan_out_at + call->round * (n_local_ranks + 1);
    return (xp_ep_copy_args){.n_rows = at[n_local_ranks] - at[0],
                             .row_bytes = call->group->shape.row_bytes,
                             .dst = slot->fan_out_rows,
                             .src = slot->forward_rows,
                             .src_index = forwarding->on_device.fan_out + at[0]};
}

/* The i-th source in the order of the `recv` buffer: by (local rank, node). */
static int source_at(const xp_ep_call *call, int i) {
    const xp_ep_node_grid *grid = &xp_ep_hier_state(call)->grid;
    return grid->rank_at[i % grid->n_nodes * grid->n_local_ranks + i / grid->n_nodes];
}

xp_status xp_ep_hier_dispatch(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                              void *context, const void *x, void *recv) {
    const xp_ep_forwarding_plan *plan = &call->plan->forwarding->plan;
    const size_t row_bytes = call->group->shape.row_bytes;
    for (int node = 0; node < xp_ep_hier_state(call)->grid.n_nodes; node++) {
        const xp_ep_copy_args copy = pack(call, node, x);
        XP_TRY(kernels->copy_rows(context, &copy));
    }
    XP_TRY(exchange_inter_node(call, kernels, false));
    const xp_ep_copy_args fan = fan_out(call);
    XP_TRY(kernels->copy_rows(context, &fan));
    XP_TRY(exchange_intra_node(call, kernels, false));
    /* `recv` into the plan's order. */
    const char *from = xp_ep_hier_slot(call)->recv_rows;
    for (int i = 0; i < call->group->shape.n_ranks; i++) {
        const xp_ep_span rows = xp_ep_forwarding_recv(plan, source_at(call, i), call->round);
        const size_t to = (size_t)(rows.first - plan->round_row[call->round]) * row_bytes;
        XP_TRY(kernels->copy_rows(context, &(xp_ep_copy_args){.n_rows = rows.n,
                                                              .row_bytes = row_bytes,
                                                              .dst = (char *)recv + to,
                                                              .src = from}));
        from += (size_t)rows.n * row_bytes;
    }
    return XP_OK;
}

/* ---- combine ------------------------------------------------------------------------------- */

/* What the ranks of this node have for each forward row, added in ascending local rank. */
static xp_ep_reduce_args sum_node(const xp_ep_call *call) {
    const xp_ep_forwarding *forwarding = call->plan->forwarding;
    const hier_slot *slot = xp_ep_hier_slot(call);
    const int32_t *at = forwarding->lists.forward_at + call->round;
    return (xp_ep_reduce_args){.n_rows = at[1] - at[0],
                               .dim = call->group->shape.dim,
                               .dtype = call->group->shape.dtype,
                               .y = slot->fan_out_rows,
                               .first = forwarding->on_device.sum_first + at[0],
                               .pos = forwarding->on_device.sum_row,
                               .dst = slot->forward_rows};
}

/* The nodes' rows of each token. */
static xp_ep_sum_args sum_nodes(const xp_ep_call *call, void *out) {
    const xp_ep_forwarding_lists *lists = &call->plan->forwarding->on_device;
    const int n_nodes = xp_ep_hier_state(call)->grid.n_nodes;
    const int32_t *round = lists->round + call->round * n_nodes;
    const bool rounds = call->plan->n_rounds > 1;
    return (xp_ep_sum_args){.n_tokens = call->plan->n_tokens,
                            .dim = call->group->shape.dim,
                            .dtype = call->group->shape.dtype,
                            .token_first = lists->token_first,
                            .token_row = lists->token_row,
                            .row_base = lists->row_base,
                            .fresh = rounds ? round : NULL,
                            .seen = rounds ? round + n_nodes : NULL,
                            .n_dests = n_nodes,
                            .write_all = call->round == 0,
                            .rows = xp_ep_hier_slot(call)->send_rows,
                            .out = out};
}

xp_status xp_ep_hier_combine(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                             void *context, const xp_ep_combine_args *args) {
    const xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    /* First-level sums of this rank's recv rows into `recv`. */
    char *to = xp_ep_hier_slot(call)->recv_rows;
    for (int i = 0; i < s->n_ranks; i++) {
        const xp_ep_span rows =
            xp_ep_forwarding_recv(&plan->forwarding->plan, source_at(call, i), call->round);
        XP_TRY(kernels->reduce_rows(
            context, &(xp_ep_reduce_args){.n_rows = rows.n,
                                          .dim = s->dim,
                                          .dtype = s->dtype,
                                          .y = args->y,
                                          .first = plan->recv_assignment + rows.first,
                                          .pos = plan->assignment_pos,
                                          .dst = to}));
        to += (size_t)rows.n * s->row_bytes;
    }
    XP_TRY(exchange_intra_node(call, kernels, true));
    const xp_ep_reduce_args node = sum_node(call);
    XP_TRY(kernels->reduce_rows(context, &node));
    /* Rows of earlier rounds lie elsewhere in `send` and are still there for the sum. */
    XP_TRY(exchange_inter_node(call, kernels, true));
    const xp_ep_sum_args nodes = sum_nodes(call, args->out);
    XP_TRY(kernels->sum_rows(context, &nodes));
    return kernels->weights(call, &xp_ep_hier_slot(call)->metadata, args);
}
