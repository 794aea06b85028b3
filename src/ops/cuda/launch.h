/** Host side of launches: how many blocks, which width of access, and the order of block sums. */
#ifndef XP_OPS_CUDA_LAUNCH_H
#define XP_OPS_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include "device/cuda/cuda_device.h"

/** Blocks a grid's x may have. */
#define XP_CUDA_MAX_GRID 2147483647LL

static inline const xp_cuda_device *xp_cuda_device_of(const xp_stream *stream) {
    return (const xp_cuda_device *)stream->device;
}

static inline int64_t xp_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static inline int64_t xp_min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/** Whether 16-byte accesses may start at this address. NULL is aligned: it is not used. */
static inline bool xp_is_aligned(const void *data) {
    return (uintptr_t)data % 16 == 0;
}

#endif
