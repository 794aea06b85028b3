/**
 * The hierarchical transport. A token row crosses to each node once, to the rank with its source's
 * local rank, which forwards it inside the node to the ranks that need it. In combine the ranks of a
 * node are added there before the sum crosses back. Which rows those are: forwarding_lists.h.
 *
 * The host knows all counts, on a GPU too. The devices differ in their row kernels and in where the
 * lists lie: the host makes them in memory of its own and copies what kernels read.
 */
#ifndef XP_EP_HIERARCHICAL_HIERARCHICAL_H
#define XP_EP_HIERARCHICAL_HIERARCHICAL_H

#include "ep/common/rows.h"
#include "ep/hierarchical/forwarding.h"

/** A device's row kernels. `context` is what the device launches them with: its stream at least. */
typedef struct xp_ep_row_kernels {
    xp_status (*copy_rows)(void *context, const xp_ep_copy_args *args);
    xp_status (*reduce_rows)(void *context, const xp_ep_reduce_args *args);
    xp_status (*sum_rows)(void *context, const xp_ep_sum_args *args);
    /** Gradients of weights to their sources: xp_ep_cpu_metadata_weights() or the GPU's. */
    xp_status (*weights)(const xp_ep_call *call, const xp_ep_metadata *metadata,
                         const xp_ep_combine_args *args);
    bool on_stream; /* exchanges are queued on call->stream; false: made between host memory */
} xp_ep_row_kernels;

/** The sequence of a dispatch and of a combine, the same on every device. */
XP_NODISCARD xp_status xp_ep_hier_dispatch(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                                           void *context, const void *x, void *recv);
XP_NODISCARD xp_status xp_ep_hier_combine(const xp_ep_call *call, const xp_ep_row_kernels *kernels,
                                          void *context, const xp_ep_combine_args *args);

#endif
