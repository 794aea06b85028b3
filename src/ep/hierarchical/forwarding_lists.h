/**
 * Which rows the hierarchical transport forwards between nodes: plain functions of a plan's counts
 * and lists in host memory, without communicator or device.
 *
 * A rank is (node, local rank). A node row is (token, destination node, round): a token crosses to a
 * node again in a later round only when another rank of that node has no room for it before. It goes
 * to the rank of that node with its source's local rank, which forwards it inside the node. Four
 * buffers hold rows:
 *
 *   send     a source's node rows by (node, round, token), all rounds
 *   forward  node rows of a round at the rank that forwards them, by (source's node, token)
 *   fan_out  the same, one for each local rank that needs it, by (local rank, forward row)
 *   recv     recv rows of a round at their expert rank, by (local rank, node) of their source
 */
#ifndef XP_EP_HIERARCHICAL_FORWARDING_LISTS_H
#define XP_EP_HIERARCHICAL_FORWARDING_LISTS_H

#include "ep/common/exchange.h"

#define XP_EP_MAX_LOCAL_RANKS 64 /* bits of a mask */

/** Where the ranks are: R = N nodes * G local ranks. */
typedef struct xp_ep_node_grid {
    int n_nodes, n_local_ranks; /* N, G */
    int my_node, my_local_rank;
    int *rank_at;          /* [N, G] */
    int *inter_node_order; /* [N] the node of each rank of the inter-node communicator */
} xp_ep_node_grid;

/** What the lists follow from. */
typedef struct xp_ep_forwarding_plan {
    int64_t n_tokens, n_rounds;
    const int32_t *send_token;    /* [send rows] */
    const int32_t *send_round;    /* [n_rounds + 1, R] first send row to each rank */
    const int32_t *recv_row_base; /* [R + 1] */
    const int32_t *round_row;     /* [n_rounds + 1] */
} xp_ep_forwarding_plan;

typedef struct xp_ep_forwarding_lists {
    /* As a source: */
    int32_t *row_base;    /* [N + 1] first node row to node n */
    int32_t *round;       /* [max_rounds + 1, N] first node row to node n in round r */
    int32_t *token;       /* [max_send_rows] */
    uint64_t *mask;       /* [max_send_rows] which local ranks of the node need it */
    int32_t *token_first; /* [M + 1] */
    int32_t *token_row;   /* [max_send_rows] node rows of each token, ascending */
    /* As the rank that forwards what the sources with its local rank send. The first two are ordered
     * by (source's node, round, token), the others by (round, source's node, token). */
    int32_t *in_round;   /* [max_rounds + 1, N] */
    uint64_t *in_mask;   /* [max_in_rows] */
    int32_t *forward_at; /* [max_rounds + 1] forward rows before round r */
    int32_t *fan_out_at; /* [max_rounds, G + 1] fan-out rows before those for local rank p in round
                            r */
    int32_t *fan_out;    /* [max_in_rows] forward row, in its round, of each fan-out row */
    int32_t *sum_first;  /* [max_in_rows + 1] first of sum_row of each forward row */
    int32_t *sum_row;    /* [max_in_rows] its fan-out rows, in their round, ascending local rank */
    /* As an expert rank: */
    int32_t *recv_at; /* [max_rounds, R + 1] rows of the round before those of (local rank, node) */
} xp_ep_forwarding_lists;

/** Most node rows that a rank forwards over all rounds; also most fan-out rows. */
int64_t xp_ep_forwarding_max_in(const xp_ep_shape *shape, int n_nodes);

/** recv_row_base [R + 1] from the counts, [R, counts_ints]. */
void xp_ep_forwarding_recv_base(const xp_ep_shape *shape, int rank, const int32_t *rank_counts,
                                int32_t *recv_row_base);
/** With one round the rest of the plan follows from the counts, too.
 * @param[out] send_round [2, R], recv_row_base [R + 1], round_row [2] */
void xp_ep_forwarding_one_round(const xp_ep_shape *shape, int rank, const int32_t *rank_counts,
                                int32_t *send_round, int32_t *recv_row_base, int32_t *round_row);

/** A source's lists. @param token_mask  [M] zeros, before and after; @param cursor [M] scratch */
void xp_ep_forwarding_list_sends(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                 uint64_t *token_mask, int32_t *cursor,
                                 xp_ep_forwarding_lists *lists);
/** What the ranks over nodes exchange first. @param[out] counts [N, n_rounds] node rows to each, by
 * rank of the inter-node communicator */
void xp_ep_forwarding_count_sends(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                  const xp_ep_forwarding_lists *lists, int32_t *counts);
/** in_round from the counts that have arrived. */
void xp_ep_forwarding_count_arrivals(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                     const int32_t *counts, xp_ep_forwarding_lists *lists);
/** The rest, once in_mask has arrived. */
void xp_ep_forwarding_list_arrivals(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                    xp_ep_forwarding_lists *lists);

/** Node rows of a round to a node (at the source) or from a node (at the rank that forwards). */
xp_ep_span xp_ep_forwarding_out(const xp_ep_node_grid *grid, const xp_ep_forwarding_lists *lists,
                                int node, int64_t round);
xp_ep_span xp_ep_forwarding_in(const xp_ep_node_grid *grid, const xp_ep_forwarding_lists *lists,
                               int node, int64_t round);
/** Recv rows of a round from `source`, in the plan's numbering. */
xp_ep_span xp_ep_forwarding_recv(const xp_ep_forwarding_plan *plan, int source, int64_t round);

/** Inter-node exchange of the masks: from `mask` to `in_mask`. */
void xp_ep_forwarding_mask_exchange(const xp_ep_node_grid *grid, const xp_ep_forwarding_plan *plan,
                                    const xp_ep_forwarding_lists *lists,
                                    const xp_ep_exchange *exchange);
/** Inter-node exchange of rows: from `send` to `forward`; with `combine` back. */
void xp_ep_forwarding_inter_node_exchange(const xp_ep_node_grid *grid,
                                          const xp_ep_forwarding_lists *lists, int64_t round,
                                          bool combine, int64_t row_bytes,
                                          const xp_ep_exchange *exchange);
/** Intra-node exchange of rows: from `fan_out` to `recv`; with `combine` back. */
void xp_ep_forwarding_intra_node_exchange(const xp_ep_node_grid *grid,
                                          const xp_ep_forwarding_lists *lists, int64_t round,
                                          bool combine, int64_t row_bytes,
                                          const xp_ep_exchange *exchange);

#endif
