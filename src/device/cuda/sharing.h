/** See xp_gpu_sharing. */
#ifndef XP_DEVICE_CUDA_SHARING_H
#define XP_DEVICE_CUDA_SHARING_H

#include "device/plugin.h"

extern const xp_gpu_sharing xp_cuda_sharing;

#endif
