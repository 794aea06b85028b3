#include "expar/tensor.h"

#include <string.h>

size_t xp_dtype_bytes(xp_dtype dtype) {
    switch (dtype) {
    case XP_F32:
    case XP_I32:
    case XP_U32:
        return 4;
    case XP_BF16:
    case XP_F16:
        return 2;
    case XP_I64:
    case XP_F64:
        return 8;
    case XP_U8:
        return 1;
    case XP_N_DTYPES:
        break;
    }
    return 0;
}

const char *xp_dtype_name(xp_dtype dtype) {
    switch (dtype) {
    case XP_F32:
        return "f32";
    case XP_BF16:
        return "bf16";
    case XP_I32:
        return "i32";
    case XP_I64:
        return "i64";
    case XP_F64:
        return "f64";
    case XP_U8:
        return "u8";
    case XP_U32:
        return "u32";
    case XP_F16:
        return "f16";
    case XP_N_DTYPES:
        break;
    }
    return "?";
}

int64_t xp_tensor_count(const xp_tensor *tensor) {
    int64_t n = 1;
    for (int i = 0; i < tensor->n_dims; i++)
        n *= tensor->shape[i];
    return n;
}

xp_tensor xp_tensor_1d(void *data, xp_dtype dtype, int64_t n0) {
    return (xp_tensor){.data = data, .dtype = dtype, .n_dims = 1, .shape = {n0}};
}

xp_tensor xp_tensor_2d(void *data, xp_dtype dtype, int64_t n0, int64_t n1) {
    return (xp_tensor){.data = data, .dtype = dtype, .n_dims = 2, .shape = {n0, n1}};
}

xp_tensor xp_tensor_3d(void *data, xp_dtype dtype, int64_t n0, int64_t n1, int64_t n2) {
    return (xp_tensor){.data = data, .dtype = dtype, .n_dims = 3, .shape = {n0, n1, n2}};
}

uint16_t xp_bf16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffU) > 0x7f800000U)
        return (uint16_t)((bits >> 16) | 0x0040U);
    bits += 0x7fffU + ((bits >> 16) & 1U);
    return (uint16_t)(bits >> 16);
}

float xp_bf16_to_f32(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
