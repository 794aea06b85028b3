#include "ep/kernels.h"

#include "device/cpu/cpu_device.h"
#include "ep/cpu/row_math.h"

const xp_ep_kernels xp_ep_cpu_kernels = {
    .name = "cpu",
    .route = xp_ep_cpu_route,
    .build_send = xp_ep_cpu_build_send,
    .build_recv = xp_ep_cpu_build_recv,
    .copy_rows = xp_ep_cpu_copy_rows,
    .reduce_rows = xp_ep_cpu_reduce_rows,
    .sum_rows = xp_ep_cpu_sum_rows,
    .move = xp_ep_cpu_move,
};

const xp_ep_row_math *xp_ep_row_math_for(unsigned caps) {
#if defined(__x86_64__)
    if (caps & XP_CPU_AVX512)
        return &xp_ep_row_math_avx512;
    if (caps & XP_CPU_AVX2)
        return &xp_ep_row_math_avx2;
#endif
    return &xp_ep_row_math_plain;
}
