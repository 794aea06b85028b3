/** Grouped GEMM over the pool; contracts in ops/op_gemm.h. */
#ifndef XP_OPS_CPU_GROUPED_GEMM_H
#define XP_OPS_CPU_GROUPED_GEMM_H

#include "ops/ops.h"

xp_status xp_cpu_grouped_forward(xp_stream *stream, const xp_grouped_args *args);
xp_status xp_cpu_grouped_dgrad(xp_stream *stream, const xp_grouped_args *args);
xp_status xp_cpu_grouped_wgrad(xp_stream *stream, const xp_grouped_args *args);

#endif
