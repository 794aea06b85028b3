#include "comm/device/choose.h"

#include <stdlib.h>
#include <string.h>
#include "comm/device/staged.h"
#include "comm/nccl/backend.h"
#include "comm/nccl/collectives.h"
#include "device/device_internal.h"
#include "device/gpu_placement.h"

static const char phase[] = "preparing collectives of GPUs";

/* What each rank tells the others. */
typedef struct rank_info {
    xp_rank_gpu gpu;
    int32_t has_nccl;
} rank_info;

typedef struct choice {
    xp_comm *comm;
    xp_device *device;
    size_t max_bytes;
    const xp_cuda_backend *cuda;
    rank_info *ranks;  /* [comm->size] */
    xp_rank_gpu *gpus; /* [comm->size] */
} choice;

/* ---- rank threads on one GPU: the provider itself ----------------------------------------- */

static xp_status one_gpu_run(xp_comm_backend *backend, const xp_comm_call *call,
                             xp_stream *stream) {
    return backend->comm->provider->run_on_device(backend->comm, call, stream);
}

static void one_gpu_destroy(xp_comm_backend *backend) {
    free(backend);
}

static const xp_comm_backend_ops one_gpu_ops = {
    .name = "one GPU", .run = one_gpu_run, .destroy = one_gpu_destroy};

static xp_status one_gpu_create(xp_comm *comm, xp_device *device, xp_comm_backend **backend) {
    xp_comm_backend *e = calloc(1, sizeof *e);
    if (!e)
        return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks on %s", comm->size,
                        xp_device_name(device));
    *e = (xp_comm_backend){.ops = &one_gpu_ops, .comm = comm, .device = device};
    *backend = e;
    return XP_OK;
}

/* ---- the choice --------------------------------------------------------------------------- */

/* The same on every rank: all see the same placement. */
static xp_status check_nccl(const xp_comm *comm, const rank_info *ranks, const char *why) {
    for (int i = 0; i < comm->size; i++) {
        if (ranks[i].has_nccl)
            continue;
        if (i == comm->rank)
            return xp_error(XP_ENOTSUP, "%d ranks on several GPUs need NCCL: %s", comm->size, why);
        return xp_error(XP_ENOTSUP,
                        "%d ranks on several GPUs need NCCL, and rank %d has none: install "
                        "libnccl2 (2.28 or newer) on all nodes",
                        comm->size, xp_comm_world_rank(comm, i));
    }
    return XP_OK;
}

static xp_gpu_placement placement_of(const xp_comm *comm, const rank_info *ranks,
                                     xp_rank_gpu *gpus) {
    for (int r = 0; r < comm->size; r++)
        gpus[r] = ranks[r].gpu;
    return xp_gpu_placement_of(gpus, comm->size, comm->rank);
}

static xp_status choose(const choice *c, xp_comm_backend **backend) {
    char why[512] = "";
    xp_comm *comm = c->comm;
    xp_device *device = c->device;
    const xp_nccl_calls *nccl = c->cuda->nccl(why, sizeof why);
    /* Kernels of two NCCL communicators on the same GPUs can wait for each other in a circle. */
    rank_info mine = {.has_nccl = nccl != NULL,
                      .gpu = {.on_gpu = 1, .used_by_others = xp_device_is_gpu_shared(device)}};
    XP_TRY(c->cuda->peer_access->identity(device, mine.gpu.id));
    XP_TRY(xp_comm_gather_bytes(comm, phase, &mine, c->ranks, sizeof mine));
    switch (placement_of(comm, c->ranks, c->gpus).layout) {
    case XP_GPUS_OWN:
        XP_TRY(check_nccl(comm, c->ranks, why));
        return xp_nccl_backend_create(&(xp_nccl_backend_args){.comm = comm,
                                                              .device = device,
                                                              .calls = nccl,
                                                              .max_bytes = c->max_bytes,
                                                              .reduce = c->cuda->reduce},
                                      backend);
    case XP_GPUS_ONE:
        if (comm->same_process && comm->provider->run_on_device)
            return one_gpu_create(comm, device, backend);
        return xp_staged_backend_create(comm, device, c->max_bytes, backend);
    default:
        return xp_staged_backend_create(comm, device, c->max_bytes, backend);
    }
}

xp_status xp_comm_backend_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                 xp_comm_backend **backend) {
    const xp_cuda_backend *cuda;
    XP_TRY(xp_cuda_backend_get(&cuda));
    choice c = {.comm = comm, .device = device, .max_bytes = max_bytes, .cuda = cuda};
    c.ranks = calloc((size_t)comm->size, sizeof *c.ranks);
    c.gpus = calloc((size_t)comm->size, sizeof *c.gpus);
    xp_status status = c.ranks && c.gpus
                           ? choose(&c, backend)
                           : xp_error(XP_ENOMEM, "no memory for %d ranks", comm->size);
    free(c.ranks);
    free(c.gpus);
    /* What only this rank meets: the others wait for it. */
    if (status != XP_OK && status != XP_ENOTSUP)
        xp_comm_abort(comm, NULL);
    return status;
}

size_t xp_comm_device_bytes(int n_ranks, size_t max_bytes) {
    const size_t flag = 256; /* of barriers */
    return (size_t)xp_nccl_scratch_bytes(n_ranks, max_bytes) + flag;
}

void xp_comm_backend_destroy(xp_comm_backend *backend) {
    if (backend)
        backend->ops->destroy(backend);
}
