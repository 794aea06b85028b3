/** The CUDA device's insides, for kernels and libraries that run on it. */
#ifndef XP_DEVICE_CUDA_CUDA_DEVICE_H
#define XP_DEVICE_CUDA_CUDA_DEVICE_H

#include <cuda_runtime_api.h>
#include "device/device_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_CUDA_COUNTER_STREAMS 16

typedef struct xp_cuda_device {
    xp_device base;
    int index;
    int n_sms, compute_capability; /* 90 for sm_90 */
    size_t l2_bytes, shared_bytes; /* shared memory a block may opt in to */
    /* capabilities that xp_device_args.caps leaves out: "cudnn", "deterministic" (then faster ways
     * are taken whose sums have no fixed order: cuDNN's attention backward) */
    bool without_cudnn, without_determinism;
    bool wgmma; /* sm_90's matrix instructions, unless left out through xp_device_args.caps */
    bool attention_forward; /* attention forward of our own on sm_90 instead of cuDNN's, likewise */
    bool silu_epilogue;     /* the experts' activation in the epilogues of their GEMMs, likewise */
    bool bulk;              /* bulk asynchronous copies (sm_90 and newer), likewise */
    void *libraries; /* ops/cuda: cuBLASLt and cuDNN handles, made on first use before step 1 */
    void (*libraries_destroy)(void *libraries);
    /* ops/cuda: tile counters of this device's streams, in device memory, made on first use */
    void *tile_counters;
    cudaStream_t counter_streams[XP_CUDA_COUNTER_STREAMS];
    int n_counter_streams;
} xp_cuda_device;

typedef struct xp_cuda_stream {
    xp_stream base;
    cudaStream_t stream;
    bool borrowed; /* of xp_stream_from_native(): not ours to destroy */
} xp_cuda_stream;

typedef struct xp_cuda_event {
    xp_event base;
    cudaEvent_t event;
} xp_cuda_event;

typedef struct xp_cuda_graph {
    xp_graph base;
    cudaGraphExec_t graph; /* NULL while it is being recorded */
} xp_cuda_graph;

/** XP_OK, or XP_EDEVICE (XP_ENOMEM for memory) with what was being done and what CUDA says. */
XP_NODISCARD xp_status xp_cuda_check(cudaError_t result, const char *doing);
/** Make the stream's device the calling thread's current one and give the CUDA stream. */
XP_NODISCARD xp_status xp_cuda_enter(xp_stream *stream, cudaStream_t *cuda_stream);

xp_status xp_cuda_device_count(int *n_devices);
xp_status xp_cuda_device_create(const xp_device_args *args, xp_device **device);
xp_status xp_cuda_device_describe(int index, char *text, size_t n_bytes);
/** See xp_cuda_backend.time_call. */
xp_status xp_cuda_time_call(xp_stream *stream, xp_status (*call)(void *context), void *context,
                            double *seconds);

#ifdef __cplusplus
}
#endif
#endif
