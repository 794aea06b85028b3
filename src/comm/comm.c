/* The public collectives: checks arguments and puts calls on streams; a provider or, on a GPU, a
 * collective backend does the work. */
#include "expar/comm.h"

#include "comm/device/choose.h"
#include "comm/device/window.h"
#include "comm/provider.h"
#include "comm/reduce.h"
#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"
#include "device/scope.h"
#include "device/plugin.h"
#include "device/recorder.h"

void xp_comm_destroy(xp_comm *comm) {
    XP_DEVICE_SCOPE(comm && comm->backend ? comm->backend->device : NULL);
    if (!comm)
        return;
    xp_comm_backend_destroy(comm->backend);
    comm->backend = NULL;
    comm->provider->destroy(comm);
}

xp_status xp_comm_prepare(xp_comm *comm, xp_device *device, size_t max_bytes) {
    XP_DEVICE_SCOPE(device);
    if (!comm || !device)
        return xp_error(XP_EINVAL, "xp_comm_prepare: comm and device must not be NULL");
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA || comm->size == 1)
        return XP_OK;
    if (comm->backend && comm->backend->device == device)
        return XP_OK;
    if (comm->backend)
        return xp_error(XP_EINVAL,
                        "a communicator works with one GPU: this one was prepared for another "
                        "device than %s; split a second one from it",
                        xp_device_name(device));
    return xp_comm_backend_create(comm, device, max_bytes, &comm->backend);
}

xp_status xp_comm_split(xp_comm *comm, int color, xp_comm **sub) {
    if (!comm || !sub)
        return xp_error(XP_EINVAL, "xp_comm_split: comm and sub must not be NULL");
    return comm->provider->split(comm, color, sub);
}

typedef struct queued_call {
    xp_comm *comm;
    xp_comm_call call;
} queued_call;

static xp_status run_queued(xp_stream *stream, void *args) {
    queued_call *queued = args;
    (void)stream; /* providers work on the calling thread, whichever stream that serves */
    return queued->comm->provider->run(queued->comm, &queued->call);
}

/* One rank: every collective is a copy of its own data, on whatever device the stream is. */
static xp_status run_alone(const xp_comm_call *call, xp_stream *stream) {
    const char *from = call->send;
    char *to = call->recv;
    int64_t n_bytes = call->n * (int64_t)xp_dtype_bytes(call->dtype);
    if (call->kind == XP_COMM_ALL_TO_ALLV) {
        n_bytes = call->v.send_bytes[0];
        if (n_bytes != call->v.recv_bytes[0])
            return xp_error(XP_EINVAL,
                            "all-to-allv: one rank sends itself %lld bytes, expects %lld",
                            (long long)n_bytes, (long long)call->v.recv_bytes[0]);
        from = (const char *)call->v.send + call->v.send_offsets[0];
        to = (char *)call->v.recv + call->v.recv_offsets[0];
    }
    return from == to || n_bytes == 0 ? XP_OK : xp_copy(stream, to, from, (size_t)n_bytes);
}

/* See xp_device_set_host_synchronized(). */
static xp_status run_synchronized(xp_comm *comm, const xp_comm_call *call, xp_stream *stream) {
    const xp_comm_call barrier = {.kind = XP_COMM_BARRIER, .dtype = XP_U8, .phase = call->phase};
    XP_TRY(comm->provider->run(comm, &barrier));
    XP_TRY(comm->backend->ops->run(comm->backend, call, stream));
    XP_TRY(xp_stream_sync(stream));
    return xp_comm_async_error(comm);
}

/* Whatever this rank alone could not do, the others wait for. */
static xp_status run_together(xp_comm *comm, const xp_comm_call *call, xp_stream *stream) {
    XP_TRY(xp_comm_async_error(comm));
    const xp_status status = xp_device_is_host_synchronized(comm->backend->device)
                                 ? run_synchronized(comm, call, stream)
                                 : comm->backend->ops->run(comm->backend, call, stream);
    if (status != XP_OK && status != XP_ECOMM)
        xp_comm_abort(comm, NULL);
    return status;
}

static xp_status run_on_gpu(xp_comm *comm, const xp_comm_call *call, xp_stream *stream) {
    xp_device *device = xp_stream_device(stream);
    if (comm->size > 1 && (!comm->backend || comm->backend->device != device))
        XP_TRY(xp_comm_prepare(comm, device, 0));
    const int64_t op = xp_recorder_begin_op(stream, xp_comm_kind_name(call->kind));
    return xp_recorder_end_op(
        stream, op, comm->size == 1 ? run_alone(call, stream) : run_together(comm, call, stream));
}

static xp_status start(xp_comm *comm, xp_comm_call call, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream ? xp_stream_device(stream) : NULL);
    call.phase = atomic_load(&comm->phase);
    if (!stream)
        return comm->provider->run(comm, &call);
    switch (xp_device_get_kind(xp_stream_device(stream))) {
    case XP_DEVICE_CPU: {
        /* The caller's transport is called on this thread, not on a stream's own. */
        if (comm->calls_back) {
            XP_TRY(xp_stream_sync(stream));
            return comm->provider->run(comm, &call);
        }
        queued_call queued = {.comm = comm, .call = call};
        return xp_cpu_submit_named(stream, xp_comm_kind_name(call.kind), run_queued, &queued,
                                   sizeof queued);
    }
    case XP_DEVICE_NULL:
        return XP_OK; /* the null device only counts bytes */
    default:
        return run_on_gpu(comm, &call, stream);
    }
}

static xp_status check(const xp_comm *comm, xp_comm_kind kind, const void *send, const void *recv,
                       int64_t n) {
    const char *name = xp_comm_kind_name(kind);
    if (!comm)
        return xp_error(XP_EINVAL, "%s: comm is NULL", name);
    if (n < 0)
        return xp_error(XP_EINVAL, "%s: the count is negative (%lld)", name, (long long)n);
    if (n > 0 && (!send || !recv))
        return xp_error(XP_EINVAL, "%s of %lld elements: a buffer is NULL", name, (long long)n);
    return XP_OK;
}

static xp_status check_type(xp_comm_kind kind, xp_dtype dtype, xp_reduce_op op) {
    if (!xp_reduce_has_type(dtype))
        return xp_error(XP_EINVAL,
                        "%s: cannot reduce elements of type %s; use f32, bf16, f64, i32 or i64",
                        xp_comm_kind_name(kind), xp_dtype_name(dtype));
    if ((unsigned)op > XP_MIN)
        return xp_error(XP_EINVAL, "%s: %d is not a reduction", xp_comm_kind_name(kind), (int)op);
    return XP_OK;
}

xp_status xp_comm_all_reduce(xp_comm *comm, const void *send, void *recv, int64_t n, xp_dtype dtype,
                             xp_reduce_op op, xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_ALL_REDUCE, send, recv, n));
    XP_TRY(check_type(XP_COMM_ALL_REDUCE, dtype, op));
    return start(comm,
                 (xp_comm_call){.kind = XP_COMM_ALL_REDUCE,
                                .op = op,
                                .dtype = dtype,
                                .n = n,
                                .send = send,
                                .recv = recv},
                 stream);
}

xp_status xp_comm_reduce_scatter(xp_comm *comm, const void *send, void *recv, int64_t n_each,
                                 xp_dtype dtype, xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_REDUCE_SCATTER, send, recv, n_each));
    XP_TRY(check_type(XP_COMM_REDUCE_SCATTER, dtype, XP_SUM));
    return start(comm,
                 (xp_comm_call){.kind = XP_COMM_REDUCE_SCATTER,
                                .op = XP_SUM,
                                .dtype = dtype,
                                .n = n_each,
                                .send = send,
                                .recv = recv},
                 stream);
}

xp_status xp_comm_all_gather(xp_comm *comm, const void *send, void *recv, int64_t n_each,
                             xp_dtype dtype, xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_ALL_GATHER, send, recv, n_each));
    if (xp_dtype_bytes(dtype) == 0)
        return xp_error(XP_EINVAL, "all-gather: %d is not an element type", (int)dtype);
    return start(
        comm,
        (xp_comm_call){
            .kind = XP_COMM_ALL_GATHER, .dtype = dtype, .n = n_each, .send = send, .recv = recv},
        stream);
}

xp_status xp_comm_all_to_allv(xp_comm *comm, const xp_alltoallv_args *args, xp_stream *stream) {
    if (!comm || !args || !args->send_bytes || !args->send_offsets || !args->recv_bytes ||
        !args->recv_offsets)
        return xp_error(XP_EINVAL,
                        "all-to-allv: comm, args and the four count arrays must not be NULL");
    for (int i = 0; i < comm->size; i++) {
        if (args->send_bytes[i] < 0 || args->recv_bytes[i] < 0)
            return xp_error(XP_EINVAL, "all-to-allv: a byte count for rank %d is negative", i);
        if ((args->send_bytes[i] > 0 && !args->send) || (args->recv_bytes[i] > 0 && !args->recv))
            return xp_error(XP_EINVAL, "all-to-allv: bytes for rank %d but a buffer is NULL", i);
    }
    return start(comm, (xp_comm_call){.kind = XP_COMM_ALL_TO_ALLV, .dtype = XP_U8, .v = *args},
                 stream);
}

xp_status xp_comm_all_to_all(xp_comm *comm, const void *send, void *recv, int64_t n_bytes_each,
                             xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_ALL_TO_ALL, send, recv, n_bytes_each));
    return start(comm,
                 (xp_comm_call){.kind = XP_COMM_ALL_TO_ALL,
                                .dtype = XP_U8,
                                .n = n_bytes_each,
                                .send = send,
                                .recv = recv},
                 stream);
}

xp_status xp_comm_broadcast(xp_comm *comm, void *data, int64_t n_bytes, int root,
                            xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_BROADCAST, data, data, n_bytes));
    if (root < 0 || root >= comm->size)
        return xp_error(XP_EINVAL, "broadcast: root %d is not a rank of a communicator of %d", root,
                        comm->size);
    return start(comm,
                 (xp_comm_call){.kind = XP_COMM_BROADCAST,
                                .dtype = XP_U8,
                                .n = n_bytes,
                                .root = root,
                                .send = data,
                                .recv = data},
                 stream);
}

xp_status xp_comm_barrier(xp_comm *comm, xp_stream *stream) {
    XP_TRY(check(comm, XP_COMM_BARRIER, NULL, NULL, 0));
    return start(comm, (xp_comm_call){.kind = XP_COMM_BARRIER, .dtype = XP_U8}, stream);
}

xp_status xp_comm_window_create(xp_comm *comm, xp_device *device, size_t n_bytes, const char *tag,
                                xp_window **window) {
    XP_DEVICE_SCOPE(device);
    if (!comm || !device || !window || n_bytes == 0)
        return xp_error(
            XP_EINVAL,
            "xp_comm_window_create: comm, device and window must not be NULL, n_bytes not 0");
    if (!comm->one_node)
        return xp_error(XP_ENOTSUP,
                        "windows need all %d ranks on one node, and these are on %d; use the a2a "
                        "or hierarchical "
                        "transport",
                        comm->size, comm->n_nodes);
    const xp_cuda_backend *cuda;
    comm->n_windows++;
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA)
        return comm->provider->window_create(comm, device, n_bytes, tag, window);
    XP_TRY(xp_cuda_backend_get(&cuda));
    return xp_device_window_create(
        &(xp_device_window_args){comm, device, cuda->peer_access, n_bytes, tag}, window);
}

void xp_comm_window_destroy(xp_window *window) {
    if (window && window->destroy)
        window->destroy(window);
    else if (window)
        window->comm->provider->window_destroy(window);
}

void *xp_window_peer(const xp_window *window, int rank) {
    return rank >= 0 && rank < window->size ? window->peers[rank] : NULL;
}
