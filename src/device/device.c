/* What all devices have in common: byte accounts, and the calls that a provider answers. */
#include "device/device_internal.h"
#include "device/scope.h"

#include <stdlib.h>
#include <string.h>

/* Memory that is left to a peer on purpose is no leak for LeakSanitizer. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#define ignore_leak(data) __lsan_ignore_object(data)
#else
#define ignore_leak(data) ((void)(data))
#endif

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

xp_device_scope xp_device_scope_begin(xp_device *device) {
    if (device == NULL || device->vtable->enter == NULL)
        return (xp_device_scope){.before = -1};
    return (xp_device_scope){.leave = device->vtable->leave,
                             .before = device->vtable->enter(device)};
}

void xp_device_scope_end(const xp_device_scope *scope) {
    if (scope->before >= 0)
        scope->leave(scope->before);
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
    XP_DEVICE_SCOPE(device);
    return reserve(device, n_bytes, tag, false, data);
}

void xp_device_free(xp_device *device, void *data) {
    XP_DEVICE_SCOPE(device);
    release(device, data);
}

void xp_device_leak(xp_device *device, void *data) {
    ignore_leak(data);
    free(data != NULL ? take_out(device, data) : NULL);
}

xp_status xp_host_alloc(xp_device *device, size_t n_bytes, const char *tag, void **data) {
    XP_DEVICE_SCOPE(device);
    return reserve(device, n_bytes, tag, true, data);
}

void xp_host_free(xp_device *device, void *data) {
    XP_DEVICE_SCOPE(device);
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

void xp_device_destroy(xp_device *device) {
    XP_DEVICE_SCOPE(device);
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

bool xp_device_host_accessible(const xp_device *device) {
    return !device->hides_memory;
}

const char *xp_device_model_name(const xp_device *device) {
    return device->model_name;
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
    XP_DEVICE_SCOPE(device);
    XP_TRY(device->vtable->stream_create(device, kind, stream));
    (*stream)->device = device;
    (*stream)->kind = kind;
    return XP_OK;
}

xp_status xp_stream_from_native(xp_device *device, void *native, xp_stream **stream) {
    if (device == NULL || stream == NULL)
        return xp_error(XP_EINVAL, "xp_stream_from_native: device and stream must not be NULL");
    if (device->vtable->stream_from_native == NULL)
        return xp_error(XP_ENOTSUP, "%s takes no streams of others", device->name);
    XP_TRY(device->vtable->stream_from_native(device, native, stream));
    (*stream)->device = device;
    (*stream)->kind = XP_STREAM_COMPUTE;
    return XP_OK;
}

void xp_stream_destroy(xp_stream *stream) {
    XP_DEVICE_SCOPE(stream != NULL ? stream->device : NULL);
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
    XP_DEVICE_SCOPE(stream->device);
    __atomic_fetch_add(&stream->device->n_syncs, 1, __ATOMIC_RELAXED);
    return stream->device->vtable->stream_sync(stream);
}

xp_status xp_event_create(xp_device *device, xp_event **event) {
    XP_DEVICE_SCOPE(device);
    XP_TRY(device->vtable->event_create(device, event));
    (*event)->device = device;
    return XP_OK;
}

void xp_event_destroy(xp_event *event) {
    XP_DEVICE_SCOPE(event != NULL ? event->device : NULL);
    if (event != NULL)
        event->device->vtable->event_destroy(event);
}

xp_status xp_event_record(xp_event *event, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream->device);
    return event->device->vtable->event_record(event, stream);
}

xp_status xp_event_wait(xp_event *event, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream->device);
    return event->device->vtable->event_wait(event, stream);
}

xp_status xp_event_sync(xp_event *event, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream->device);
    __atomic_fetch_add(&stream->device->n_syncs, 1, __ATOMIC_RELAXED);
    return event->device->vtable->event_sync(event, stream);
}

xp_status xp_event_query(xp_event *event, bool *passed) {
    return event->device->vtable->event_query(event, passed);
}

void xp_device_set_gpu_shared(xp_device *device, bool shared) {
    device->shared = shared;
}

bool xp_device_is_gpu_shared(const xp_device *device) {
    return device->shared;
}

void xp_device_set_host_synchronized(xp_device *device, bool on) {
    device->host_synchronized = on;
}

bool xp_device_is_host_synchronized(const xp_device *device) {
    return device->host_synchronized;
}
