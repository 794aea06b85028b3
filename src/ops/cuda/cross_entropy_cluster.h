/** Cross-entropy with a row of logits in the shared memory of a cluster. */
#ifndef XP_OPS_CUDA_CROSS_ENTROPY_CLUSTER_H
#define XP_OPS_CUDA_CROSS_ENTROPY_CLUSTER_H

#include "device/cuda/cuda_device.h"
#include "ops/op_optim.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Whether the kernel can run: sm_90, bf16 with gradient, rows of whole 16-byte vectors that are long
 * enough to pay and fit in a cluster. */
bool xp_cuda_cross_entropy_cluster_serves(const xp_cuda_device *device,
                                          const xp_cross_entropy_args *args);
xp_status xp_cuda_cross_entropy_cluster(cudaStream_t stream, const xp_cuda_device *device,
                                        const xp_cross_entropy_args *args);

#ifdef __cplusplus
}
#endif
#endif
