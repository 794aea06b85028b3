/*
 * The caller's NCCL communicator as a transport: bytes go through a small buffer on the GPU, on a
 * stream of their own. The communicator is borrowed: it is never aborted here, also not when a rank
 * does not come.
 */
#include "comm/nccl/guest.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "comm/callbacks/transport.h"
#include "core/file.h"
#include "device/device_internal.h"
#include "device/plugin.h"
#include "device/scope.h"

#define TIMEOUT_S 100.0
#define SLEEP_S   50e-6

typedef struct nccl_guest {
    xp_nccl_guest_args args;
    int rank, size;
    xp_comm *comm; /* whose failure ends a wait; NULL while it is made */
    xp_stream *stream;
    xp_event *done;
    char *out, *in;           /* on the GPU: one part, and [size] parts */
    char *host_out, *host_in; /* page-locked */
    bool pending;             /* a wait has ended too early: the GPU may still use all of it */
} nccl_guest;

/* ---- waiting ------------------------------------------------------------------------------- */

/* @return true: go on waiting */
static bool look_again(nccl_guest *g, double began, const char *what) {
    if (g->comm && xp_comm_async_error(g->comm) != XP_OK)
        return false;
    if (xp_time_s() - began > g->args.timeout_s) {
        xp_error(XP_ECOMM, "%s did not end within %g s: a rank does not come", what,
                 g->args.timeout_s);
        return false;
    }
    nanosleep(&(struct timespec){.tv_nsec = (long)(SLEEP_S * 1e9)}, NULL);
    return true;
}

/* Until NCCL has taken the call: the caller's communicator may be nonblocking. */
static bool settle(nccl_guest *g, xp_nccl_state state) {
    const double began = xp_time_s();
    while (state == XP_NCCL_BUSY) {
        state = g->args.calls->comm_state(g->args.nccl);
        if (state == XP_NCCL_BUSY && !look_again(g, began, "ncclAllGather"))
            return false;
    }
    return state == XP_NCCL_OK;
}

static bool wait_for_gpu(nccl_guest *g) {
    const double began = xp_time_s();
    for (;;) {
        bool passed = false;
        if (xp_event_query(g->done, &passed) != XP_OK)
            return false;
        if (passed)
            return true;
        if (g->args.calls->comm_state(g->args.nccl) == XP_NCCL_FAILED ||
            !look_again(g, began, "an all-gather on the GPU"))
            return false;
    }
}

/* ---- the transport ------------------------------------------------------------------------- */

static bool queue(nccl_guest *g, const void *send, size_t n_bytes) {
    memcpy(g->host_out, send, n_bytes);
    g->pending = true;
    return xp_copy(g->stream, g->out, g->host_out, n_bytes) == XP_OK &&
           settle(g, g->args.calls->all_gather(g->args.nccl, g->out, g->in, n_bytes, g->stream)) &&
           xp_copy(g->stream, g->host_in, g->in, n_bytes * (size_t)g->size) == XP_OK &&
           xp_event_record(g->done, g->stream) == XP_OK && wait_for_gpu(g);
}

static int all_gather(void *context, const void *send, void *recv, size_t n_bytes) {
    nccl_guest *g = context;
    XP_DEVICE_SCOPE(g->args.device);
    for (size_t at = 0; at < n_bytes; at += XP_NCCL_GUEST_BYTES) {
        const size_t n = n_bytes - at < XP_NCCL_GUEST_BYTES ? n_bytes - at : XP_NCCL_GUEST_BYTES;
        if (!queue(g, (const char *)send + at, n))
            return -1;
        g->pending = false;
        for (int r = 0; r < g->size; r++)
            memcpy((char *)recv + (size_t)r * n_bytes + at, g->host_in + (size_t)r * n, n);
    }
    return 0;
}

static void bind(void *context, xp_comm *comm) {
    ((nccl_guest *)context)->comm = comm;
}

static void give_back(const nccl_guest *g, void (*release)(xp_device *, void *), void *data) {
    if (g->pending && data)
        xp_device_leak(g->args.device, data);
    else
        release(g->args.device, data);
}

static void destroy(void *context, bool healthy) {
    nccl_guest *g = context;
    (void)healthy;
    xp_event_destroy(g->done);
    xp_stream_destroy(g->stream);
    give_back(g, xp_host_free, g->host_in);
    give_back(g, xp_host_free, g->host_out);
    give_back(g, xp_device_free, g->in);
    give_back(g, xp_device_free, g->out);
    free(g);
}

static xp_status reserve(nccl_guest *g) {
    static const char tag[] = "communication";
    xp_device *device = g->args.device;
    const size_t all_bytes = XP_NCCL_GUEST_BYTES * (size_t)g->size;
    void *data = NULL;
    XP_TRY(xp_device_alloc(device, XP_NCCL_GUEST_BYTES, tag, &data));
    g->out = data;
    XP_TRY(xp_device_alloc(device, all_bytes, tag, &data));
    g->in = data;
    XP_TRY(xp_host_alloc(device, XP_NCCL_GUEST_BYTES, tag, &data));
    g->host_out = data;
    XP_TRY(xp_host_alloc(device, all_bytes, tag, &data));
    g->host_in = data;
    XP_TRY(xp_stream_create(device, XP_STREAM_COMPUTE, &g->stream));
    return xp_event_create(device, &g->done);
}

static xp_status describe(nccl_guest *g) {
    bool on_device = false;
    if (g->args.calls->comm_describe(g->args.nccl, g->args.device, &g->rank, &g->size,
                                     &on_device) == XP_NCCL_FAILED)
        return XP_ECOMM;
    return on_device ? XP_OK
                     : xp_error(XP_EINVAL, "xp_comm_from_nccl: the NCCL communicator is not of %s",
                                xp_device_name(g->args.device));
}

xp_status xp_nccl_guest_create(const xp_nccl_guest_args *args, xp_comm **comm) {
    nccl_guest *g = calloc(1, sizeof *g);
    if (!g)
        return xp_error(XP_ENOMEM, "no memory for a communicator");
    g->args = *args;
    xp_status status = describe(g);
    if (status == XP_OK)
        status = reserve(g);
    if (status != XP_OK) {
        destroy(g, false);
        return status;
    }
    const xp_callback_args all = {.transport = {.rank = g->rank,
                                                .size = g->size,
                                                .context = g,
                                                .all_gather = all_gather,
                                                .bind = bind,
                                                .destroy = destroy},
                                  .timeout_s = args->timeout_s,
                                  .simulated_nodes = args->simulated_nodes};
    return xp_callback_world_create(&all, comm);
}

xp_status xp_comm_from_nccl(void *nccl_comm, xp_device *device, xp_comm **comm) {
    char why[512] = "";
    const xp_cuda_backend *cuda;
    if (!nccl_comm || !device || !comm)
        return xp_error(XP_EINVAL,
                        "xp_comm_from_nccl: nccl_comm, device and comm must not be NULL");
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA)
        return xp_error(XP_EINVAL, "xp_comm_from_nccl: %s is no GPU", xp_device_name(device));
    XP_TRY(xp_cuda_backend_get(&cuda));
    const xp_nccl_calls *calls = cuda->loaded_nccl(why, sizeof why);
    if (!calls)
        return xp_error(XP_ENOTSUP, "xp_comm_from_nccl: %s", why);
    XP_DEVICE_SCOPE(device);
    return xp_nccl_guest_create(
        &(xp_nccl_guest_args){
            .calls = calls, .nccl = nccl_comm, .device = device, .timeout_s = TIMEOUT_S},
        comm);
}
