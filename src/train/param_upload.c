#include "train/param_upload.h"

#include <math.h>
#include <string.h>

xp_status xp_param_upload(xp_stream *stream, void *params, xp_dtype dtype, int64_t at,
                          float *values, int64_t n) {
    if (dtype == XP_BF16) {
        uint16_t *out = (uint16_t *)(void *)values;
        for (int64_t i = 0; i < n; i++) {
            uint16_t rounded = xp_bf16_from_f32(values[i]);
            if (!isfinite(xp_bf16_to_f32(rounded)))
                return xp_error(XP_EFORMAT, "holds %g, which bfloat16 cannot: use float32",
                                (double)values[i]);
            memcpy(out + i, &rounded, sizeof rounded);
        }
    }
    const size_t element = xp_dtype_bytes(dtype);
    XP_TRY(xp_copy(stream, (char *)params + (size_t)at * element, values, (size_t)n * element));
    return xp_stream_sync(stream);
}
