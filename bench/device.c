#include "device.h"

#include <stdlib.h>
#include <string.h>
#include "device/device_internal.h"
#include "device/gpu_placement.h"
#include "train/trainer.h"

/* Ranks of its node before this one. */
static int local_rank(const xp_bench_rank *rank) {
    int n = 0;
    for (int r = 0; rank->world && r < rank->rank; r++)
        n += xp_comm_node(rank->world, r) == xp_comm_node(rank->world, rank->rank);
    return n;
}

static xp_status find_placement(const xp_bench_rank *rank, xp_bench_device *d) {
    if (!rank->world)
        return XP_OK;
    xp_rank_gpu mine, *all = calloc((size_t)rank->n_ranks, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", rank->n_ranks);
    memset(&mine, 0, sizeof mine);
    mine.on_gpu = 1;
    mine.index = d->gpu;
    mine.node = xp_comm_node(rank->world, rank->rank);
    xp_status status = d->backend->peer_access->identity(d->device, mine.id);
    if (status == XP_OK)
        status = xp_comm_all_gather(rank->world, &mine, all, sizeof mine, XP_U8, NULL);
    if (status == XP_OK) {
        d->shares_gpu = xp_gpu_placement_of(all, rank->n_ranks, rank->rank).any_shared;
        xp_device_set_gpu_shared(d->device, d->shares_gpu);
    }
    free(all);
    return status;
}

xp_status xp_bench_device_open(const xp_bench_rank *rank, bool cuda, xp_bench_device *d) {
    const int n_threads = xp_train_n_cores() / rank->n_local;
    xp_device_args args = {.kind = cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU,
                           .n_threads = n_threads > 0 ? n_threads : 1};
    *d = (xp_bench_device){.gpu = -1};
    if (cuda) {
        int n_devices = 0;
        XP_TRY(xp_cuda_backend_get(&d->backend));
        XP_TRY(d->backend->device_count(&n_devices));
        d->gpu = args.index = xp_gpu_choose(local_rank(rank), n_devices);
    }
    XP_TRY(xp_device_create(&args, &d->device));
    if (cuda)
        XP_TRY(find_placement(rank, d));
    return xp_stream_create(d->device, XP_STREAM_COMPUTE, &d->stream);
}

void xp_bench_device_close(xp_bench_device *d) {
    xp_stream_destroy(d->stream);
    xp_device_destroy(d->device); /* with all memory of it */
    d->stream = NULL;
    d->device = NULL;
}
