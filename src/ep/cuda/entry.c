/* The entry of libexpar_cuda.so. It stands here because this is the highest layer that has kernels:
 * it may see all below. */
#include "comm/cuda/rank_reduce.h"
#include "comm/nccl/calls.h"
#include "device/cuda/cuda_device.h"
#include "device/cuda/peer_access.h"
#include "device/cuda/timing.h"
#include "device/plugin.h"
#include "ep/backends.h"
#include "ep/cuda/backends.h"
#include "ops/cuda/cublaslt.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/libraries.h"

const xp_cuda_backend *xp_cuda_backend_entry(void);

static xp_status prepare(xp_device *device) {
    xp_cublaslt *lt;
    return xp_cublaslt_get((xp_cuda_device *)device, &lt);
}

const xp_cuda_backend *xp_cuda_backend_entry(void) {
    static const xp_ep_backend_set ep_backends = {.local = &xp_ep_cuda_local,
                                                  .p2p = &xp_ep_cuda_p2p,
                                                  .a2a = &xp_ep_cuda_a2a,
                                                  .hierarchical = &xp_ep_cuda_hierarchical};
    static const xp_cuda_backend backend = {
        .abi_version = XP_CUDA_ABI_VERSION,
        .device_count = xp_cuda_device_count,
        .device_create = xp_cuda_device_create,
        .describe = xp_cuda_device_describe,
        .ops = &xp_cuda_ops,
        .ep_backends = &ep_backends,
        .plain_activation = &xp_cuda_plain_activation,
        .library_describe = xp_cuda_library_describe,
        .time_call = xp_cuda_time_call,
        .time_each = xp_cuda_time_each,
        .reduce = xp_cuda_rank_reduce,
        .gemm_choices = &xp_cublaslt_choices,
        .prepare = prepare,
        .peer_access = &xp_cuda_peer_access,
        .nccl = xp_nccl_open,
        .loaded_nccl = xp_nccl_open_loaded,
        .attention_by_cudnn = xp_cuda_attention_by_cudnn,
    };
    return &backend;
}
