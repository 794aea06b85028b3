/** Which table of row kernels a stream uses, and rows of either type as fp32. */
#include "device/cpu/cpu_device.h"
#include "ops/cpu/row_kernels.h"

const xp_row_kernels *xp_row_kernels_for(unsigned caps) {
    if (caps & XP_CPU_AVX512)
        return &xp_row_kernels_avx512;
    return caps & XP_CPU_AVX2 ? &xp_row_kernels_avx2 : NULL;
}

const xp_row_kernels *xp_row_kernels_of(const xp_stream *stream) {
    return xp_row_kernels_for(xp_cpu_device_caps(xp_stream_device(stream)));
}

const float *xp_row_read(const xp_row_kernels *kernels, const void *data, xp_dtype dtype,
                         int64_t first, int64_t n, float *block) {
    if (dtype == XP_F32)
        return (const float *)data + first;
    kernels->widen((const uint16_t *)data + first, n, block);
    return block;
}

float *xp_row_target(void *data, xp_dtype dtype, int64_t first, float *block) {
    return dtype == XP_F32 ? (float *)data + first : block;
}

void xp_row_write(const xp_row_kernels *kernels, void *data, xp_dtype dtype, int64_t first,
                  int64_t n, const float *block) {
    if (dtype == XP_BF16)
        kernels->narrow(block, n, (uint16_t *)data + first);
}
