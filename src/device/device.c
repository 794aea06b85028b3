#include "device/device_internal.h"
#include "device/plugin.h"
#include "device/recorder.h"

#include <stdlib.h>
#include <string.h>

typedef struct xp_allocation {
    struct xp_allocation *next;
    void *data;
    size_t n_bytes;
    int tag;
    bool on_host;
} allocation;

/* Index of the tag's account, made when new; -1 when the table is full. Under the lock. */
static int find_tag(xp_memory_account *memory, const char *tag) {
    for (int i = 0; i < memory->n_tags; i++)
        if (strcmp(memory->tags[i].tag, tag) == 0)
            return i;
    if (memory->n_tags == XP_MAX_TAGS)
        return -1;
    memory->tags[memory->n_tags] = (xp_tag_account){.tag = tag};
    return memory->n_tags++;
}

static void account(xp_memory_account *memory, int tag, int64_t n_bytes) {
    memory->tags[tag].n_bytes += n_bytes;
    memory->n_bytes += n_bytes;
    if (memory->n_bytes > memory->peak_bytes)
        memory->peak_bytes = memory->n_bytes;
}

static xp_status provider_alloc(xp_device *device, size_t n_bytes, bool on_host, void **data) {
    if (!on_host)
        return device->vtable->alloc(device, n_bytes, data);
    if (device->vtable->host_alloc != NULL)
        return device->vtable->host_alloc(device, n_bytes, data);
    *data = aligned_alloc(256, n_bytes);
    if (*data == NULL)
        return xp_error(XP_ENOMEM, "out of memory");
    memset(*data, 0, n_bytes);
    return XP_OK;
}

static void provider_free(xp_device *device, void *data, bool on_host) {
    if (!on_host)
        device->vtable->free(device, data);
    else if (device->vtable->host_free != NULL)
        device->vtable->host_free(device, data);
    else
        free(data);
}

static int64_t bytes_of(const xp_memory_account *memory, const char *tag) {
    if (tag == NULL)
        return memory->n_bytes;
    for (int i = 0; i < memory->n_tags; i++)
        if (strcmp(memory->tags[i].tag, tag) == 0)
            return memory->tags[i].n_bytes;
    return 0;
}

static xp_status reserve(xp_device *device, size_t n_bytes, const char *tag, bool on_host,
                         void **data) {
    xp_memory_account *memory = on_host ? &device->host : &device->memory;
    const char *where = on_host ? " of host memory" : "";
    if (n_bytes > (size_t)INT64_MAX / 2)
        return xp_error(XP_EINVAL, "%s: cannot reserve %zu bytes%s for %s", device->name, n_bytes,
                        where, tag);
    size_t rounded = n_bytes == 0 ? 256 : (n_bytes + 255) / 256 * 256;
    allocation *a = malloc(sizeof *a);
    if (a == NULL)
        return xp_error(XP_ENOMEM, "%s: out of memory", device->name);
    void *got = NULL;
    xp_status status = provider_alloc(device, rounded, on_host, &got);
    if (status != XP_OK) {
        free(a);
        return xp_error_context(status,
                                "%s: cannot reserve %.2f GiB%s for %s (%.2f GiB are reserved)",
                                device->name, (double)rounded / (double)(1 << 30), where, tag,
                                (double)bytes_of(memory, NULL) / (double)(1 << 30));
    }
    pthread_mutex_lock(&device->lock);
    int index = find_tag(memory, tag);
    if (index >= 0) {
        *a = (allocation){.next = device->allocations,
                          .data = got,
                          .n_bytes = rounded,
                          .tag = index,
                          .on_host = on_host};
        device->allocations = a;
        device->n_allocs++;
        account(memory, index, (int64_t)rounded);
    }
    pthread_mutex_unlock(&device->lock);
    if (index < 0) {
        provider_free(device, got, on_host);
        free(a);
        return xp_error(XP_EINTERNAL, "%s: more than %d memory tags", device->name, XP_MAX_TAGS);
    }
    *data = got;
    return XP_OK;
}

/* Out of the accounts. @return NULL: not ours */
static allocation *take_out(xp_device *device, void *data) {
    pthread_mutex_lock(&device->lock);
    allocation **at = &device->allocations;
    while (*at != NULL && (*at)->data != data)
        at = &(*at)->next;
    allocation *a = *at;
    if (a != NULL) {
        *at = a->next;
        account(a->on_host ? &device->host : &device->memory, a->tag, -(int64_t)a->n_bytes);
    }
    pthread_mutex_unlock(&device->lock);
    return a;
}

static void release(xp_device *device, void *data) {
    allocation *a = data != NULL ? take_out(device, data) : NULL;
    if (a == NULL)
        return;
    provider_free(device, data, a->on_host);
    free(a);
}

xp_status xp_device_alloc(xp_device *device, size_t n_bytes, const char *tag, void **data) {
    return reserve(device, n_bytes, tag, false, data);
}

void xp_device_free(xp_device *device, void *data) {
    release(device, data);
}

void xp_device_leak(xp_device *device, void *data) {
    free(data != NULL ? take_out(device, data) : NULL);
}

xp_status xp_host_alloc(xp_device *device, size_t n_bytes, const char *tag, void **data) {
    return reserve(device, n_bytes, tag, true, data);
}

void xp_host_free(xp_device *device, void *data) {
    release(device, data);
}

int64_t xp_host_bytes(const xp_device *device, const char *tag) {
    return bytes_of(&device->host, tag);
}

xp_status xp_device_account(xp_device *device, const char *tag, int64_t n_bytes) {
    pthread_mutex_lock(&device->lock);
    int index = find_tag(&device->memory, tag);
    if (index >= 0) {
        device->n_allocs += n_bytes > 0;
        account(&device->memory, index, n_bytes);
    }
    pthread_mutex_unlock(&device->lock);
    return index >= 0
               ? XP_OK
               : xp_error(XP_EINTERNAL, "%s: more than %d memory tags", device->name, XP_MAX_TAGS);
}

bool xp_device_holds_host(xp_device *device, const void *data) {
    bool found = false;
    pthread_mutex_lock(&device->lock);
    for (const allocation *a = device->allocations; a != NULL && !found; a = a->next)
        found = a->on_host && (const char *)data >= (const char *)a->data &&
                (const char *)data < (const char *)a->data + a->n_bytes;
    pthread_mutex_unlock(&device->lock);
    return found;
}

int64_t xp_device_bytes(const xp_device *device, const char *tag) {
    return bytes_of(&device->memory, tag);
}

int64_t xp_device_peak_bytes(const xp_device *device) {
    return device->memory.peak_bytes;
}

int64_t xp_device_n_allocs(const xp_device *device) {
    return device->n_allocs;
}

int64_t xp_device_n_syncs(const xp_device *device) {
    return __atomic_load_n(&device->n_syncs, __ATOMIC_RELAXED);
}

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
    if (args->kind != XP_DEVICE_NULL)
        made->like = args->kind;
    made->hides_memory = made->hides_memory || args->kind != XP_DEVICE_CPU;
    pthread_mutex_init(&made->lock, NULL);
    *device = made;
    return XP_OK;
}

void xp_device_destroy(xp_device *device) {
    if (device == NULL)
        return;
    while (device->allocations != NULL)
        release(device, device->allocations->data);
    pthread_mutex_destroy(&device->lock);
    device->vtable->destroy(device);
}

xp_device_kind xp_device_get_kind(const xp_device *device) {
    return device->kind;
}

xp_device_kind xp_device_like(const xp_device *device) {
    return device->like;
}

bool xp_device_shares_host(const xp_device *device) {
    return !device->hides_memory;
}

const char *xp_device_product(const xp_device *device) {
    return device->product;
}

int64_t xp_device_total_bytes(const xp_device *device) {
    return device->total_bytes;
}

const char *xp_device_name(const xp_device *device) {
    return device->name;
}

const char *xp_device_tag(const xp_device *device, int i) {
    return i >= 0 && i < device->memory.n_tags ? device->memory.tags[i].tag : NULL;
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

void *xp_stream_native(const xp_stream *stream) {
    const xp_device_vtable *vtable = stream->device->vtable;
    return vtable->stream_native != NULL ? vtable->stream_native(stream) : NULL;
}

xp_status xp_stream_sync(xp_stream *stream) {
    __atomic_fetch_add(&stream->device->n_syncs, 1, __ATOMIC_RELAXED);
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

xp_status xp_event_sync(xp_event *event, xp_stream *stream) {
    __atomic_fetch_add(&stream->device->n_syncs, 1, __ATOMIC_RELAXED);
    return event->device->vtable->event_sync(event, stream);
}

xp_status xp_event_query(xp_event *event, bool *passed) {
    return event->device->vtable->event_query(event, passed);
}

xp_status xp_copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    if (n_bytes == 0)
        return XP_OK;
    const int64_t op = xp_recorder_begin_op(stream, "copy");
    return xp_recorder_end_op(stream, op, stream->device->vtable->copy(stream, dst, src, n_bytes));
}

xp_status xp_zero(xp_stream *stream, void *dst, size_t n_bytes) {
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

void xp_device_set_shared(xp_device *device, bool shared) {
    device->shared = shared;
}

bool xp_device_is_shared(const xp_device *device) {
    return device->shared;
}

void xp_device_set_host_synchronized(xp_device *device, bool on) {
    device->host_synchronized = on;
}

bool xp_device_is_host_synchronized(const xp_device *device) {
    return device->host_synchronized;
}

xp_status xp_device_clear(xp_device *device, void *data, size_t n_bytes) {
    return move(device, data, NULL, n_bytes);
}

xp_status xp_device_move(xp_device *device, void *dst, const void *src, size_t n_bytes) {
    return move(device, dst, src, n_bytes);
}
