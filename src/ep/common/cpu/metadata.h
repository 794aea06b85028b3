/** The metadata exchange on a CPU. */
#ifndef XP_EP_COMMON_CPU_METADATA_H
#define XP_EP_COMMON_CPU_METADATA_H

#include "ep/common/metadata.h"

/** See xp_ep_cpu_plan_exchange.target. */
xp_ep_assignment *xp_ep_cpu_metadata_target(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                            int dest);
/** See xp_ep_cpu_plan_exchange.run. */
XP_NODISCARD xp_status xp_ep_cpu_metadata_exchange(const xp_ep_call *call,
                                                   const xp_ep_metadata *metadata,
                                                   const int32_t *own_counts,
                                                   const xp_ep_assignment **assignments);
/** Gradients of weights to their sources and into d_topk_weight; nothing without d_weight. */
XP_NODISCARD xp_status xp_ep_cpu_metadata_weights(const xp_ep_call *call,
                                                  const xp_ep_metadata *metadata,
                                                  const xp_ep_combine_args *args);

#endif
