/** Which rank uses which GPU: the choice of a rank's GPU, and what follows for collectives and memory from where all ranks
 * are. Ranks gather an xp_rank_gpu each, over whatever communicator, and ask here. */
#ifndef XP_DEVICE_GPU_PLACEMENT_H
#define XP_DEVICE_GPU_PLACEMENT_H

#include "core/text.h"
#include "device/plugin.h"

/** One rank, in plain bytes for an all-gather. */
typedef struct xp_rank_gpu {
    char id[XP_GPU_ID_BYTES]; /* of the GPU, the same in every process that sees it */
    int32_t on_gpu;           /* 0: the rank uses another kind of device, `id` means nothing */
    int32_t index;            /* of the GPU among those that the rank's process sees */
    int32_t node;
    int32_t used_by_others; /* ranks outside these use the GPU, too (xp_device_set_gpu_shared) */
    char name[32];          /* of the device, for people */
} xp_rank_gpu;

/**
 * The GPU of a rank: its number among the ranks of its node, modulo the GPUs that its process sees. Where a launcher shows
 * each process one GPU of its own, that one.
 * @param n_visible  at least 1
 */
int xp_gpu_choose(int local_rank, int n_visible);

bool xp_same_gpu(const xp_rank_gpu *a, const xp_rank_gpu *b);

typedef enum xp_gpu_layout {
    XP_GPUS_ONE = 0, /* all ranks on one */
    XP_GPUS_OWN,     /* each rank on one of its own, which nobody else uses */
    XP_GPUS_MIXED    /* or not all ranks use GPUs */
} xp_gpu_layout;

typedef struct xp_gpu_placement {
    xp_gpu_layout layout;
    int n_gpus;      /* that these ranks use */
    int n_on_mine;   /* ranks on this rank's GPU, itself included; 1 without a GPU */
    bool any_shared; /* two of these ranks are on one GPU */
} xp_gpu_placement;

/** @param ranks  [n_ranks] */
xp_gpu_placement xp_gpu_placement_of(const xp_rank_gpu *ranks, int n_ranks, int rank);

/** "ranks 0, 2 share cuda:0; ranks 1, 3 share cuda:1", nothing where none share. @param names_nodes add the node */
void xp_gpu_placement_print(const xp_rank_gpu *ranks, int n_ranks, bool names_nodes, xp_text *line);

#endif
