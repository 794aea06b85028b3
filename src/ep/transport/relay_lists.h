/**
 * Which rows the hierarchical transport moves where: plain functions of a plan's counts and lists,
 * in host memory, that no communicator and no device takes part in.
 *
 * Ranks are (node, place). Relay rows are (token, node, round): a token goes to a node again in a
 * later round when only then another rank of the node has room for it. Four buffers see rows:
 *
 *   out      a source's relay rows by (node, round, token), all rounds
 *   transit  relay rows of a round at the rank that passes them on, by (source's node, token)
 *   fan      the same, one for each place that needs it, by (place, transit row)
 *   rows     recv rows of a round at their expert rank, by (place, node) of their source
 */
#ifndef XP_EP_TRANSPORT_RELAY_LISTS_H
#define XP_EP_TRANSPORT_RELAY_LISTS_H

#include "ep/transport/exchange.h"

#define XP_EP_MAX_PLACES 64 /* bits of a mask */

/** Where the ranks are: R = N nodes * G places. */
typedef struct xp_ep_relay_grid {
    int n_nodes, n_places; /* N, G */
    int my_node, my_place;
    int *rank_at;    /* [N, G] */
    int *cross_node; /* [N] the node of each rank of the communicator over nodes */
} xp_ep_relay_grid;

/** What the lists follow from. */
typedef struct xp_ep_relay_plan {
    int64_t n_tokens, n_rounds;
    const int32_t *send_token;    /* [send rows] */
    const int32_t *send_round;    /* [n_rounds + 1, R] first send row to each rank */
    const int32_t *recv_row_base; /* [R + 1] */
    const int32_t *round_row;     /* [n_rounds + 1] */
} xp_ep_relay_plan;

typedef struct xp_ep_relay_lists {
    /* As a source. */
    int32_t *row_base;    /* [N + 1] first relay row to node n */
    int32_t *round;       /* [max_rounds + 1, N] first relay row to node n in round r */
    int32_t *token;       /* [max_send_rows] */
    uint64_t *mask;       /* [max_send_rows] which places of the node need it */
    int32_t *token_first; /* [M + 1] */
    int32_t *token_row;   /* [max_send_rows] relay rows of each token, ascending */
    /* As the rank that passes on what the sources with its place send: rows by (source's node,
     * round, token) here, by (round, source's node, token) in the rest. */
    int32_t *in_round;   /* [max_rounds + 1, N] */
    uint64_t *in_mask;   /* [max_in_rows] */
    int32_t *transit_at; /* [max_rounds + 1] transit rows before round r */
    int32_t *fan_at;     /* [max_rounds, G + 1] fan rows before those for place p in round r */
    int32_t *fan;        /* [max_in_rows] transit row, in its round, of each fan row */
    int32_t *sum_first;  /* [max_in_rows + 1] first of sum_row of each transit row */
    int32_t *sum_row;    /* [max_in_rows] its fan rows, in their round, ascending place */
    /* As an expert rank. */
    int32_t *rows_at; /* [max_rounds, R + 1] rows of the round before those of (place, node) */
} xp_ep_relay_lists;

/** Most relay rows that pass through a rank, all rounds; and most fan rows. */
int64_t xp_ep_relay_max_in(const xp_ep_shape *shape, int n_nodes);

/** recv_row_base [R + 1] from the counts, [R, block_ints]. */
void xp_ep_relay_recv_base(const xp_ep_shape *shape, int rank, const int32_t *blocks,
                           int32_t *recv_row_base);
/** The plan's part when everything goes in one round follows from the counts, too.
 * @param[out] send_round [2, R], recv_row_base [R + 1], round_row [2] */
void xp_ep_relay_one_round(const xp_ep_shape *shape, int rank, const int32_t *blocks,
                           int32_t *send_round, int32_t *recv_row_base, int32_t *round_row);

/** A source's lists. @param token_mask  [M] zeros, before and after; @param cursor [M] scratch */
void xp_ep_relay_list_sends(const xp_ep_relay_grid *grid, const xp_ep_relay_plan *plan,
                            uint64_t *token_mask, int32_t *cursor, xp_ep_relay_lists *lists);
/** What the ranks over nodes tell each other first. @param[out] counts [N, n_rounds] relay rows to
 * each, by rank of that communicator */
void xp_ep_relay_count_sends(const xp_ep_relay_grid *grid, const xp_ep_relay_plan *plan,
                             const xp_ep_relay_lists *lists, int32_t *counts);
/** in_round from what they told. */
void xp_ep_relay_place_arrivals(const xp_ep_relay_grid *grid, const xp_ep_relay_plan *plan,
                                const int32_t *counts, xp_ep_relay_lists *lists);
/** The rest, once in_mask has arrived. */
void xp_ep_relay_list_arrivals(const xp_ep_relay_grid *grid, const xp_ep_relay_plan *plan,
                               xp_ep_relay_lists *lists);

/** Relay rows of a round to or from a node: out at the source, in at the rank that passes on. */
xp_ep_span xp_ep_relay_out(const xp_ep_relay_grid *grid, const xp_ep_relay_lists *lists, int node,
                           int64_t round);
xp_ep_span xp_ep_relay_in(const xp_ep_relay_grid *grid, const xp_ep_relay_lists *lists, int node,
                          int64_t round);
/** Recv rows of a round from `source`, in the plan's numbering. */
xp_ep_span xp_ep_relay_recv(const xp_ep_relay_plan *plan, int source, int64_t round);

/** Exchanges over nodes: the masks between `mask` and `in_mask`; */
void xp_ep_relay_mask_exchange(const xp_ep_relay_grid *grid, const xp_ep_relay_plan *plan,
                               const xp_ep_relay_lists *lists, const xp_ep_exchange *exchange);
/** rows of `row_bytes` from `out` to `transit`, or home. */
void xp_ep_relay_node_exchange(const xp_ep_relay_grid *grid, const xp_ep_relay_lists *lists,
                               int64_t round, bool home, int64_t row_bytes,
                               const xp_ep_exchange *exchange);
/** Over the places of a node: from `fan` to `rows`, or home. */
void xp_ep_relay_place_exchange(const xp_ep_relay_grid *grid, const xp_ep_relay_lists *lists,
                                int64_t round, bool home, int64_t row_bytes,
                                const xp_ep_exchange *exchange);

#endif
