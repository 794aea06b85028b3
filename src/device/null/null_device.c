/* A device without memory: it gives distinct addresses that nobody may touch, and its streams do
 * nothing. With it the functions that reserve a run's memory count what a real device would hold.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "device/device_internal.h"

typedef struct null_device {
    xp_device base;
    uintptr_t next; /* never a mapped address: the upper, non-canonical half */
} null_device;

static void null_destroy(xp_device *device) {
    free(device);
}

static xp_status null_alloc(xp_device *device, size_t n_bytes, void **data) {
    null_device *null = (null_device *)device;
    *data = (void *)null->next;
    null->next += n_bytes;
    return XP_OK;
}

static void null_free(xp_device *device, void *data) {
    (void)device;
    (void)data;
}

/* Real memory: who fills staging memory before a copy need not know what it copies to. */
static xp_status null_host_alloc(xp_device *device, size_t n_bytes, void **data) {
    (void)device;
    *data = calloc(1, n_bytes);
    return *data == NULL ? xp_error(XP_ENOMEM, "out of memory") : XP_OK;
}

static void null_host_free(xp_device *device, void *data) {
    (void)device;
    free(data);
}

static xp_status null_stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream) {
    (void)device;
    (void)kind;
    *stream = calloc(1, sizeof **stream);
    return *stream == NULL ? xp_error(XP_ENOMEM, "stream: out of memory") : XP_OK;
}

static xp_status null_stream_from_native(xp_device *device, void *native, xp_stream **stream) {
    (void)native;
    return null_stream_create(device, XP_STREAM_COMPUTE, stream);
}

static void null_stream_destroy(xp_stream *stream) {
    free(stream);
}

static xp_status null_stream_sync(xp_stream *stream) {
    (void)stream;
    return XP_OK;
}

static xp_status null_event_create(xp_device *device, xp_event **event) {
    (void)device;
    *event = calloc(1, sizeof **event);
    return *event == NULL ? xp_error(XP_ENOMEM, "event: out of memory") : XP_OK;
}

static void null_event_destroy(xp_event *event) {
    free(event);
}

static xp_status null_event(xp_event *event, xp_stream *stream) {
    (void)event;
    (void)stream;
    return XP_OK;
}

static xp_status null_event_query(xp_event *event, bool *passed) {
    (void)event;
    *passed = true;
    return XP_OK;
}

static xp_status null_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    (void)stream;
    (void)dst;
    (void)src;
    (void)n_bytes;
    return XP_OK;
}

static xp_status null_zero(xp_stream *stream, void *dst, size_t n_bytes) {
    return null_copy(stream, dst, NULL, n_bytes);
}

static const xp_device_vtable null_vtable = {
    .destroy = null_destroy,
    .alloc = null_alloc,
    .free = null_free,
    .host_alloc = null_host_alloc,
    .host_free = null_host_free,
    .stream_create = null_stream_create,
    .stream_from_native = null_stream_from_native,
    .stream_destroy = null_stream_destroy,
    .stream_sync = null_stream_sync,
    .event_create = null_event_create,
    .event_destroy = null_event_destroy,
    .event_record = null_event,
    .event_wait = null_event,
    .event_sync = null_event,
    .event_query = null_event_query,
    .copy = null_copy,
    .zero = null_zero,
};

xp_status xp_null_device_create(const xp_device_args *args, xp_device **device) {
    null_device *null = calloc(1, sizeof *null);
    if (null == NULL)
        return xp_error(XP_ENOMEM, "null device: out of memory");
    null->base.vtable = &null_vtable;
    null->base.like = args->like;
    null->base.total_bytes = args->total_bytes;
    null->next = (uintptr_t)1 << 62;
    snprintf(null->base.name, sizeof null->base.name, "null");
    *device = &null->base;
    return XP_OK;
}
