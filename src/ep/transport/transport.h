/** How rows, counts and gradients of weights get from rank to rank. One table a transport; the
 * plan's meaning is above it. */
#ifndef XP_EP_TRANSPORT_H
#define XP_EP_TRANSPORT_H

#include "ep/plan.h"

/** combine and dispatch_backward are one movement: assignment rows home, with gradients of weights or
 * without. */
typedef struct xp_ep_home {
    const void *y;         /* [P, D] */
    const float *d_weight; /* [P] or NULL */
    void *out;             /* [T, D] */
    float *d_topk_weight;  /* [T, K] or NULL */
} xp_ep_home;

struct xp_ep_transport_ops {
    const char *name;
    /** Device bytes of one rank, all slots: windows and buffers. */
    size_t (*measure)(const xp_ep_shape *shape, const xp_ep_config *config);
    xp_status (*create)(xp_ep_group *group);
    void (*destroy)(xp_ep_group *group); /* also of a half-made state, NULL included */
    /** plan->blocks = every rank's block; `block` is this rank's. */
    xp_status (*share_blocks)(const xp_ep_step *step, const int32_t *block);
    /** Instead of all below when a block has an error; every rank returns here. May be NULL. */
    xp_status (*refuse)(const xp_ep_step *step);
    /** Where build_send puts the assignments for each rank. [R] */
    void (*aim_assignments)(const xp_ep_step *step, xp_ep_assignment **targets);
    /** After build_send: all assignments for this rank in (source, token, expert) order. */
    xp_status (*share_assignments)(const xp_ep_step *step, const xp_ep_assignment **assignments);
    /** After build_recv: what else the transport must know; may be NULL. */
    xp_status (*finish_plan)(const xp_ep_step *step);
    xp_status (*dispatch)(const xp_ep_step *step, const void *x, void *recv);
    xp_status (*bring_home)(const xp_ep_step *step, const xp_ep_home *home);
};

extern const xp_ep_transport_ops xp_ep_local_ops, xp_ep_p2p_ops, xp_ep_a2a_ops,
    xp_ep_hierarchical_ops;

/**
 * The second level of the sum, for the tokens of this step's round.
 * @param rows       one row a send row, or with `row_assignments` one a send assignment, of all rounds so far
 * @param near       [R] expert rows of this round that this rank can read: the values of its rows
 * there are summed from them on the fly. Only when a row cannot be of an earlier round: one round,
 * or one rank. NULL, or without a y: they are in `rows`
 */
void xp_ep_sum_home(const xp_ep_step *step, const void *rows, const int32_t *row_assignments,
                    const xp_ep_expert_rows *near, void *out);
/** This rank's expert rows as rank `source` reads them in its sum. */
xp_ep_expert_rows xp_ep_expert_rows_for(const xp_ep_step *step, int source, const void *y);
/** Write values[i] for the send assignments of `span` into d_topk_weight. */
void xp_ep_place_weights(const xp_ep_step *step, xp_ep_span assignments, const float *values,
                         float *d_topk_weight);
/** This rank's first-level sum of the rows from `source`: what bring_home sends it. */
xp_ep_reduce_args xp_ep_partial_rows(const xp_ep_step *step, int source, const void *y, void *dst);

#endif
