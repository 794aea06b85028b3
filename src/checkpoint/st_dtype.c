#include "checkpoint/st_dtype.h"

#include <string.h>
#include "checkpoint/safetensors.h"

static const xp_st_dtype st_dtypes[] = {
    {"F32", 32, XP_F32},
    {"BF16", 16, XP_BF16},
    {"F16", 16, XP_F16},
    {"F64", 64, XP_F64},
    {"I32", 32, XP_I32},
    {"I64", 64, XP_I64},
    {"U8", 8, XP_U8},
    {"U32", 32, XP_U32},
    {"I8", 8, XP_N_DTYPES},
    {"I16", 16, XP_N_DTYPES},
    {"U16", 16, XP_N_DTYPES},
    {"U64", 64, XP_N_DTYPES},
    {"BOOL", 8, XP_N_DTYPES},
    {"C64", 64, XP_N_DTYPES},
    {"F8_E4M3", 8, XP_N_DTYPES},
    {"F8_E5M2", 8, XP_N_DTYPES},
    {"F8_E8M0", 8, XP_N_DTYPES},
    {"F6_E2M3", 6, XP_N_DTYPES},
    {"F6_E3M2", 6, XP_N_DTYPES},
    {"F4", 4, XP_N_DTYPES},
};
#define N_ST_DTYPES (sizeof st_dtypes / sizeof st_dtypes[0])

const xp_st_dtype *xp_st_dtype_find(const char *name) {
    for (size_t i = 0; i < N_ST_DTYPES; i++) {
        if (strcmp(st_dtypes[i].name, name) == 0)
            return &st_dtypes[i];
    }
    return NULL;
}

const xp_st_dtype *xp_st_dtype_of(xp_dtype dtype) {
    for (size_t i = 0; i < N_ST_DTYPES && dtype != XP_N_DTYPES; i++) {
        if (st_dtypes[i].dtype == dtype)
            return &st_dtypes[i];
    }
    return NULL;
}

bool xp_st_shape_sizes(const xp_st_dtype *type, int n_dims, const int64_t *shape,
                       int64_t *n_elements, int64_t *n_bytes) {
    int64_t count = 1, bits;
    for (int i = 0; i < n_dims; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(count, shape[i], &count))
            return false;
    }
    if (__builtin_mul_overflow(count, (int64_t)type->bits, &bits) || bits % 8 != 0)
        return false;
    *n_elements = count;
    *n_bytes = bits / 8;
    return true;
}

bool xp_st_name_is_clean(const char *name) {
    for (const unsigned char *p = (const unsigned char *)name; *p != '\0'; p++) {
        if (*p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f))
            return false;
    }
    return true;
}

static float f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
    float value;
    if (exponent == 0) { /* zero and subnormals: exact as a multiple of 2^-24 */
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | mantissa << 13;
    bits |= exponent == 0x1f ? 0x7f800000u : (exponent + 112) << 23;
    memcpy(&value, &bits, sizeof value);
    return value;
}

xp_status xp_st_read_f32(const xp_st_tensor *tensor, int64_t first, int64_t n, float *out) {
    if (first < 0 || n < 0 || first > tensor->n_elements || n > tensor->n_elements - first)
        return xp_error(XP_EINVAL, "elements [%lld, %lld) asked of tensor '%.200s', which has %lld",
                        (long long)first, (long long)(first + n), tensor->name,
                        (long long)tensor->n_elements);
    if (n == 0)
        return XP_OK;
    /* The file promises no alignment, so every element goes through memcpy; compilers make plain
     * loads of it. */
    const unsigned char *p = tensor->data;
    switch (tensor->dtype) {
    case XP_F32:
        memcpy(out, p + 4 * first, (size_t)n * 4);
        return XP_OK;
    case XP_BF16:
    case XP_F16:
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, p + 2 * (first + i), 2);
            out[i] = tensor->dtype == XP_BF16 ? xp_bf16_to_f32(bits) : f16_to_f32(bits);
        }
        return XP_OK;
    case XP_F64:
        for (int64_t i = 0; i < n; i++) {
            double value;
            memcpy(&value, p + 8 * (first + i), 8);
            out[i] = (float)value;
        }
        return XP_OK;
    default:
        return xp_error(XP_EFORMAT,
                        "tensor '%.200s' has type %s; weights must be F32, BF16, F16 or F64",
                        tensor->name, tensor->dtype_name);
    }
}
