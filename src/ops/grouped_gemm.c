/* The public grouped GEMM: the op tables' entries under public names. */
#include "expar/grouped_gemm.h"

#include "ops/ops.h"
#include "device/scope.h"

static xp_grouped_args arguments(const xp_grouped_gemm_call *call) {
    return (xp_grouped_args){
        .n_experts = call->n_experts,
        .max_rows = call->max_rows,
        .n = call->n,
        .k = call->k,
        .offsets = call->offsets,
        .gather = call->x_gather,
        .x = call->x,
        .w = call->w,
        .dy = call->dy,
        .gather_dy = call->dy_gather,
        .y = call->out,
        .dtype = call->dtype,
        .dw_dtype = call->out_dtype,
        .acc = call->accumulate,
    };
}

static xp_status begin(const char *name, const xp_grouped_gemm_call *call, xp_stream *stream,
                       const xp_ops **ops) {
    if (call == NULL || stream == NULL)
        return xp_error(XP_EINVAL, "%s: call and stream must not be NULL", name);
    return xp_ops_get(xp_stream_device(stream), ops);
}

xp_status xp_grouped_gemm_forward(const xp_grouped_gemm_call *call, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream != NULL ? xp_stream_device(stream) : NULL);
    const xp_ops *ops;
    XP_TRY(begin("xp_grouped_gemm_forward", call, stream, &ops));
    const xp_grouped_args args = arguments(call);
    return ops->grouped_forward(stream, &args);
}

xp_status xp_grouped_gemm_dgrad(const xp_grouped_gemm_call *call, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream != NULL ? xp_stream_device(stream) : NULL);
    const xp_ops *ops;
    XP_TRY(begin("xp_grouped_gemm_dgrad", call, stream, &ops));
    const xp_grouped_args args = arguments(call);
    return ops->grouped_dgrad(stream, &args);
}

xp_status xp_grouped_gemm_wgrad(const xp_grouped_gemm_call *call, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream != NULL ? xp_stream_device(stream) : NULL);
    const xp_ops *ops;
    XP_TRY(begin("xp_grouped_gemm_wgrad", call, stream, &ops));
    const xp_grouped_args args = arguments(call);
    return ops->grouped_wgrad(stream, &args);
}
