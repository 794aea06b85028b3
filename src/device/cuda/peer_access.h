/** See xp_gpu_peer_access. */
#ifndef XP_DEVICE_CUDA_PEER_ACCESS_H
#define XP_DEVICE_CUDA_PEER_ACCESS_H

#include "device/plugin.h"

extern const xp_gpu_peer_access xp_cuda_peer_access;

#endif
