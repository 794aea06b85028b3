#include "device/device_internal.h"
#include "device/plugin.h"

#include <stdlib.h>
#include <string.h>

typedef struct xp_allocation {
    struct xp_allocation *next;
    void *data;
    size_t n_bytes;
    int tag;
} allocation;

xp_status xp_device_create(const xp_device_args *args, xp_device **device) {
    xp_device *made = NULL;
    const xp_cuda_backend *cuda;
    switch (args->kind) {
    case XP_DEVICE_CPU:
        XP_TRY(xp_cpu_device_create(args, &made));
        break;
    case XP_DEVICE_NULL:
        XP_TRY(xp_null_device_create(args, &made));
        break;
    case XP_DEVICE_CUDA:
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->device_create(args, &made));
        break;
    default:
        return xp_error(XP_EINVAL, "device: %d is no kind of device", (int)args->kind);
    }
    made->kind = args->kind;
    pthread_mutex_init(&made->lock, NULL);
    *device = made;
    return XP_OK;
}

void xp_device_destroy(xp_device *device) {
    if (device == NULL)
        return;
    while (device->allocations != NULL)
        xp_device_free(device, device->allocations->data);
    pthread_mutex_destroy(&device->lock);
    device->vtable->destroy(device);
}

xp_device_kind xp_device_get_kind(const xp_device *device) {
    return device->kind;
}

const char *xp_device_name(const xp_device *device) {
    return device->name;
}

/* Index of the tag's account, made when new; -1 when the table is full. Under the lock. */
static int find_tag(xp_device *device, const char *tag) {
    for (int i = 0; i < device->n_tags; i++)
        if (strcmp(device->tags[i].tag, tag) == 0)
            return i;
    if (device->n_tags == XP_MAX_TAGS)
        return -1;
    device->tags[device->n_tags] = (xp_tag_account){.tag = tag};
    return device->n_tags++;
}

static void account(xp_device *device, int tag, int64_t n_bytes) {
    device->tags[tag].n_bytes += n_bytes;
    device->n_bytes += n_bytes;
    if (device->n_bytes > device->peak_bytes)
        device->peak_bytes = device->n_bytes;
}

xp_status xp_device_alloc(xp_device *device, size_t n_bytes, const char *tag, void **data) {
    if (n_bytes > (size_t)INT64_MAX / 2)
        return xp_error(XP_EINVAL, "%s: cannot reserve %zu bytes for %s", device->name, n_bytes,
                        tag);
    size_t rounded = n_bytes == 0 ? 256 : (n_bytes + 255) / 256 * 256;
    allocation *a = malloc(sizeof *a);
    if (a == NULL)
        return xp_error(XP_ENOMEM, "%s: out of memory", device->name);
    void *got = NULL;
    xp_status status = device->vtable->alloc(device, rounded, &got);
    if (status != XP_OK) {
        free(a);
        return xp_error_context(status,
                                "%s: cannot reserve %.2f GiB for %s (%.2f GiB are reserved)",
                                device->name, (double)rounded / (double)(1 << 30), tag,
                                (double)xp_device_bytes(device, NULL) / (double)(1 << 30));
    }
    pthread_mutex_lock(&device->lock);
    int index = find_tag(device, tag);
    if (index >= 0) {
        *a = (allocation){
            .next = device->allocations, .data = got, .n_bytes = rounded, .tag = index};
        device->allocations = a;
        device->n_allocs++;
        account(device, index, (int64_t)rounded);
    }
    pthread_mutex_unlock(&device->lock);
    if (index < 0) {
        device->vtable->free(device, got);
        free(a);
        return xp_error(XP_EINTERNAL, "%s: more than %d memory tags", device->name, XP_MAX_TAGS);
    }
    *data = got;
    return XP_OK;
}

void xp_device_free(xp_device *device, void *data) {
    if (data == NULL)
        return;
    pthread_mutex_lock(&device->lock);
    allocation **at = &device->allocations;
    while (*at != NULL && (*at)->data != data)
        at = &(*at)->next;
    allocation *a = *at;
    if (a != NULL) {
        *at = a->next;
        account(device, a->tag, -(int64_t)a->n_bytes);
    }
    pthread_mutex_unlock(&device->lock);
    if (a == NULL)
        return;
    device->vtable->free(device, data);
    free(a);
}

xp_status xp_device_account(xp_device *device, const char *tag, int64_t n_bytes) {
    pthread_mutex_lock(&device->lock);
    int index = find_tag(device, tag);
    if (index >= 0) {
        device->n_allocs += n_bytes > 0;
        account(device, index, n_bytes);
    }
    pthread_mutex_unlock(&device->lock);
    return index >= 0 ? XP_OK
                      : xp_error(XP_EINTERNAL, "%s: more than %d memory tags", device->name,
                                 XP_MAX_TAGS);
}

int64_t xp_device_bytes(const xp_device *device, const char *tag) {
    if (tag == NULL)
        return device->n_bytes;
    for (int i = 0; i < device->n_tags; i++)
        if (strcmp(device->tags[i].tag, tag) == 0)
            return device->tags[i].n_bytes;
    return 0;
}

int64_t xp_device_peak_bytes(const xp_device *device) {
    return device->peak_bytes;
}

int64_t xp_device_n_allocs(const xp_device *device) {
    return device->n_allocs;
}

const char *xp_device_tag(const xp_device *device, int i) {
    return i >= 0 && i < device->n_tags ? device->tags[i].tag : NULL;
}

xp_status xp_stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream) {
    XP_TRY(device->vtable->stream_create(device, kind, stream));
    (*stream)->device = device;
    (*stream)->kind = kind;
    return XP_OK;
}

void xp_stream_destroy(xp_stream *stream) {
    if (stream != NULL)
        stream->device->vtable->stream_destroy(stream);
}

xp_device *xp_stream_device(const xp_stream *stream) {
    return stream->device;
}

xp_status xp_stream_sync(xp_stream *stream) {
    return stream->device->vtable->stream_sync(stream);
}

xp_status xp_event_create(xp_device *device, xp_event **event) {
    XP_TRY(device->vtable->event_create(device, event));
    (*event)->device = device;
    return XP_OK;
}

void xp_event_destroy(xp_event *event) {
    if (event != NULL)
        event->device->vtable->event_destroy(event);
}

xp_status xp_event_record(xp_event *event, xp_stream *stream) {
    return event->device->vtable->event_record(event, stream);
}

xp_status xp_event_wait(xp_event *event, xp_stream *stream) {
    return event->device->vtable->event_wait(event, stream);
}

xp_status xp_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    if (n_bytes == 0)
        return XP_OK;
    return stream->device->vtable->copy(stream, dst, src, n_bytes);
}

xp_status xp_zero(xp_stream *stream, void *dst, size_t n_bytes) {
    if (n_bytes == 0)
        return XP_OK;
    return stream->device->vtable->zero(stream, dst, n_bytes);
}
