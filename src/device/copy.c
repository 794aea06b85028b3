/* Copies, on streams and beside them. */
#include "device/device_internal.h"
#include "device/scope.h"
#include "device/recorder.h"

xp_status xp_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    XP_DEVICE_SCOPE(stream->device);
    if (n_bytes == 0)
        return XP_OK;
    const int64_t op = xp_recorder_begin_op(stream, "copy");
    return xp_recorder_end_op(stream, op, stream->device->vtable->copy(stream, dst, src, n_bytes));
}

xp_status xp_zero(xp_stream *stream, void *dst, size_t n_bytes) {
    XP_DEVICE_SCOPE(stream->device);
    if (n_bytes == 0)
        return XP_OK;
    const int64_t op = xp_recorder_begin_op(stream, "copy");
    return xp_recorder_end_op(stream, op, stream->device->vtable->zero(stream, dst, n_bytes));
}

static xp_status move(xp_device *device, void *dst, const void *src, size_t n_bytes) {
    xp_stream *stream = NULL;
    if (device->kind == XP_DEVICE_NULL)
        return XP_OK;
    if (device->vtable->move != NULL)
        return n_bytes == 0 ? XP_OK : device->vtable->move(device, dst, src, n_bytes);
    XP_TRY(xp_stream_create(device, XP_STREAM_COMPUTE, &stream));
    xp_status status =
        src == NULL ? xp_zero(stream, dst, n_bytes) : xp_copy(stream, dst, src, n_bytes);
    if (status == XP_OK)
        status = xp_stream_sync(stream);
    xp_stream_destroy(stream);
    return status;
}

xp_status xp_device_clear(xp_device *device, void *data, size_t n_bytes) {
    return move(device, data, NULL, n_bytes);
}

xp_status xp_device_move(xp_device *device, void *dst, const void *src, size_t n_bytes) {
    return move(device, dst, src, n_bytes);
}
