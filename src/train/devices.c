/* Which rank uses which device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/text.h"
#include "device/device_internal.h"
#include "device/plugin.h"
#include "train/run_state.h"

/* What each rank shows the others. */
typedef struct seat {
    int32_t kind, node;
    char gpu[XP_GPU_ID_BYTES];
    char name[32];
} seat;

/* Ranks of a node before this one. Where a launcher shows each process GPUs of its own, there is
 * one, and the number does not matter. */
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
        args.index = local_rank(t->world) % n_devices;
        if (!t->config->debug.deterministic)
            args.caps = faster;
    }
    return xp_device_create(&args, &t->device);
}

static xp_status take_seat(const xp_trainer *t, seat *mine) {
    const xp_cuda_backend *cuda;
    memset(mine, 0, sizeof *mine);
    mine->kind = (int32_t)xp_device_get_kind(t->device);
    mine->node = xp_comm_node(t->world, t->rank);
    strncpy(mine->name, xp_device_name(t->device), sizeof mine->name - 1);
    if (mine->kind != XP_DEVICE_CUDA)
        return XP_OK;
    XP_TRY(xp_cuda_backend_get(&cuda));
    return cuda->sharing->identity(t->device, mine->gpu);
}

static bool same_gpu(const seat *a, const seat *b) {
    return a->kind == XP_DEVICE_CUDA && b->kind == XP_DEVICE_CUDA &&
           memcmp(a->gpu, b->gpu, sizeof a->gpu) == 0;
}

/* "ranks 0, 2 share cuda:0", for the GPU whose first rank this is; nothing when it has no other. */
static void put_sharers(const seat *seats, int n_ranks, int first, bool names_node, xp_text *line) {
    int n = 0;
    for (int r = 0; r < first; r++)
        if (same_gpu(&seats[r], &seats[first]))
            return;
    for (int r = first; r < n_ranks; r++)
        n += same_gpu(&seats[r], &seats[first]);
    if (n < 2)
        return;
    xp_text_printf(line, "%sranks %d", line->length > 0 ? "; " : "", first);
    for (int r = first + 1; r < n_ranks; r++)
        if (same_gpu(&seats[r], &seats[first]))
            xp_text_printf(line, ", %d", r);
    xp_text_printf(line, " share %s", seats[first].name);
    if (names_node)
        xp_text_printf(line, " of node %d", seats[first].node);
}

static xp_status check_kinds(const seat *seats, int n_ranks) {
    for (int r = 1; r < n_ranks; r++)
        if (seats[r].kind != seats[0].kind)
            return xp_error(XP_ENOTSUP,
                            "rank 0 uses %s and rank %d uses %s: all must use GPUs or none; set "
                            "training.backend = \"cuda\" or \"cpu\" (expar doctor on each node "
                            "tells what is missing)",
                            seats[0].name, r, seats[r].name);
    return XP_OK;
}

xp_status xp_trainer_announce_devices(xp_trainer *t) {
    t->n_on_device = 1;
    if (!t->world)
        return XP_OK;
    seat mine, *seats = calloc((size_t)t->n_ranks, sizeof *seats);
    if (!seats)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", t->n_ranks);
    xp_comm_set_phase(t->world, "choosing devices");
    xp_status status = take_seat(t, &mine);
    if (status == XP_OK)
        status = xp_comm_all_gather(t->world, &mine, seats, sizeof mine, XP_U8, NULL);
    if (status == XP_OK)
        status = check_kinds(seats, t->n_ranks);
    xp_text line = {0};
    for (int r = 0; r < t->n_ranks && status == XP_OK; r++)
        t->n_on_device += r != t->rank && same_gpu(&seats[r], &seats[t->rank]);
    for (int r = 0; r < t->n_ranks && status == XP_OK && seats[r].kind == XP_DEVICE_CUDA; r++) {
        bool has_own = true;
        for (int q = 0; q < r; q++)
            has_own &= !same_gpu(&seats[r], &seats[q]);
        t->n_gpus += has_own;
        t->shares_gpus |= !has_own;
    }
    for (int r = 0; r < t->n_ranks && status == XP_OK; r++)
        put_sharers(seats, t->n_ranks, r, xp_comm_n_nodes(t->world) > 1, &line);
    xp_device_set_shared(t->device, t->shares_gpus);
    if (line.length > 0 && !line.failed)
        xp_trainer_say(t, "GPUs: %s", line.data);
    xp_text_free(&line);
    free(seats);
    return status;
}
