/** The metadata exchange on a CPU. */
#ifndef XP_EP_COMMON_CPU_METADATA_H
#define XP_EP_COMMON_CPU_METADATA_H

#include "ep/common/metadata.h"

/** All of a plan but what a transport adds; xp_ep_cpu_plan_finish() is the caller's. */
XP_NODISCARD xp_status xp_ep_cpu_metadata_build(const xp_ep_call *call,
                                                const xp_ep_routing *routing,
                                                const xp_ep_metadata *metadata);
/** Gradients of weights to their sources and into d_topk_weight; nothing without d_weight. */
XP_NODISCARD xp_status xp_ep_cpu_metadata_weights(const xp_ep_call *call,
                                                  const xp_ep_metadata *metadata,
                                                  const xp_ep_combine_args *args);

#endif
