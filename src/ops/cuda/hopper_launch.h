/** Host side of the Hopper kernels: whether they can serve, and TMA's maps. */
#ifndef XP_OPS_CUDA_HOPPER_LAUNCH_H
#define XP_OPS_CUDA_HOPPER_LAUNCH_H

#include <cuda.h>
#include "ops/cuda/tile_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_HOPPER_MAX_EXPERTS 512 /* whose offsets a block keeps */

/** Whether this build has code for sm_90a. */
bool xp_cuda_hopper_is_built(void);

/** CTAs of a persistent launch: one per SM but for the spare ones, whole clusters, at least one. */
int xp_cuda_hopper_ctas(const xp_cuda_device *device, const xp_tile_args *problem,
                        int cluster_ctas);

/** Data [planes, rows, columns], rows `ld` elements apart, planes without a gap, in boxes of box_rows
 * times 128 bytes: 64 of bf16, 32 of fp32. No size may be 0. */
typedef struct xp_hopper_boxes {
    const void *data;
    int64_t columns, ld, rows, planes;
    int box_rows;
    bool f32;
} xp_hopper_boxes;

/** TMA's view of them: 128-byte swizzle, zeros outside a plane. */
XP_NODISCARD xp_status xp_cuda_hopper_map(const xp_hopper_boxes *boxes, CUtensorMap *map);

#ifdef __cplusplus
}
#endif
#endif
