/* Which rank uses which device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/text.h"
#include "comm/provider.h"
#include "device/device_internal.h"
#include "device/gpu_placement.h"
#include "predict/hardware.h"
#include "train/run_state.h"

/* Ranks of its node before this one. */
static int local_rank(const xp_comm *world) {
    int n = 0;
    for (int r = 0; world && r < xp_comm_rank(world); r++)
        n += xp_comm_node(world, r) == xp_comm_node(world, xp_comm_rank(world));
    return n;
}

xp_status xp_trainer_create_device(xp_trainer *t) {
    int64_t threads = t->config->job.threads_per_rank;
    if (threads <= 0)
        threads = xp_train_n_cores() / t->n_local_ranks;
    t->n_threads = threads < 1 ? 1 : (int)threads;
    char faster[256]; /* without determinism a GPU has faster ways for some sums; a CPU has not */
    snprintf(faster, sizeof faster, "deterministic,%s",
             t->config->debug.device_caps ? t->config->debug.device_caps : "");
    xp_device_args args = {.kind = xp_run_device_kind(t->config),
                           .n_threads = t->n_threads,
                           .caps = t->config->debug.device_caps};
    if (args.kind == XP_DEVICE_CUDA) {
        const xp_cuda_backend *cuda;
        int n_devices = 0;
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->device_count(&n_devices));
        args.index = xp_gpu_choose(local_rank(t->world), n_devices);
        if (!t->config->debug.deterministic)
            args.caps = faster;
    }
    XP_TRY(xp_device_create(&args, &t->device));
    xp_hardware hardware;
    if (args.kind == XP_DEVICE_CUDA &&
        xp_hardware_of_model(xp_device_model_name(t->device), &hardware) == XP_OK)
        t->peak_tflops = hardware.limits.tflops;
    return XP_OK;
}

static xp_status introduce(const xp_trainer *t, xp_rank_gpu *mine) {
    const xp_cuda_backend *cuda;
    memset(mine, 0, sizeof *mine);
    mine->on_gpu = xp_device_get_kind(t->device) == XP_DEVICE_CUDA;
    mine->node = xp_comm_node(t->world, t->rank);
    strncpy(mine->name, xp_device_name(t->device), sizeof mine->name - 1);
    if (!mine->on_gpu)
        return XP_OK;
    XP_TRY(xp_cuda_backend_get(&cuda));
    return cuda->peer_access->identity(t->device, mine->id);
}

static xp_status check_kinds(const xp_rank_gpu *ranks, int n_ranks) {
    for (int r = 1; r < n_ranks; r++)
        if (ranks[r].on_gpu != ranks[0].on_gpu)
            return xp_error(XP_ENOTSUP,
                            "rank 0 uses %s and rank %d uses %s: all must use GPUs or none; set "
                            "training.backend = \"cuda\" or \"cpu\" (expar doctor on each node "
                            "tells what is missing)",
                            ranks[0].name, r, ranks[r].name);
    return XP_OK;
}

static void use_placement(xp_trainer *t, const xp_rank_gpu *ranks) {
    const xp_gpu_placement p = xp_gpu_placement_of(ranks, t->n_ranks, t->rank);
    xp_text line = {0};
    t->n_on_device = p.n_on_mine;
    t->n_gpus = p.n_gpus;
    t->shares_gpus = p.any_shared;
    xp_device_set_gpu_shared(t->device, t->shares_gpus);
    /* Until the first step is over. */
    t->first_use_waits = ranks[t->rank].on_gpu && !t->shares_gpus && t->n_ranks > 1 &&
                         xp_comm_same_process(t->world);
    xp_device_set_host_synchronized(t->device, t->first_use_waits);
    xp_gpu_placement_print(ranks, t->n_ranks, xp_comm_n_nodes(t->world) > 1, &line);
    if (line.length > 0 && !line.failed)
        xp_trainer_say(t, "GPUs: %s", line.data);
    xp_text_free(&line);
}

xp_status xp_trainer_announce_devices(xp_trainer *t) {
    t->n_on_device = 1;
    if (!t->world)
        return XP_OK;
    xp_rank_gpu mine, *ranks = calloc((size_t)t->n_ranks, sizeof *ranks);
    if (!ranks)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", t->n_ranks);
    xp_comm_set_phase(t->world, "choosing devices");
    xp_status status = introduce(t, &mine);
    if (status == XP_OK)
        status = xp_comm_all_gather(t->world, &mine, ranks, sizeof mine, XP_U8, NULL);
    if (status == XP_OK)
        status = check_kinds(ranks, t->n_ranks);
    if (status == XP_OK)
        use_placement(t, ranks);
    free(ranks);
    return status;
}
