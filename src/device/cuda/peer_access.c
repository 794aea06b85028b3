/* Memory of one GPU used from another, and of one process from another. */
#include "device/cuda/peer_access.h"

#include <string.h>
#include "device/cuda/cuda_device.h"

_Static_assert(sizeof(cudaIpcMemHandle_t) <= XP_IPC_HANDLE_BYTES, "room for CUDA's handle");
_Static_assert(sizeof(cudaUUID_t) <= XP_GPU_ID_BYTES, "room for CUDA's identity");

static xp_status select_device(const xp_device *device) {
    return xp_cuda_check(cudaSetDevice(((const xp_cuda_device *)device)->index), device->name);
}

static xp_status identity(xp_device *device, char id[XP_GPU_ID_BYTES]) {
    struct cudaDeviceProp p;
    XP_TRY(xp_cuda_check(cudaGetDeviceProperties(&p, ((xp_cuda_device *)device)->index),
                         "cudaGetDeviceProperties"));
    memset(id, 0, XP_GPU_ID_BYTES);
    memcpy(id, &p.uuid, sizeof p.uuid);
    return XP_OK;
}

static xp_status can_reach(int from, int to, bool *reaches) {
    int can = 0;
    XP_TRY(xp_cuda_check(cudaDeviceCanAccessPeer(&can, from, to), "cudaDeviceCanAccessPeer"));
    *reaches = can != 0;
    return XP_OK;
}

static xp_status enable_peer(xp_device *device, xp_device *peer) {
    const int from = ((xp_cuda_device *)device)->index, to = ((xp_cuda_device *)peer)->index;
    bool reaches = false;
    if (from == to)
        return XP_OK;
    XP_TRY(can_reach(from, to, &reaches));
    if (!reaches)
        return xp_error(XP_ENOTSUP,
                        "%s cannot use memory of %s (no NVLink or PCIe path between them; "
                        "nvidia-smi topo -p2p r shows them all): set "
                        "parallelism.expert_parallel_comm_backend = \"standard\"",
                        device->name, peer->name);
    XP_TRY(select_device(device));
    cudaError_t result = cudaDeviceEnablePeerAccess(to, 0);
    if (result == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError(); /* would look like the error of a later launch */
        return XP_OK;
    }
    return xp_cuda_check(result, "cudaDeviceEnablePeerAccess");
}

static xp_status export_memory(xp_device *device, void *data, char handle[XP_IPC_HANDLE_BYTES]) {
    cudaIpcMemHandle_t made;
    XP_TRY(select_device(device));
    xp_status status = xp_cuda_check(cudaIpcGetMemHandle(&made, data), "cudaIpcGetMemHandle");
    if (status != XP_OK)
        return xp_error_context(status,
                                "%s: memory cannot be shared between processes here; run "
                                "the ranks as threads (NGPU=n), or set "
                                "parallelism.expert_parallel_comm_backend = \"standard\"",
                                device->name);
    memset(handle, 0, XP_IPC_HANDLE_BYTES);
    memcpy(handle, &made, sizeof made);
    return XP_OK;
}

static xp_status open_memory(xp_device *device, const char handle[XP_IPC_HANDLE_BYTES],
                             void **data) {
    cudaIpcMemHandle_t theirs;
    memcpy(&theirs, handle, sizeof theirs);
    XP_TRY(select_device(device));
    xp_status status = xp_cuda_check(
        cudaIpcOpenMemHandle(data, theirs, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
    if (status == XP_OK)
        return XP_OK;
    return xp_error_context(status,
                            "%s: cannot open another process's memory (GPUs that do not "
                            "reach each other, or containers that do not share IPC); run "
                            "the ranks as threads (NGPU=n), or set "
                            "parallelism.expert_parallel_comm_backend = \"standard\"",
                            device->name);
}

static void close_memory(xp_device *device, void *data) {
    if (select_device(device) == XP_OK)
        cudaIpcCloseMemHandle(data);
}

const xp_gpu_peer_access xp_cuda_peer_access = {
    .identity = identity,
    .can_reach = can_reach,
    .enable_peer = enable_peer,
    .export_memory = export_memory,
    .open_memory = open_memory,
    .close_memory = close_memory,
    .granularity = XP_GPU_SHARED_BLOCK_BYTES,
};
