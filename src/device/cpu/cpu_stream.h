/** Streams and events of the CPU device. Private to src/device/cpu. */
#ifndef XP_DEVICE_CPU_CPU_STREAM_H
#define XP_DEVICE_CPU_CPU_STREAM_H

#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"

typedef struct xp_cpu_device {
    xp_device base;
    unsigned caps;
    xp_pool *pool;            /* the rank's threads, for compute streams */
    xp_pool *worker_pool;     /* one thread, for worker streams */
    xp_cpu_observer observer; /* ran NULL: none */
    bool deferred;            /* compute streams keep their work until they are waited for */
    int64_t n_pageable;
    int n_blas_threads; /* with a buffer of OpenBLAS's */
} xp_cpu_device;

xp_status xp_cpu_stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream);
void xp_cpu_stream_destroy(xp_stream *stream);
xp_status xp_cpu_stream_sync(xp_stream *stream);
xp_status xp_cpu_event_create(xp_device *device, xp_event **event);
void xp_cpu_event_destroy(xp_event *event);
xp_status xp_cpu_event_record(xp_event *event, xp_stream *stream);
xp_status xp_cpu_event_wait(xp_event *event, xp_stream *stream);
xp_status xp_cpu_event_sync(xp_event *event, xp_stream *stream);
xp_status xp_cpu_event_query(xp_event *event, bool *passed);
xp_status xp_cpu_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes);
xp_status xp_cpu_zero(xp_stream *stream, void *dst, size_t n_bytes);

#endif
