/** What the CPU backends share of combine. */
#ifndef XP_EP_COMMON_CPU_COMBINE_H
#define XP_EP_COMMON_CPU_COMBINE_H

#include "ep/common/call.h"
#include "ep/common/rows.h"

/**
 * The second level of the sum, for the tokens of this call's round.
 * @param rows       one row a send row, or with `row_assignments` one a send assignment, of all
 *                   rounds so far
 * @param expert_rows  [R] expert rows of this round that this rank can read: the values of its rows
 *                   there are summed from them on the fly. Only when no row can be of an earlier
 *                   round: one round, or one rank. NULL, or without a y: values are in `rows`
 */
void xp_ep_cpu_sum_tokens(const xp_ep_call *call, const void *rows, const int32_t *row_assignments,
                          const xp_ep_expert_rows *expert_rows, void *out);
/** This rank's expert rows as rank `source` reads them in its sum. */
xp_ep_expert_rows xp_ep_cpu_expert_rows_for(const xp_ep_call *call, int source, const void *y);
/** Arguments for this rank's first-level sum of the rows from `source`. */
xp_ep_reduce_args xp_ep_cpu_reduce_for(const xp_ep_call *call, int source, const void *y,
                                       void *dst);
/** Write values[i] of this round's send assignments i into d_topk_weight, which may be NULL. */
void xp_ep_cpu_scatter_weights(const xp_ep_call *call, const float *values, float *d_topk_weight);

#endif
