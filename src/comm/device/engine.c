#include "comm/device/engine.h"

#include <stdlib.h>
#include <string.h>
#include "comm/nccl/engine.h"
#include "device/device_internal.h"

static const char phase[] = "preparing collectives of GPUs";

static bool same_gpu(const xp_comm_seat *a, const xp_comm_seat *b) {
    return memcmp(a->gpu, b->gpu, sizeof a->gpu) == 0;
}

xp_comm_seating xp_comm_find_seating(const xp_comm_seat *seats, int n_ranks) {
    bool one = true, own = true;
    for (int i = 0; i < n_ranks; i++) {
        own = own && !seats[i].shared;
        for (int k = 0; k < i; k++) {
            const bool same = same_gpu(&seats[i], &seats[k]);
            one = one && same;
            own = own && !same;
        }
    }
    return one ? XP_SEATS_ONE_GPU : own ? XP_SEATS_OWN_GPUS : XP_SEATS_MIXED;
}

/* ---- rank threads on one GPU: the provider itself ----------------------------------------- */

static xp_status one_gpu_run(xp_comm_engine *engine, const xp_comm_call *call, xp_stream *stream) {
    return engine->comm->provider->run_on_device(engine->comm, call, stream);
}

static void one_gpu_destroy(xp_comm_engine *engine) {
    free(engine);
}

static const xp_comm_engine_ops one_gpu_ops = {
    .name = "one GPU", .run = one_gpu_run, .destroy = one_gpu_destroy};

static xp_status one_gpu_create(xp_comm *comm, xp_device *device, xp_comm_engine **engine) {
    xp_comm_engine *e = calloc(1, sizeof *e);
    if (!e)
        return xp_error(XP_ENOMEM, "no memory for the collectives of %d ranks on %s", comm->size,
                        xp_device_name(device));
    *e = (xp_comm_engine){.ops = &one_gpu_ops, .comm = comm, .device = device};
    *engine = e;
    return XP_OK;
}

/* ---- the choice --------------------------------------------------------------------------- */

/* The same on every rank: all see the same seats. */
static xp_status check_nccl(const xp_comm *comm, const xp_comm_seat *seats, const char *why) {
    for (int i = 0; i < comm->size; i++) {
        if (seats[i].has_nccl)
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

static xp_status choose(xp_comm *comm, xp_device *device, size_t max_bytes,
                        const xp_cuda_backend *cuda, xp_comm_seat *seats, xp_comm_engine **engine) {
    char why[512] = "";
    const xp_nccl_calls *nccl = cuda->nccl(why, sizeof why);
    /* Kernels of two NCCL communicators on the same GPUs can wait for each other in a circle. */
    xp_comm_seat mine = {.has_nccl = nccl != NULL, .shared = xp_device_is_shared(device)};
    XP_TRY(cuda->sharing->identity(device, mine.gpu));
    XP_TRY(xp_comm_share(comm, phase, &mine, seats, sizeof mine));
    switch (xp_comm_find_seating(seats, comm->size)) {
    case XP_SEATS_OWN_GPUS:
        XP_TRY(check_nccl(comm, seats, why));
        return xp_nccl_engine_create(&(xp_nccl_engine_args){.comm = comm,
                                                            .device = device,
                                                            .calls = nccl,
                                                            .max_bytes = max_bytes,
                                                            .reduce = cuda->reduce},
                                     engine);
    case XP_SEATS_ONE_GPU:
        if (comm->shares_addresses && comm->provider->run_on_device)
            return one_gpu_create(comm, device, engine);
        return xp_staged_engine_create(comm, device, max_bytes, engine);
    default:
        return xp_staged_engine_create(comm, device, max_bytes, engine);
    }
}

xp_status xp_comm_engine_create(xp_comm *comm, xp_device *device, size_t max_bytes,
                                xp_comm_engine **engine) {
    const xp_cuda_backend *cuda;
    XP_TRY(xp_cuda_backend_get(&cuda));
    xp_comm_seat *seats = calloc((size_t)comm->size, sizeof *seats);
    xp_status status = seats ? choose(comm, device, max_bytes, cuda, seats, engine)
                             : xp_error(XP_ENOMEM, "no memory for %d ranks", comm->size);
    free(seats);
    /* What only this rank meets: the others wait for it. */
    if (status != XP_OK && status != XP_ENOTSUP)
        xp_comm_abort(comm, NULL);
    return status;
}

size_t xp_comm_device_bytes(int n_ranks, size_t max_bytes) {
    const size_t flag = 256; /* of barriers */
    return (size_t)xp_nccl_scratch_bytes(n_ranks, max_bytes) + flag;
}

void xp_comm_engine_destroy(xp_comm_engine *engine) {
    if (engine)
        engine->ops->destroy(engine);
}
