/** The GPU's backends. */
#ifndef XP_EP_CUDA_BACKENDS_H
#define XP_EP_CUDA_BACKENDS_H

#include "ep/backend.h"

extern const xp_ep_backend xp_ep_cuda_local, xp_ep_cuda_p2p, xp_ep_cuda_a2a,
    xp_ep_cuda_hierarchical;

#endif
