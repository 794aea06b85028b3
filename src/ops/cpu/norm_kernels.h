/** Vector code of the norm family: rows [first, last) of an op's arguments. Compiled for each
 * instruction set. */
#ifndef XP_OPS_CPU_NORM_KERNELS_H
#define XP_OPS_CPU_NORM_KERNELS_H

#include "ops/ops.h"

typedef struct xp_cpu_norm_kernels {
    void (*rmsnorm_forward)(const xp_rmsnorm_args *args, int64_t first, int64_t last);
    void (*rmsnorm_apply)(const xp_rmsnorm_apply_args *args, int64_t first, int64_t last);
    /** @param[out] dw_part [D] sum of dy * s * rstd over these rows */
    void (*rmsnorm_backward)(const xp_rmsnorm_backward_args *args, int64_t first, int64_t last,
                             float *dw_part);
    void (*qknorm_rope_forward)(const xp_qknorm_rope_args *args, int64_t first, int64_t last);
    /** @param[out] dw_part [2, C] of q's and k's norm over these tokens; NULL without norms */
    void (*qknorm_rope_backward)(const xp_qknorm_rope_backward_args *args, int64_t first,
                                 int64_t last, float *dw_part);
    /** out[0 .. n) of dtype (+)= sum of n_parts rows of parts, in order. */
    void (*sum_parts)(const float *parts, int64_t n_parts, int64_t stride, int64_t n, void *out,
                      xp_dtype dtype, bool acc);
    /** Table row: dtable[id] (+)= sum of dx[tokens[0 .. n)]. */
    void (*embed_row)(const xp_embed_args *args, int64_t id, const int32_t *tokens, int64_t n);
} xp_cpu_norm_kernels;

const xp_cpu_norm_kernels *xp_cpu_norm_kernels_avx2(void);
const xp_cpu_norm_kernels *xp_cpu_norm_kernels_avx512(void);

#endif
