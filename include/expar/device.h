/**
 * Devices, memory, streams and events: one interface over the CPU, a CUDA GPU, and the null device
 * that only counts bytes.
 *
 * A device belongs to one rank. A stream runs what is queued on it in order. On the CPU there are
 * two kinds of stream: inline (a call does its work before it returns, on the calling thread and
 * the rank's pool) and worker (a thread of its own takes the work in order; used for communication
 * beside computation). Callers treat both as a queue: outputs are valid after xp_stream_sync() or
 * behind an event.
 *
 * The calling thread's current CUDA device is what it was when a call returns, if the program uses
 * that device. Nothing else of the process is changed: no environment, no signal handlers.
 */
#ifndef EXPAR_DEVICE_H
#define EXPAR_DEVICE_H

#include <stdbool.h>
#include "expar/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_device xp_device;
typedef struct xp_stream xp_stream;
typedef struct xp_event xp_event;

typedef enum xp_device_kind { XP_DEVICE_CPU = 0, XP_DEVICE_CUDA, XP_DEVICE_NULL } xp_device_kind;

typedef enum xp_stream_kind {
    XP_STREAM_COMPUTE = 0, /* CPU: inline */
    XP_STREAM_WORKER,      /* CPU: a thread of its own; CUDA: a second stream, of higher priority */
    XP_STREAM_BESIDE, /* CPU: a thread of its own; CUDA: a second stream, of the same priority */
} xp_stream_kind;

/** All zeros is a CPU with a thread for each core. */
typedef struct xp_device_args {
    xp_device_kind kind;
    int index;        /* which accelerator, 0-based; ignored on the CPU */
    int n_threads;    /* CPU: threads of this rank's pool; 0: as many as this process may use cores.
                         Ranks that are threads of one process share its cores: say how many each */
    const char *caps; /* capabilities to leave out, comma-separated ("avx512,avx2"); NULL: use all.
                            Borrowed during the call */
    xp_device_kind like; /* null device: whose rules it counts by (XP_DEVICE_CPU, XP_DEVICE_CUDA) */
    int64_t
        total_bytes; /* null device: xp_device_total_bytes() of what it stands for; 0: not known */
} xp_device_args;

/** @return XP_OK; XP_EINVAL; XP_ENOTSUP when this machine or build has no such device (the error
 * says why); XP_ENOMEM */
XP_API XP_NODISCARD xp_status xp_device_create(const xp_device_args *args, xp_device **device);
/** Frees the device; every stream, event and allocation of it must be gone. NULL is accepted. */
XP_API void xp_device_destroy(xp_device *device);

XP_API xp_device_kind xp_device_get_kind(const xp_device *device);
/** The kind whose rules hold for sizes and types: the device's own; on a null device what it
 * stands for. */
XP_API xp_device_kind xp_device_like(const xp_device *device);
/** True when host code may read and write device memory itself, and queued work is done when the
 * call that queued it returns (compute streams of a CPU). */
XP_API bool xp_device_host_accessible(const xp_device *device);
/** "cpu", "cuda:0", "null". Valid as long as the device. */
XP_API const char *xp_device_name(const xp_device *device);
/** The GPU's model name ("NVIDIA H200"); "" when it is not known. Valid as long as the device. */
XP_API const char *xp_device_model_name(const xp_device *device);
/** Memory that the device has of its own; 0: the host's, or not known. */
XP_API int64_t xp_device_total_bytes(const xp_device *device);

/**
 * Reserve memory, 256-byte aligned, contents undefined. Only before the first step:
 * xp_device_n_allocs() proves it.
 * @param tag  what the bytes are for ("params", "optimizer", ...); accounted under that name;
 * static or outliving the device
 * @return XP_OK; XP_ENOMEM with the tag and the byte count in the error
 */
XP_API XP_NODISCARD xp_status xp_device_alloc(xp_device *device, size_t n_bytes, const char *tag,
                                              void **data);
/** Give back what xp_device_alloc() returned; NULL is accepted. */
XP_API void xp_device_free(xp_device *device, void *data);
/** Bytes now reserved under `tag`, or under all tags when it is NULL. */
XP_API int64_t xp_device_bytes(const xp_device *device, const char *tag);
XP_API int64_t xp_device_peak_bytes(const xp_device *device);
/** How many xp_device_alloc() and xp_host_alloc() calls there have been. */
XP_API int64_t xp_device_n_allocs(const xp_device *device);
/** How many times a thread has waited for the device: xp_stream_sync() and xp_event_sync() calls.
 */
XP_API int64_t xp_device_n_syncs(const xp_device *device);
/** The i-th tag in order of first use, NULL past the last. */
XP_API const char *xp_device_tag(const xp_device *device, int i);

/**
 * Host memory that the device copies from and to without waiting (page-locked on a GPU, plain
 * memory elsewhere), 256-byte aligned, zeroed. For staging; only before the first step.
 * @param tag  as for xp_device_alloc(), in an account of its own
 * @return XP_OK; XP_ENOMEM with the tag and the byte count in the error
 */
XP_API XP_NODISCARD xp_status xp_host_alloc(xp_device *device, size_t n_bytes, const char *tag,
                                            void **data);
/** Give back what xp_host_alloc() returned; NULL is accepted. */
XP_API void xp_host_free(xp_device *device, void *data);
/** Bytes of staging memory now reserved under `tag`, or under all tags when it is NULL. */
XP_API int64_t xp_host_bytes(const xp_device *device, const char *tag);

XP_API XP_NODISCARD xp_status xp_stream_create(xp_device *device, xp_stream_kind kind,
                                               xp_stream **stream);
/**
 * A compute stream of `device` over a stream that your program has.
 * @param native  a cudaStream_t of the device's GPU, NULL: its default stream; borrowed, must outlive
 * the xp_stream. Not touched here, so it may be capturing a graph. On a CPU NULL: a stream that works
 * on the calling thread
 * @return XP_OK; XP_EINVAL; XP_ENOMEM
 */
XP_API XP_NODISCARD xp_status xp_stream_from_native(xp_device *device, void *native,
                                                    xp_stream **stream);
/** NULL is accepted. Of a stream of xp_stream_from_native() only what stands for it here goes,
 * without waiting. */
XP_API void xp_stream_destroy(xp_stream *stream);
XP_API xp_device *xp_stream_device(const xp_stream *stream);
/** The cudaStream_t of a GPU's stream, for your own kernels between the calls of this library; NULL
 * on other devices. Owned by the stream. */
XP_API void *xp_stream_native(const xp_stream *stream);
/** Wait until everything queued is done. @return the first error of queued work (its text becomes
 * the caller's last error) */
XP_API XP_NODISCARD xp_status xp_stream_sync(xp_stream *stream);

XP_API XP_NODISCARD xp_status xp_event_create(xp_device *device, xp_event **event);
XP_API void xp_event_destroy(xp_event *event);
/** Record this point of the stream; an earlier record is replaced. */
XP_API XP_NODISCARD xp_status xp_event_record(xp_event *event, xp_stream *stream);
/** Later work of `stream` starts after the event's last recorded point. */
XP_API XP_NODISCARD xp_status xp_event_wait(xp_event *event, xp_stream *stream);

/** Wait until `stream`, on which the event was last recorded, has come past that point; what was
 * queued later is not waited for. @return as xp_stream_sync(), of the work before the point */
XP_API XP_NODISCARD xp_status xp_event_sync(xp_event *event, xp_stream *stream);

/** Copy between any two memories (host or device). Host memory must stay valid until the stream has
 * passed the copy. */
XP_API XP_NODISCARD xp_status xp_copy(xp_stream *stream, void *dst, const void *src,
                                      size_t n_bytes);
XP_API XP_NODISCARD xp_status xp_zero(xp_stream *stream, void *dst, size_t n_bytes);

#ifdef __cplusplus
}
#endif
#endif
