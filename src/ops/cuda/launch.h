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

/** Let a kernel have n_bytes of dynamic shared memory, and its SM as much as there is: several blocks
 * are to be resident. */
static inline xp_status xp_cuda_give_shared(const void *kernel, size_t n_bytes, const char *op) {
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_bytes),
        op));
    return xp_cuda_check(cudaFuncSetAttribute(kernel,
                                              cudaFuncAttributePreferredSharedMemoryCarveout,
                                              cudaSharedmemCarveoutMaxShared),
                         op);
}

/** Whether 16-byte accesses may start at this address. NULL is aligned: it is not used. */
static inline bool xp_is_aligned(const void *data) {
    return (uintptr_t)data % 16 == 0;
}

#endif
