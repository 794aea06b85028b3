/** What a GPU reaches at a large GEMM and a plain copy. */
#ifndef XP_BENCH_GPU_LIMITS_H
#define XP_BENCH_GPU_LIMITS_H

#include "predict/hardware.h"

/**
 * Measure hardware->measured but for the link, as `expar bench ops` does: bf16 8192^3 and 1 GiB, device time, medians.
 * Needs 3.3 GiB of the first GPU.
 * @return XP_OK; after an error hardware is as before
 */
XP_NODISCARD xp_status xp_bench_gpu_limits(xp_hardware *hardware);

#endif
