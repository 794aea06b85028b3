/** The forwarding lists of a plan: their memory, and the exchange that completes them. */
#ifndef XP_EP_HIERARCHICAL_FORWARDING_H
#define XP_EP_HIERARCHICAL_FORWARDING_H

#include "ep/hierarchical/state.h"

struct xp_ep_forwarding {
    void *memory;      /* the device's */
    void *host_memory; /* on a GPU, page-locked: all that the host reads and writes */
    xp_ep_forwarding_plan plan;
    xp_ep_forwarding_lists lists;
    /* As kernels read them: row_base, round, token, token_first, token_row, fan_out, sum_first and
     * sum_row. On a CPU the same memory. */
    xp_ep_forwarding_lists on_device;
    /* On a GPU: `plan` points here. */
    int32_t *send_token, *send_round, *recv_row_base, *round_row;
};

/** Device bytes of a plan: its arrays and the forwarding lists. */
size_t xp_ep_hier_plan_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
/** Of the lists alone. */
size_t xp_ep_forwarding_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
/** plan->forwarding. */
XP_NODISCARD xp_status xp_ep_forwarding_create(xp_ep_plan *plan);
/** Also of a plan without. */
void xp_ep_forwarding_destroy(xp_ep_plan *plan);

/** All lists from a plan in host memory. Collective over the ranks with this local rank. */
XP_NODISCARD xp_status xp_ep_forwarding_build(const xp_ep_call *call);
/**
 * The same where host and device have memory of their own: forwarding->send_token, and with several
 * rounds send_round and round_row, have been fetched. What kernels read is copied on call->stream.
 * @param rank_counts  [R, counts_ints], fetched as well
 */
XP_NODISCARD xp_status xp_ep_forwarding_build_fetched(const xp_ep_call *call,
                                                      const int32_t *rank_counts);

#endif
