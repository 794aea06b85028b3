/** How sums over many rows are cut, the same on every device so that scratch sizes fit all: partial
 * sums a block, then one sum in block order. */
#ifndef XP_OPS_OPS_BLOCKS_H
#define XP_OPS_OPS_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define XP_OPS_MAX_BLOCKS     64
#define XP_OPS_MIN_BLOCK_ROWS 32
/** Elements behind one partial sum of sum_squares. */
#define XP_OPS_SUM_BLOCK 16384

/** Rows of a block (the last may have fewer), and how many blocks n_rows makes: at most
 * XP_OPS_MAX_BLOCKS. */
int64_t xp_ops_block_rows(int64_t n_rows);
int64_t xp_ops_n_blocks(int64_t n_rows);

/** The same for a GPU, which needs several blocks a processor: at most XP_OPS_GPU_BLOCKS. Scratch
 * is sized for the larger of both. */
#define XP_OPS_GPU_BLOCKS         512
#define XP_OPS_GPU_MIN_BLOCK_ROWS 4
int64_t xp_ops_gpu_block_rows(int64_t n_rows);
int64_t xp_ops_n_gpu_blocks(int64_t n_rows);

/** The scratch of router_linear_backward: dlogits in bf16 parts [T, width], column p * E + e is part
 * p of expert e and those past 3 E are zero; the gate once for each part [width, D] bf16; its
 * gradient by parts [width, D] fp32. */
typedef struct xp_router_parts {
    int64_t width;             /* 3 E rounded up to 8 */
    size_t gate_at, d_gate_at; /* bytes from the start of the scratch */
} xp_router_parts;
xp_router_parts xp_router_parts_of(int64_t n_tokens, int n_experts, int64_t dim);

#ifdef __cplusplus
}
#endif
#endif
