#include "device/cuda/cuda_device.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

xp_status xp_cuda_check(cudaError_t result, const char *doing) {
    if (result == cudaSuccess)
        return XP_OK;
    cudaGetLastError(); /* clear what can be cleared */
    return xp_error(result == cudaErrorMemoryAllocation ? XP_ENOMEM : XP_EDEVICE, "%s: %s (%s)",
                    doing, cudaGetErrorString(result), cudaGetErrorName(result));
}

static xp_status select_device(const xp_device *device) {
    return xp_cuda_check(cudaSetDevice(((const xp_cuda_device *)device)->index), device->name);
}

xp_status xp_cuda_enter(xp_stream *stream, cudaStream_t *cuda_stream) {
    XP_TRY(select_device(stream->device));
    *cuda_stream = ((xp_cuda_stream *)stream)->stream;
    return XP_OK;
}

/* ---- the calling thread's current device --------------------------------------------------- */

static int cuda_enter(xp_device *device) {
    const int index = ((xp_cuda_device *)device)->index;
    int before = -1;
    if (cudaGetDevice(&before) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    return before != index && cudaSetDevice(index) == cudaSuccess ? before : -1;
}

/* Whether this process uses the device: it may be current only because no thread has chosen. */
static bool is_in_use(int index) {
    __typeof__(cuDevicePrimaryCtxGetState) *get_state = NULL;
    enum cudaDriverEntryPointQueryResult found;
    unsigned flags = 0;
    int active = 1;
    if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", (void **)&get_state, 7000,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        cudaGetLastError();
        return true;
    }
    return get_state(index, &flags, &active) != CUDA_SUCCESS || active != 0;
}

/* To make a device current takes memory on it; that of GPU 0 is not taken for threads that have never
 * chosen a device. */
static void cuda_leave(int before) {
    if (is_in_use(before))
        cudaSetDevice(before);
}

/* ---- devices ------------------------------------------------------------------------------- */

xp_status xp_cuda_device_count(int *n_devices) {
    cudaError_t result = cudaGetDeviceCount(n_devices);
    if (result == cudaErrorInsufficientDriver)
        return xp_error(XP_ENOTSUP, "no NVIDIA driver, or one too old for this build (CUDA %d.%d)",
                        CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (result == cudaErrorNoDevice || (result == cudaSuccess && *n_devices == 0))
        return xp_error(XP_ENOTSUP, "no NVIDIA GPU is visible");
    if (result != cudaSuccess)
        return xp_error(XP_ENOTSUP, "CUDA does not start: %s", cudaGetErrorString(result));
    return XP_OK;
}

xp_status xp_cuda_device_describe(int index, char *text, size_t n_bytes) {
    struct cudaDeviceProp p;
    int driver = 0;
    XP_TRY(xp_cuda_check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties"));
    XP_TRY(xp_cuda_check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion"));
    snprintf(text, n_bytes, "%s, %.1f GiB, %d SMs, sm_%d%d, driver for CUDA %d.%d", p.name,
             (double)p.totalGlobalMem / (double)(1 << 30), p.multiProcessorCount, p.major, p.minor,
             driver / 1000, driver % 1000 / 10);
    return XP_OK;
}

static void cuda_destroy(xp_device *device) {
    xp_cuda_device *cuda = (xp_cuda_device *)device;
    if (cuda->libraries != NULL)
        cuda->libraries_destroy(cuda->libraries);
    if (cuda->tile_counters != NULL && select_device(device) == XP_OK)
        cudaFree(cuda->tile_counters);
    free(cuda);
}

static xp_status cuda_alloc(xp_device *device, size_t n_bytes, void **data) {
    XP_TRY(select_device(device));
    return xp_cuda_check(cudaMalloc(data, n_bytes), "cudaMalloc");
}

static void cuda_free(xp_device *device, void *data) {
    if (select_device(device) == XP_OK)
        cudaFree(data);
}

static xp_status cuda_host_alloc(xp_device *device, size_t n_bytes, void **data) {
    XP_TRY(select_device(device));
    XP_TRY(xp_cuda_check(cudaHostAlloc(data, n_bytes, cudaHostAllocPortable), "cudaHostAlloc"));
    memset(*data, 0, n_bytes);
    return XP_OK;
}

static void cuda_host_free(xp_device *device, void *data) {
    if (select_device(device) == XP_OK)
        cudaFreeHost(data);
}

static xp_status cuda_stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream) {
    int lowest = 0, highest = 0;
    XP_TRY(select_device(device));
    XP_TRY(xp_cuda_check(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
                         "cudaDeviceGetStreamPriorityRange"));
    xp_cuda_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return xp_error(XP_ENOMEM, "stream: out of memory");
    /* Communication needs few blocks, and another rank may wait for them: as SMs become free, they go
     * before the blocks of what is computed beside it. */
    xp_status status =
        xp_cuda_check(cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking,
                                                   kind == XP_STREAM_WORKER ? highest : lowest),
                      "cudaStreamCreate");
    if (status != XP_OK) {
        free(s);
        return status;
    }
    *stream = &s->base;
    return XP_OK;
}

/* No call of CUDA: the stream may be capturing a graph. */
static xp_status cuda_stream_from_native(xp_device *device, void *native, xp_stream **stream) {
    (void)device;
    xp_cuda_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return xp_error(XP_ENOMEM, "stream: out of memory");
    s->stream = native;
    s->borrowed = true;
    *stream = &s->base;
    return XP_OK;
}

static void cuda_stream_destroy(xp_stream *stream) {
    xp_cuda_stream *s = (xp_cuda_stream *)stream;
    if (!s->borrowed && select_device(stream->device) == XP_OK)
        cudaStreamDestroy(s->stream);
    free(s);
}

static xp_status cuda_stream_sync(xp_stream *stream) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaStreamSynchronize(s), "waiting for the GPU");
}

static void *cuda_stream_native(const xp_stream *stream) {
    return ((const xp_cuda_stream *)stream)->stream;
}

static xp_status create_event(xp_device *device, unsigned flags, xp_event **event) {
    XP_TRY(select_device(device));
    xp_cuda_event *e = calloc(1, sizeof *e);
    if (e == NULL)
        return xp_error(XP_ENOMEM, "event: out of memory");
    xp_status status = xp_cuda_check(cudaEventCreateWithFlags(&e->event, flags), "cudaEventCreate");
    if (status != XP_OK) {
        free(e);
        return status;
    }
    *event = &e->base;
    return XP_OK;
}

static xp_status cuda_event_create(xp_device *device, xp_event **event) {
    return create_event(device, cudaEventDisableTiming, event);
}

static xp_status cuda_timed_event_create(xp_device *device, xp_event **event) {
    return create_event(device, cudaEventDefault, event);
}

static xp_status cuda_event_elapsed(xp_event *from, xp_event *to, double *seconds) {
    float ms = 0;
    XP_TRY(select_device(from->device));
    XP_TRY(xp_cuda_check(
        cudaEventElapsedTime(&ms, ((xp_cuda_event *)from)->event, ((xp_cuda_event *)to)->event),
        "cudaEventElapsedTime"));
    *seconds = (double)ms * 1e-3;
    return XP_OK;
}

static void cuda_event_destroy(xp_event *event) {
    if (select_device(event->device) == XP_OK)
        cudaEventDestroy(((xp_cuda_event *)event)->event);
    free(event);
}

static xp_status cuda_event_record(xp_event *event, xp_stream *stream) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaEventRecord(((xp_cuda_event *)event)->event, s), "cudaEventRecord");
}

static xp_status cuda_event_wait(xp_event *event, xp_stream *stream) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaStreamWaitEvent(s, ((xp_cuda_event *)event)->event, 0),
                         "cudaStreamWaitEvent");
}

static xp_status cuda_event_sync(xp_event *event, xp_stream *stream) {
    (void)stream;
    XP_TRY(select_device(event->device));
    return xp_cuda_check(cudaEventSynchronize(((xp_cuda_event *)event)->event),
                         "waiting for the GPU");
}

/* Also asked by threads that do nothing else: without a choice they would wake up GPU 0. */
static xp_status cuda_event_query(xp_event *event, bool *passed) {
    XP_TRY(select_device(event->device));
    cudaError_t result = cudaEventQuery(((xp_cuda_event *)event)->event);
    *passed = result != cudaErrorNotReady;
    if (*passed)
        return xp_cuda_check(result, "cudaEventQuery");
    cudaGetLastError(); /* "not ready" would look like the error of a later launch */
    return XP_OK;
}

static xp_status cuda_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDefault, s),
                         "cudaMemcpyAsync");
}

static xp_status cuda_zero(xp_stream *stream, void *dst, size_t n_bytes) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaMemsetAsync(dst, 0, n_bytes, s), "cudaMemsetAsync");
}

/* On the context's own stream, for which ours do not wait: no stream is made for a copy. */
static xp_status cuda_move(xp_device *device, void *dst, const void *src, size_t n_bytes) {
    XP_TRY(select_device(device));
    XP_TRY(xp_cuda_check(src == NULL ? cudaMemsetAsync(dst, 0, n_bytes, NULL)
                                     : cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDefault, NULL),
                         "copying"));
    return xp_cuda_check(cudaStreamSynchronize(NULL), "copying");
}

/* ---- graphs ------------------------------------------------------------------------------- */

/* Other threads of the process, which copy and allocate meanwhile, are none of the recording's business. */
static xp_status cuda_graph_begin(xp_stream *stream, xp_graph **graph) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    xp_cuda_graph *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "graph: out of memory");
    const xp_status status = xp_cuda_check(
        cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    if (status != XP_OK) {
        free(made);
        return status;
    }
    *graph = &made->base;
    return XP_OK;
}

static xp_status cuda_graph_end(xp_stream *stream, xp_graph *graph, bool *any) {
    xp_cuda_graph *made = (xp_cuda_graph *)graph;
    cudaGraph_t recorded = NULL;
    size_t n_nodes = 0;
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    xp_status status = xp_cuda_check(cudaStreamEndCapture(s, &recorded), "cudaStreamEndCapture");
    if (status == XP_OK)
        status = xp_cuda_check(cudaGraphGetNodes(recorded, NULL, &n_nodes), "cudaGraphGetNodes");
    *any = n_nodes > 0;
    if (status == XP_OK && *any)
        status = xp_cuda_check(cudaGraphInstantiateWithFlags(&made->graph, recorded, 0),
                               "cudaGraphInstantiate");
    if (recorded != NULL)
        cudaGraphDestroy(recorded);
    return status;
}

static xp_status cuda_graph_launch(xp_graph *graph, xp_stream *stream) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    return xp_cuda_check(cudaGraphLaunch(((xp_cuda_graph *)graph)->graph, s), "cudaGraphLaunch");
}

static void cuda_graph_destroy(xp_graph *graph) {
    xp_cuda_graph *made = (xp_cuda_graph *)graph;
    if (made->graph != NULL && select_device(graph->device) == XP_OK)
        cudaGraphExecDestroy(made->graph);
    free(made);
}

static const xp_device_vtable cuda_vtable = {
    .enter = cuda_enter,
    .leave = cuda_leave,
    .destroy = cuda_destroy,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .stream_create = cuda_stream_create,
    .stream_from_native = cuda_stream_from_native,
    .stream_destroy = cuda_stream_destroy,
    .stream_sync = cuda_stream_sync,
    .stream_native = cuda_stream_native,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .event_wait = cuda_event_wait,
    .event_sync = cuda_event_sync,
    .event_query = cuda_event_query,
    .timed_event_create = cuda_timed_event_create,
    .event_elapsed = cuda_event_elapsed,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .move = cuda_move,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .graph_destroy = cuda_graph_destroy,
};

/* Take the capabilities named in `list` out. */
static xp_status leave_out(const char *list, xp_cuda_device *cuda) {
    for (const char *at = list; at != NULL && *at != '\0';) {
        size_t n = strcspn(at, ",");
        if (n == 5 && memcmp(at, "wgmma", n) == 0)
            cuda->wgmma = false;
        else if (n == 17 && memcmp(at, "attention_forward", n) == 0)
            cuda->attention_forward = false;
        else if (n == 13 && memcmp(at, "silu_epilogue", n) == 0)
            cuda->silu_epilogue = false;
        else if (n == 4 && memcmp(at, "bulk", n) == 0)
            cuda->bulk = false;
        else if (n == 5 && memcmp(at, "cudnn", n) == 0)
            cuda->without_cudnn = true;
        else if (n == 11 && memcmp(at, "side_stream", n) == 0)
            cuda->base.without_side_stream = true;
        else if (n == 13 && memcmp(at, "deterministic", n) == 0)
            cuda->without_determinism = true;
        else if (n != 0)
            return xp_error(XP_EINVAL,
                            "%s: no capability \"%.*s\"; there are wgmma, attention_forward, "
                            "silu_epilogue, bulk, cudnn, side_stream and deterministic",
                            cuda->base.name, (int)n, at);
        at += n;
        if (*at == ',')
            at++;
    }
    return XP_OK;
}

xp_status xp_cuda_device_create(const xp_device_args *args, xp_device **device) {
    int n_devices;
    XP_TRY(xp_cuda_device_count(&n_devices));
    if (args->index < 0 || args->index >= n_devices)
        return xp_error(XP_EINVAL, "cuda:%d: this machine has %d GPU%s", args->index, n_devices,
                        n_devices == 1 ? "" : "s");
    struct cudaDeviceProp p;
    XP_TRY(xp_cuda_check(cudaGetDeviceProperties(&p, args->index), "cudaGetDeviceProperties"));
    if (p.major < 8)
        return xp_error(XP_ENOTSUP, "cuda:%d is a %s (sm_%d%d); expar needs sm_80 or newer",
                        args->index, p.name, p.major, p.minor);
    xp_cuda_device *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL)
        return xp_error(XP_ENOMEM, "cuda device: out of memory");
    cuda->base.vtable = &cuda_vtable;
    snprintf(cuda->base.name, sizeof cuda->base.name, "cuda:%d", args->index);
    snprintf(cuda->base.model_name, sizeof cuda->base.model_name, "%s", p.name);
    cuda->base.total_bytes = (int64_t)p.totalGlobalMem;
    cuda->index = args->index;
    cuda->n_sms = p.multiProcessorCount;
    cuda->compute_capability = 10 * p.major + p.minor;
    cuda->l2_bytes = (size_t)p.l2CacheSize;
    cuda->shared_bytes = p.sharedMemPerBlockOptin;
    cuda->wgmma = cuda->compute_capability == 90;
    cuda->attention_forward = cuda->wgmma;
    cuda->silu_epilogue = cuda->wgmma;
    cuda->bulk = cuda->compute_capability >= 90;
    xp_status status = leave_out(args->caps, cuda);
    if (status != XP_OK) {
        free(cuda);
        return status;
    }
    *device = &cuda->base;
    return XP_OK;
}
