#include "device/cuda/cuda_device.h"

static xp_status time_between(cudaEvent_t from, cudaEvent_t to, cudaStream_t stream,
                              xp_status (*call)(void *context), void *context, double *seconds) {
    float ms = 0;
    XP_TRY(xp_cuda_check(cudaEventRecord(from, stream), "cudaEventRecord"));
    XP_TRY(call(context));
    XP_TRY(xp_cuda_check(cudaEventRecord(to, stream), "cudaEventRecord"));
    XP_TRY(xp_cuda_check(cudaEventSynchronize(to), "waiting for the GPU"));
    XP_TRY(xp_cuda_check(cudaEventElapsedTime(&ms, from, to), "cudaEventElapsedTime"));
    *seconds = (double)ms * 1e-3;
    return XP_OK;
}

xp_status xp_cuda_time_call(xp_stream *stream, xp_status (*call)(void *context), void *context,
                            double *seconds) {
    cudaStream_t s;
    cudaEvent_t from, to;
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(xp_cuda_check(cudaEventCreate(&from), "cudaEventCreate"));
    xp_status status = xp_cuda_check(cudaEventCreate(&to), "cudaEventCreate");
    if (status == XP_OK) {
        status = time_between(from, to, s, call, context, seconds);
        cudaEventDestroy(to);
    }
    cudaEventDestroy(from);
    return status;
}
