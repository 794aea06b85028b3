/**
 * The hierarchical transport. Ranks are (node, place): a row crosses to each node once, to the rank
 * with its source's place, which passes it on inside the node to the ranks that need it. On the way
 * home the ranks of a node are added there first. Which rows those are: relay_lists.h.
 *
 * The host knows all counts, on a GPU too; devices differ in how rows are moved and added, and in
 * where lists lie: the host makes them in memory of its own and copies what kernels read.
 */
#ifndef XP_EP_TRANSPORT_HIERARCHICAL_H
#define XP_EP_TRANSPORT_HIERARCHICAL_H

#include "ep/transport/mailbox.h"
#include "ep/transport/relay_lists.h"

struct xp_ep_relay {
    void *memory;      /* the device's */
    void *host_memory; /* on a GPU, page-locked: all that the host reads and writes */
    xp_ep_relay_plan plan;
    xp_ep_relay_lists lists;
    /* As kernels read them: row_base, round, token, token_first, token_row, fan, sum_first and
     * sum_row. On a CPU the same memory. */
    xp_ep_relay_lists on_device;
    /* On a GPU: `plan` points here. */
    int32_t *send_token, *send_round, *recv_row_base, *round_row;
};

typedef struct hier_slot {
    xp_ep_mailbox box;
    xp_comm *node, *cross; /* ranks of this node; ranks with this place */
    char *out;             /* [max_send_rows, D] this rank's relay rows, going and coming home */
    char *transit;         /* [N * M, D] relay rows of a round that this rank passes on */
    char *fan;  /* [max_in_rows, D] the same, one for each place that needs it, by place */
    char *rows; /* [recv_capacity, D] recv rows by (place, node) of their source */
    /* Host memory. */
    uint64_t *token_mask;            /* [M] scratch, zero between uses */
    int32_t *cursor;                 /* [M] scratch */
    int32_t *counts_out, *counts_in; /* [N, max_rounds] relay rows by node and round */
    xp_ep_exchange exchange;         /* [R] the one being made */
} hier_slot;

typedef struct hier_state {
    xp_ep_relay_grid grid;
    hier_slot *slots;
    void *memory, *host_memory; /* as in a relay */
} hier_state;

/** A device's way with rows: queued on step->stream. */
typedef struct xp_ep_hier_moves {
    xp_status (*copy_rows)(const xp_ep_step *step, const xp_ep_copy_args *args);
    xp_status (*reduce_rows)(const xp_ep_step *step, const xp_ep_reduce_args *args);
    xp_status (*sum_rows)(const xp_ep_step *step, const xp_ep_sum_args *args);
    /** Gradients of weights, as xp_ep_mailbox_weights(). */
    xp_status (*weights)(const xp_ep_step *step, const xp_ep_mailbox *box, const xp_ep_home *home);
    bool on_stream; /* exchanges go on step->stream; false: between host memory */
} xp_ep_hier_moves;

hier_slot *xp_ep_hier_slot(const xp_ep_step *step);
/** The transport's calls. */
XP_NODISCARD xp_status xp_ep_hier_dispatch(const xp_ep_step *step, const xp_ep_hier_moves *moves,
                                           const void *x, void *recv);
XP_NODISCARD xp_status xp_ep_hier_bring_home(const xp_ep_step *step, const xp_ep_hier_moves *moves,
                                             const xp_ep_home *home);

/** Device bytes of one plan's relay part. */
size_t xp_ep_relay_measure(const xp_ep_shape *shape, const xp_ep_config *config);
XP_NODISCARD xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay);
/** NULL is accepted. */
void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay);
/** All lists from relay->plan; collective over the ranks with this place, in host memory. */
XP_NODISCARD xp_status xp_ep_relay_build(const xp_ep_step *step);
/**
 * The same where host and device have memory of their own: relay->send_token, and for several
 * rounds send_round and round_row, have been fetched. What kernels read is copied on step->stream.
 * @param blocks  [R, block_ints] fetched as well
 */
XP_NODISCARD xp_status xp_ep_relay_build_fetched(const xp_ep_step *step, const int32_t *blocks);

#endif
