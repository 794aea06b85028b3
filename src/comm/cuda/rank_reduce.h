/** Reductions between ranks that share a GPU. */
#ifndef XP_COMM_CUDA_RANK_REDUCE_H
#define XP_COMM_CUDA_RANK_REDUCE_H

#include "comm/reduce.h"
#include "device/cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/** See xp_cuda_backend.reduce. */
xp_status xp_cuda_rank_reduce(xp_stream *stream, const void *args);

#ifdef __cplusplus
}
#endif
#endif
