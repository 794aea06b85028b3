#include "device/cuda/timing.h"
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

/* Events 2 i and 2 i + 1 stand around call i. */
static xp_status queue_each(cudaStream_t stream, const xp_timed_calls *calls,
                            const cudaEvent_t *events) {
    for (int i = 0; i < calls->n; i++) {
        if (calls->before)
            XP_TRY(calls->before(calls->context));
        XP_TRY(xp_cuda_check(cudaEventRecord(events[2 * i], stream), "cudaEventRecord"));
        XP_TRY(calls->call(calls->context));
        XP_TRY(xp_cuda_check(cudaEventRecord(events[2 * i + 1], stream), "cudaEventRecord"));
    }
    return xp_cuda_check(cudaStreamSynchronize(stream), "waiting for the GPU");
}

xp_status xp_cuda_time_each(xp_stream *stream, const xp_timed_calls *calls, double *seconds) {
    cudaEvent_t events[2 * XP_MAX_TIMED_CALLS];
    cudaStream_t s;
    int n_events = 0;
    if (calls->n < 1 || calls->n > XP_MAX_TIMED_CALLS)
        return xp_error(XP_EINVAL, "%d calls to time, at most %d at once", calls->n,
                        XP_MAX_TIMED_CALLS);
    xp_status status = xp_cuda_enter(stream, &s);
    while (status == XP_OK && n_events < 2 * calls->n) {
        status = xp_cuda_check(cudaEventCreate(&events[n_events]), "cudaEventCreate");
        n_events += status == XP_OK;
    }
    if (status == XP_OK)
        status = queue_each(s, calls, events);
    for (int i = 0; status == XP_OK && i < calls->n; i++) {
        float ms = 0;
        status = xp_cuda_check(cudaEventElapsedTime(&ms, events[2 * i], events[2 * i + 1]),
                               "cudaEventElapsedTime");
        seconds[i] = (double)ms * 1e-3;
    }
    for (int i = 0; i < n_events; i++)
        cudaEventDestroy(events[i]);
    return status;
}
