/** dx += dlogits gate of a bf16 router with few experts, in one pass over dx. */
#ifndef XP_OPS_CUDA_ROUTER_DX_H
#define XP_OPS_CUDA_ROUTER_DX_H

#include <cuda_runtime.h>
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Whether the kernel serves these arguments: experts, row width, alignment. */
bool xp_cuda_router_dx_serves(const xp_router_linear_args *args);
/** Reads dlogits, gate and dx; needs no scratch. */
xp_status xp_cuda_router_dx(cudaStream_t stream, const xp_router_linear_args *args);

#ifdef __cplusplus
}
#endif
#endif
