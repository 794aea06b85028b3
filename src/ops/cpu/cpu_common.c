#include "ops/cpu/cpu_ops.h"

float xp_cpu_load(const void *data, xp_dtype dtype, int64_t i) {
    if (dtype == XP_BF16)
        return xp_bf16_to_f32(((const uint16_t *)data)[i]);
    return ((const float *)data)[i];
}

void xp_cpu_store(void *data, xp_dtype dtype, int64_t i, float value) {
    if (dtype == XP_BF16)
        ((uint16_t *)data)[i] = xp_bf16_from_f32(value);
    else
        ((float *)data)[i] = value;
}
