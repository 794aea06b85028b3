/** The GPU's table for expert parallelism; see ep/device_ops.h. */
#ifndef XP_EP_CUDA_CUDA_GROUP_H
#define XP_EP_CUDA_CUDA_GROUP_H

#include "ep/device_ops.h"

extern const xp_ep_device_ops xp_ep_cuda_ops;

#endif
