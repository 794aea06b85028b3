/* The entry of libexpar_cuda.so. */
#include "device/cuda/cuda_device.h"
#include "device/plugin.h"

const xp_cuda_backend *xp_cuda_backend_entry(void);

const xp_cuda_backend *xp_cuda_backend_entry(void) {
    static const xp_cuda_backend backend = {
        .abi_version = XP_CUDA_ABI_VERSION,
        .device_count = xp_cuda_device_count,
        .device_create = xp_cuda_device_create,
        .describe = xp_cuda_device_describe,
    };
    return &backend;
}
