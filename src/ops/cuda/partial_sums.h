/** The second half of a sum over many rows: partial sums of blocks, added in block order. */
#ifndef XP_OPS_CUDA_PARTIAL_SUMS_H
#define XP_OPS_CUDA_PARTIAL_SUMS_H

#include "device/cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_cuda_partial_sums {
    const float *partial; /* [n_partials, ld], of which the first `width` columns count */
    int64_t n_partials, ld, width;
    void *out; /* [width] of out_dtype */
    xp_dtype out_dtype;
    bool acc;
} xp_cuda_partial_sums;

/** out[c] (+)= sum over partials, in fp64. No partials: zeros, or nothing when acc. */
xp_status xp_cuda_add_partials(cudaStream_t stream, const xp_cuda_partial_sums *args);

#ifdef __cplusplus
}
#endif
#endif
