/**
 * The hierarchical transport. Ranks are (node, place): a row crosses to each node once, to the rank
 * with its source's place, which passes it on inside the node to the ranks that need it. On the way
 * home the ranks of a node are added there first.
 *
 * Relay rows are (token, node, round): a token goes to a node again in a later round when only then
 * another rank of the node has room for it. A source numbers its relay rows by (node, round,
 * token).
 */
#ifndef XP_EP_TRANSPORT_HIERARCHICAL_H
#define XP_EP_TRANSPORT_HIERARCHICAL_H

#include "ep/transport/mailbox.h"

struct xp_ep_relay {
    void *memory;
    /* As a source. */
    int32_t *row_base; /* [N + 1] first relay row to node n */
    int32_t *round;    /* [max_rounds + 1, N] first relay row to node n in round r */
    int32_t *token;    /* [max_send_rows] */
    uint64_t *mask;    /* [max_send_rows] which places of the node need it */
    int32_t *token_first,
        *token_row; /* [M + 1], [max_send_rows] relay rows of each token, ascending */
    /* As the rank that passes on what the sources with its place send: relay rows by (source's
     * node, round, token). */
    int32_t *in_round; /* [max_rounds + 1, N] */
    uint64_t *in_mask; /* [max_in_rows] */
};

typedef struct hier_slot {
    xp_ep_mailbox box;
    xp_comm *node, *cross; /* ranks of this node; ranks with this place */
    char *out;             /* [max_send_rows, D] this rank's relay rows, going and coming home */
    char *transit;         /* [N * M, D] relay rows of a round that this rank passes on */
    char *fan;  /* [max_in_rows, D] the same, one for each place that needs it, by place */
    char *rows; /* [recv_capacity, D] recv rows by (place, node) of their source */
    int32_t *first, *index;          /* [N * M + 1], [max_in_rows] scratch */
    uint64_t *token_mask;            /* [M] scratch, zero between uses */
    int32_t *cursor;                 /* [M] scratch */
    int32_t *counts_out, *counts_in; /* [N, max_rounds] relay rows by node and round */
} hier_slot;

typedef struct hier_state {
    int n_nodes, n_places; /* N, G: R = N * G */
    int my_node, my_place;
    int *rank_at;    /* [N, G] */
    int *cross_node; /* [N] the node of each rank of `cross` */
    hier_slot *slots;
    void *memory;
} hier_state;

hier_slot *xp_ep_hier_slot(const xp_ep_step *step);
/** Most relay rows that pass through a rank, all rounds. */
int64_t xp_ep_hier_max_in(const xp_ep_shape *shape, int n_nodes);

/** Device bytes of one plan's relay part. */
size_t xp_ep_relay_measure(const xp_ep_shape *shape, int n_nodes);
XP_NODISCARD xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay);
/** NULL is accepted. */
void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay);
/** The transport's finish_plan: work out the relay rows, tell the ranks that pass them on. */
xp_status xp_ep_relay_build(const xp_ep_step *step);

#endif
