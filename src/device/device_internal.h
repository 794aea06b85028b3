/** What a device provider fills in; device.c checks arguments and keeps the byte accounts that all
 * providers share. */
#ifndef XP_DEVICE_DEVICE_INTERNAL_H
#define XP_DEVICE_DEVICE_INTERNAL_H

#include <pthread.h>
#include "device/graph.h"
#include "expar/device.h"

/** Memory of a device, by tag. */
#define XP_MAX_TAGS 32
typedef struct xp_tag_account {
    const char *tag;
    int64_t n_bytes;
} xp_tag_account;

typedef struct xp_device_vtable {
    /** Makes the device the calling thread's current one. @return what leave() makes current again;
     * -1: it was this one. Both NULL: threads have no current device. */
    int (*enter)(xp_device *device);
    void (*leave)(int before);
    void (*destroy)(xp_device *device);
    xp_status (*alloc)(xp_device *device, size_t n_bytes, void **data);
    void (*free)(xp_device *device, void *data);
    /** Zeroed. Both NULL: memory of the C library. */
    xp_status (*host_alloc)(xp_device *device, size_t n_bytes, void **data);
    void (*host_free)(xp_device *device, void *data);
    xp_status (*stream_create)(xp_device *device, xp_stream_kind kind, xp_stream **stream);
    /** Over a stream of the device's own API, which stays its owner's. */
    xp_status (*stream_from_native)(xp_device *device, void *native, xp_stream **stream);
    void (*stream_destroy)(xp_stream *stream);
    xp_status (*stream_sync)(xp_stream *stream);
    /** NULL: streams have no handle that the device's own API knows. */
    void *(*stream_native)(const xp_stream *stream);
    xp_status (*event_create)(xp_device *device, xp_event **event);
    void (*event_destroy)(xp_event *event);
    xp_status (*event_record)(xp_event *event, xp_stream *stream);
    xp_status (*event_wait)(xp_event *event, xp_stream *stream);
    xp_status (*event_sync)(xp_event *event, xp_stream *stream);
    xp_status (*event_query)(xp_event *event, bool *passed);
    /** Events that keep when their point was passed, and the seconds from one to another; the
     * device has passed both. Both NULL: ops are timed by who runs them, or not at all. */
    xp_status (*timed_event_create)(xp_device *device, xp_event **event);
    xp_status (*event_elapsed)(xp_event *from, xp_event *to, double *seconds);
    xp_status (*copy)(xp_stream *stream, void *dst, const void *src, size_t n_bytes);
    xp_status (*zero)(xp_stream *stream, void *dst, size_t n_bytes);
    /** See device/graph.h; all NULL: streams cannot be recorded. @param[out] graph zeroed, base filled in by
     * the caller @param[out] any whether anything was recorded. destroy() also after a failed end. */
    xp_status (*graph_begin)(xp_stream *stream, xp_graph **graph);
    xp_status (*graph_end)(xp_stream *stream, xp_graph *graph, bool *any);
    xp_status (*graph_launch)(xp_graph *graph, xp_stream *stream);
    void (*graph_destroy)(xp_graph *graph);
    /** Copy (src NULL: zeros) and wait, beside all streams; NULL: a stream does it. */
    xp_status (*move)(xp_device *device, void *dst, const void *src, size_t n_bytes);
} xp_device_vtable;

/** What is reserved of one kind of memory. */
typedef struct xp_memory_account {
    xp_tag_account tags[XP_MAX_TAGS];
    int n_tags;
    int64_t n_bytes, peak_bytes;
} xp_memory_account;

/** First member of every provider's device. Providers set vtable, name, and where they differ from
 * the CPU like and hides_memory. */
struct xp_device {
    const xp_device_vtable *vtable;
    xp_device_kind kind, like;
    bool hides_memory; /* the opposite of xp_device_host_accessible() */
    char name[32], model_name[128];
    int64_t total_bytes;
    pthread_mutex_t lock; /* accounts: windows may be made from a communication thread */
    xp_memory_account memory, host;
    int64_t n_allocs, n_syncs;
    bool shared, host_synchronized;
    bool without_side_stream;     /* capability "side_stream" left out: passes use one stream */
    struct xp_recorder *recorder; /* that takes ops now, by timed events; NULL: none */
    struct xp_allocation *allocations; /* what free() needs to know, newest first */
};

/** First member of every provider's stream, event and graph. */
struct xp_stream {
    xp_device *device;
    xp_stream_kind kind;
    xp_graph *recording; /* what is queued goes there instead; NULL: nothing is recorded */
};
struct xp_event {
    xp_device *device;
};
struct xp_graph {
    xp_device *device;
};

/** Bytes that another layer reserved for this device by other means (memory shared between
 * processes), or gave back (n_bytes < 0): accounted under `tag` as if they came from
 * xp_device_alloc(). */
XP_NODISCARD xp_status xp_device_account(xp_device *device, const char *tag, int64_t n_bytes);

/** Take memory of xp_device_alloc() out of the accounts without freeing it: another rank may still
 * use it in a world that has failed. It goes with the process. */
void xp_device_leak(xp_device *device, void *data);

/** Ranks of the world share GPUs, this one or others, whichever communicators they are in: kernels
 * that wait for a peer's are then no way to meet. Said once, before communicators are prepared, and
 * the same on every rank. */
void xp_device_set_gpu_shared(xp_device *device, bool shared);
bool xp_device_is_gpu_shared(const xp_device *device);

/**
 * Host-synchronised mode: what waits for other ranks on this device (collectives, dispatch,
 * combine) starts when the hosts of all ranks have come to it, and the host waits until it is done.
 * For the first pass over each shape where ranks are threads that have a GPU each: in one process a
 * library that loads, allocates or connects at its first use may wait for a kernel that waits for a
 * peer, whose host waits for the driver lock of that first use. The same on every rank.
 */
void xp_device_set_host_synchronized(xp_device *device, bool on);
bool xp_device_is_host_synchronized(const xp_device *device);

/** Zero memory and wait for it: while things are made, not in a step. Does nothing on the null
 * device. */
XP_NODISCARD xp_status xp_device_clear(xp_device *device, void *data, size_t n_bytes);
/** Copy and wait, likewise. */
XP_NODISCARD xp_status xp_device_move(xp_device *device, void *dst, const void *src,
                                      size_t n_bytes);

/** Whether the stream has passed the event's last recorded point. Never waits. */
XP_NODISCARD xp_status xp_event_query(xp_event *event, bool *passed);

/** Whether an address lies in what xp_host_alloc() gave out. */
bool xp_device_holds_host(xp_device *device, const void *data);

/** Providers: fill *device with a zeroed-then-set object; device.c initialises the shared part. */
xp_status xp_cpu_device_create(const xp_device_args *args, xp_device **device);
xp_status xp_null_device_create(const xp_device_args *args, xp_device **device);

#endif
