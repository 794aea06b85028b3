/** Host side of the Hopper kernels: whether they can serve, and TMA's maps. */
#ifndef XP_OPS_CUDA_HOPPER_LAUNCH_H
#define XP_OPS_CUDA_HOPPER_LAUNCH_H

#include <cuda.h>
#include "ops/cuda/tile_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_HOPPER_MAX_EXPERTS 1024 /* whose offsets a block keeps */

/** Whether this build has code for sm_90a. */
bool xp_cuda_hopper_is_built(void);

/** The stored weights [L, rows, columns] as boxes of box_rows x 64, 128-byte swizzle, zeros outside
 * an expert's matrix. */
XP_NODISCARD xp_status xp_cuda_hopper_weights_map(const xp_tile_args *problem, int box_rows,
                                                  CUtensorMap *map);
/** The rows of wgrad's operand b (or a) as boxes of 64 x 64; zeros right of them and below the last
 * row that there can be. */
XP_NODISCARD xp_status xp_cuda_hopper_rows_map(const xp_tile_args *problem, bool of_b,
                                               CUtensorMap *map);

#ifdef __cplusplus
}
#endif
#endif
