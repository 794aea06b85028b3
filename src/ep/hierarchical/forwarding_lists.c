#include "ep/hierarchical/forwarding_lists.h"

int64_t xp_ep_forwarding_max_in(const xp_ep_shape *s, int n_nodes) {
    const int n_local_ranks = s->n_ranks / n_nodes;
    return n_nodes * s->max_tokens * (s->top_k < n_local_ranks ? s->top_k : n_local_ranks);
}

static int rank_of(const xp_ep_node_grid *grid, int node, int local_rank) {
    return grid->rank_at[node * grid->n_local_ranks + local_rank];
}

void xp_ep_forwarding_recv_base(const xp_ep_shape *s, int rank, const int32_t *rank_counts,
                                int32_t *recv_row_base) {
    recv_row_base[0] = 0;
    for (int r = 0; r < s->n_ranks; r++)
        recv_row_base[r + 1] =
            recv_row_base[r] +
            rank_counts[(int64_t)r * s->counts_ints + XP_EP_COUNTS_ROWS(s) + rank];
}

void xp_ep_forwarding_one_round(const xp_ep_shape *s, int rank, const int32_t *rank_counts,
                                int32_t *send_round, int32_t *recv_row_base, int32_t *round_row) {
    const int32_t *to = rank_counts + (int64_t)rank * s->counts_ints + XP_EP_COUNTS_ROWS(s);
    int32_t row = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        send_round[r] = row;
        send_round[s->n_ranks + r] = row += to[r];
    }
    xp_ep_forwarding_recv_base(s, rank, rank_counts, recv_row_base);
    round_row[0] = 0;
    round_row[1] = recv_row_base[s->n_ranks];
}

/* ---- as a source ------------------------------------------------------------------------- */

/* Node rows to one node in one round, from `row` on; returns the row after the last. */
static int32_t collect(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan, int node,
                       int64_t round, uint64_t *mask, xp_ep_forwarding_lists *lists, int32_t row) {
    const int n_ranks = grid->n_nodes * grid->n_local_ranks;
    int64_t low = plan->n_tokens, high = 0;
    for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++) {
        const int32_t *at = plan->send_round + round * n_ranks + rank_of(grid, node, local_rank);
        const int32_t first = at[0], end = at[n_ranks];
        for (int32_t i = first; i < end; i++)
            mask[plan->send_token[i]] |= (uint64_t)1 << local_rank;
        if (first < end) { /* tokens ascend between them */
            low = plan->send_token[first] < low ? plan->send_token[first] : low;
            high = plan->send_token[end - 1] >= high ? plan->send_token[end - 1] + 1 : high;
        }
    }
    for (int64_t t = low; t < high; t++) {
        if (mask[t] == 0)
            continue;
        lists->token[row] = (int32_t)t;
        lists->mask[row++] = mask[t];
        mask[t] = 0;
    }
    return row;
}

static void list_by_token(int64_t n_tokens, int32_t n_rows, int32_t *cursor,
                          xp_ep_forwarding_lists *lists) {
    for (int64_t t = 0; t < n_tokens; t++)
        cursor[t] = 0;
    for (int32_t i = 0; i < n_rows; i++)
        cursor[lists->token[i]]++;
    lists->token_first[0] = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        lists->token_first[t + 1] = lists->token_first[t] + cursor[t];
        cursor[t] = lists->token_first[t];
    }
    for (int32_t i = 0; i < n_rows; i++)
        lists->token_row[cursor[lists->token[i]]++] = i;
}

void xp_ep_forwarding_list_sends(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                 uint64_t *token_mask, int32_t *cursor,
                                 xp_ep_forwarding_lists *lists) {
    int32_t row = 0;
    for (int node = 0; node < grid->n_nodes; node++) {
        lists->row_base[node] = row;
        for (int64_t r = 0; r < plan->n_rounds; r++) {
            lists->round[r * grid->n_nodes + node] = row;
            row = collect(grid, plan, node, r, token_mask, lists, row);
        }
        lists->round[plan->n_rounds * grid->n_nodes + node] = row;
    }
    lists->row_base[grid->n_nodes] = row;
    list_by_token(plan->n_tokens, row, cursor, lists);
}

void xp_ep_forwarding_count_sends(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                  const xp_ep_forwarding_lists *lists, int32_t *counts) {
    for (int c = 0; c < grid->n_nodes; c++)
        for (int64_t r = 0; r < plan->n_rounds; r++)
            counts[c * plan->n_rounds + r] =
                xp_ep_forwarding_out(grid, lists, grid->inter_node_order[c], r).n;
}

/* ---- as the rank that forwards ---------------------------------------------------------- */

void xp_ep_forwarding_count_arrivals(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                     const int32_t *counts, xp_ep_forwarding_lists *lists) {
    const int64_t n_rounds = plan->n_rounds;
    int32_t row = 0;
    for (int node = 0; node < grid->n_nodes; node++) {
        int c = 0;
        while (grid->inter_node_order[c] != node)
            c++;
        for (int64_t r = 0; r < n_rounds; r++) {
            lists->in_round[r * grid->n_nodes + node] = row;
            row += counts[c * n_rounds + r];
        }
        lists->in_round[n_rounds * grid->n_nodes + node] = row;
    }
}

/* A round's fan-out rows from fan_out_at[0] on. */
static void list_fan_out(const xp_ep_node_grid *grid, int64_t round,
                         xp_ep_forwarding_lists *lists) {
    int32_t *at = lists->fan_out_at + round * (grid->n_local_ranks + 1);
    for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++) {
        int32_t n = at[local_rank], forward = 0;
        for (int node = 0; node < grid->n_nodes; node++) {
            const xp_ep_span in = xp_ep_forwarding_in(grid, lists, node, round);
            for (int32_t i = in.first; i < in.first + in.n; i++, forward++)
                if (lists->in_mask[i] >> local_rank & 1U)
                    lists->fan_out[n++] = forward;
        }
        at[local_rank + 1] = n;
    }
}

/* Which fan-out rows come back for each forward row of a round. The rounds before it have as many
 * entries in sum_row as fan-out rows. */
static void list_sums(const xp_ep_node_grid *grid, int64_t round, xp_ep_forwarding_lists *lists) {
    const int32_t *at = lists->fan_out_at + round * (grid->n_local_ranks + 1);
    int32_t cursor[XP_EP_MAX_LOCAL_RANKS], n = at[0], forward = lists->forward_at[round];
    for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++)
        cursor[local_rank] = at[local_rank] - at[0];
    for (int node = 0; node < grid->n_nodes; node++) {
        const xp_ep_span in = xp_ep_forwarding_in(grid, lists, node, round);
        for (int32_t i = in.first; i < in.first + in.n; i++) {
            lists->sum_first[forward++] = n;
            for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++)
                if (lists->in_mask[i] >> local_rank & 1U)
                    lists->sum_row[n++] = cursor[local_rank]++;
        }
    }
    lists->sum_first[forward] = n;
    lists->forward_at[round + 1] = forward;
}

static void list_recv(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan, int64_t round,
                      xp_ep_forwarding_lists *lists) {
    int32_t *at = lists->recv_at + round * (grid->n_nodes * grid->n_local_ranks + 1);
    at[0] = 0;
    for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++)
        for (int node = 0; node < grid->n_nodes; node++, at++)
            at[1] = at[0] + xp_ep_forwarding_recv(plan, rank_of(grid, node, local_rank), round).n;
}

void xp_ep_forwarding_list_arrivals(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                    xp_ep_forwarding_lists *lists) {
    int32_t n_fan_out = 0;
    lists->forward_at[0] = 0;
    for (int64_t r = 0; r < plan->n_rounds; r++) {
        int32_t *at = lists->fan_out_at + r * (grid->n_local_ranks + 1);
        at[0] = n_fan_out;
        list_fan_out(grid, r, lists);
        list_sums(grid, r, lists);
        list_recv(grid, plan, r, lists);
        n_fan_out = at[grid->n_local_ranks];
    }
}

/* ---- spans and exchanges ----------------------------------------------------------------- */

static xp_ep_span span_at(const xp_ep_node_grid *grid, const int32_t *by_round, int node,
                          int64_t round) {
    const int32_t *at = by_round + round * grid->n_nodes + node;
    return (xp_ep_span){.first = at[0], .n = at[grid->n_nodes] - at[0]};
}

xp_ep_span xp_ep_forwarding_out(const xp_ep_node_grid *grid, const xp_ep_forwarding_lists *lists,
                                int node, int64_t round) {
    return span_at(grid, lists->round, node, round);
}

xp_ep_span xp_ep_forwarding_in(const xp_ep_node_grid *grid, const xp_ep_forwarding_lists *lists,
                               int node, int64_t round) {
    return span_at(grid, lists->in_round, node, round);
}

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

xp_ep_span xp_ep_forwarding_recv(const xp_ep_forwarding_plan *plan, int source, int64_t round) {
    const int32_t low = plan->recv_row_base[source], high = plan->recv_row_base[source + 1];
    const int32_t first = clamp(plan->round_row[round], low, high);
    return (xp_ep_span){.first = first, .n = clamp(plan->round_row[round + 1], low, high) - first};
}

void xp_ep_forwarding_mask_exchange(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                    const xp_ep_forwarding_lists *lists,
                                    const xp_ep_exchange *exchange) {
    const int64_t size = sizeof(uint64_t);
    for (int c = 0; c < grid->n_nodes; c++) {
        const int node = grid->inter_node_order[c];
        const int64_t out = lists->row_base[node], in = lists->in_round[node];
        const int64_t in_end = lists->in_round[plan->n_rounds * grid->n_nodes + node];
        xp_ep_exchange_set(exchange, c, (lists->row_base[node + 1] - out) * size, out * size,
                           (in_end - in) * size, in * size);
    }
}

void xp_ep_forwarding_inter_node_exchange(const xp_ep_node_grid *grid,
                                          const xp_ep_forwarding_lists *lists, int64_t round,
                                          bool combine, int64_t size,
                                          const xp_ep_exchange *exchange) {
    for (int c = 0; c < grid->n_nodes; c++) {
        const int node = grid->inter_node_order[c];
        const xp_ep_span out = xp_ep_forwarding_out(grid, lists, node, round),
                         in = xp_ep_forwarding_in(grid, lists, node, round);
        int64_t in_at = 0; /* the forward buffer holds one round, by node */
        for (int before = 0; before < node; before++)
            in_at += xp_ep_forwarding_in(grid, lists, before, round).n;
        if (combine)
            xp_ep_exchange_set(exchange, c, in.n * size, in_at * size, out.n * size,
                               out.first * size);
        else
            xp_ep_exchange_set(exchange, c, out.n * size, out.first * size, in.n * size,
                               in_at * size);
    }
}

void xp_ep_forwarding_intra_node_exchange(const xp_ep_node_grid *grid,
                                          const xp_ep_forwarding_lists *lists, int64_t round,
                                          bool combine, int64_t size,
                                          const xp_ep_exchange *exchange) {
    const int n_ranks = grid->n_nodes * grid->n_local_ranks;
    const int32_t *fan_out_at = lists->fan_out_at + round * (grid->n_local_ranks + 1);
    for (int local_rank = 0; local_rank < grid->n_local_ranks; local_rank++) {
        const int32_t *at = lists->recv_at + round * (n_ranks + 1) + local_rank * grid->n_nodes;
        const int64_t fan_out = fan_out_at[local_rank + 1] - fan_out_at[local_rank],
                      rows = at[grid->n_nodes] - at[0];
        const int64_t from = fan_out_at[local_rank] - fan_out_at[0];
        if (combine)
            xp_ep_exchange_set(exchange, local_rank, rows * size, at[0] * size, fan_out * size,
                               from * size);
        else
            xp_ep_exchange_set(exchange, local_rank, fan_out * size, from * size, rows * size,
                               at[0] * size);
    }
}
