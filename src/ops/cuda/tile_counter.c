/* Counters in device memory, one per stream, from which persistent kernels take tiles. */
#include "ops/cuda/tile_gemm.h"

enum { COUNTER_BYTES = 128 }; /* apart, so that streams do not share a cache line */

static xp_status reserve(xp_cuda_device *device) {
    const size_t n_bytes = (size_t)XP_CUDA_COUNTER_STREAMS * COUNTER_BYTES;
    void *counters = NULL;
    XP_TRY(xp_cuda_check(cudaMalloc(&counters, n_bytes), "cudaMalloc"));
    xp_status status =
        xp_cuda_check(cudaMemsetAsync(counters, 0, n_bytes, NULL), "clearing tile counters");
    if (status == XP_OK)
        status = xp_cuda_check(cudaStreamSynchronize(NULL), "clearing tile counters");
    if (status != XP_OK) {
        cudaFree(counters);
        return status;
    }
    device->tile_counters = counters;
    return XP_OK;
}

xp_status xp_cuda_tile_counter(xp_stream *stream, uint32_t **counter) {
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    const cudaStream_t s = ((const xp_cuda_stream *)stream)->stream;
    const bool ours = stream->recording != NULL;
    enum cudaStreamCaptureStatus capturing;
    *counter = NULL;
    XP_TRY(xp_cuda_check(cudaStreamIsCapturing(s, &capturing), "cudaStreamIsCapturing"));
    if (capturing != cudaStreamCaptureStatusNone && !ours)
        return XP_OK;
    int i = 0;
    while (i < device->n_counter_streams && device->counter_streams[i] != s)
        i++;
    if (i == XP_CUDA_COUNTER_STREAMS || (ours && device->tile_counters == NULL))
        return XP_OK;
    if (device->tile_counters == NULL)
        XP_TRY(reserve(device));
    if (i == device->n_counter_streams)
        device->counter_streams[device->n_counter_streams++] = s;
    *counter = (uint32_t *)((char *)device->tile_counters + (size_t)i * COUNTER_BYTES);
    return XP_OK;
}
