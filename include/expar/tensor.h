/** Element types and the tensor view: a pointer with a type and a shape. A view owns nothing. */
#ifndef EXPAR_TENSOR_H
#define EXPAR_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum xp_dtype {
    XP_F32 = 0,
    XP_BF16,
    XP_I32,
    XP_I64,
    XP_F64,
    XP_U8,
    XP_U32,
    XP_F16,
    XP_N_DTYPES
} xp_dtype;

#define XP_MAX_DIMS 4

/** Dense, row-major, last dimension contiguous. */
typedef struct xp_tensor {
    void *data;
    xp_dtype dtype;
    int n_dims;
    int64_t shape[XP_MAX_DIMS];
} xp_tensor;

/** Bytes of one element; 0 for a value that is no type. */
XP_API size_t xp_dtype_bytes(xp_dtype dtype);
/** "f32", "bf16", ...; "?" for a value that is no type. */
XP_API const char *xp_dtype_name(xp_dtype dtype);

/** Number of elements (1 for n_dims = 0). */
XP_API int64_t xp_tensor_count(const xp_tensor *tensor);
XP_API xp_tensor xp_tensor_1d(void *data, xp_dtype dtype, int64_t n0);
XP_API xp_tensor xp_tensor_2d(void *data, xp_dtype dtype, int64_t n0, int64_t n1);
XP_API xp_tensor xp_tensor_3d(void *data, xp_dtype dtype, int64_t n0, int64_t n1, int64_t n2);

/** bf16 <-> fp32: round to nearest even, NaN stays NaN (quiet), overflow goes to Inf. */
XP_API uint16_t xp_bf16_from_f32(float value);
XP_API float xp_bf16_to_f32(uint16_t bits);

#ifdef __cplusplus
}
#endif
#endif
