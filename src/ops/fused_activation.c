/* The public activation: checks of what the op tables leave open, and the choice between fused and
 * plain code. */
#include "expar/fused_activation.h"

#include "device/plugin.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/row_kernels.h"
#include "ops/ops_check.h"
#include "device/scope.h"

const char *xp_activation_path_name(xp_activation_path path) {
    return path == XP_ACTIVATION_FUSED ? "fused" : "reference";
}

xp_activation_path xp_silu_gate_prob_path(const xp_device *device) {
    switch (xp_device_get_kind(device)) {
    case XP_DEVICE_CPU:
        return xp_row_kernels_for(xp_cpu_device_caps(device)) != NULL ? XP_ACTIVATION_FUSED
                                                                      : XP_ACTIVATION_REFERENCE;
    default:
        return XP_ACTIVATION_FUSED;
    }
}

static xp_silu_gate_prob_args forward_args(const xp_silu_gate_prob_call *call) {
    return (xp_silu_gate_prob_args){
        .n_rows = call->n_rows,
        .dim = call->dim,
        .n_rows_device = call->n_rows_device,
        .a = call->x1,
        .b = call->x2,
        .ld = call->ld,
        .p = call->prob,
        .h = call->out,
        .dtype = call->dtype,
    };
}

static xp_silu_gate_prob_backward_args backward_args(const xp_silu_gate_prob_backward_call *call) {
    return (xp_silu_gate_prob_backward_args){
        .forward = forward_args(&call->forward),
        .dh = call->dout,
        .da = call->dx1,
        .db = call->dx2,
        .ldd = call->ld_grad,
        .dp = call->dprob,
    };
}

/* Gradients over their inputs: only in the same places, or a later row would read what an earlier
 * one wrote. */
static xp_status check_in_place(const xp_silu_gate_prob_backward_call *call) {
    const xp_silu_gate_prob_call *forward = &call->forward;
    bool in_place = call->dx1 == forward->x1 || call->dx2 == forward->x2;
    if (in_place && call->ld_grad != forward->ld)
        return xp_error(XP_EINVAL,
                        "silu_gate_prob_backward: gradients in place of x1 or x2 need ld_grad "
                        "(%lld) equal to ld (%lld)",
                        (long long)call->ld_grad, (long long)forward->ld);
    return XP_OK;
}

static xp_status no_fused_code(const xp_device *device) {
    return xp_error(XP_ENOTSUP,
                    "%s: no fused silu*gate*prob here: it needs AVX2, which the processor lacks "
                    "or the device's caps leave out; use xp_silu_gate_prob()",
                    xp_device_name(device));
}

xp_status xp_fused_silu_gate_prob(const xp_silu_gate_prob_call *call, xp_stream *stream) {
    XP_DEVICE_SCOPE(xp_stream_device(stream));
    const xp_device *device = xp_stream_device(stream);
    if (xp_silu_gate_prob_path(device) != XP_ACTIVATION_FUSED)
        return no_fused_code(device);
    const xp_ops *ops;
    XP_TRY(xp_ops_get(device, &ops));
    xp_silu_gate_prob_args args = forward_args(call);
    return ops->silu_gate_prob_forward(stream, &args);
}

xp_status xp_fused_silu_gate_prob_backward(const xp_silu_gate_prob_backward_call *call,
                                           xp_stream *stream) {
    XP_DEVICE_SCOPE(xp_stream_device(stream));
    const xp_device *device = xp_stream_device(stream);
    if (xp_silu_gate_prob_path(device) != XP_ACTIVATION_FUSED)
        return no_fused_code(device);
    XP_TRY(check_in_place(call));
    const xp_ops *ops;
    XP_TRY(xp_ops_get(device, &ops));
    xp_silu_gate_prob_backward_args args = backward_args(call);
    return ops->silu_gate_prob_backward(stream, &args);
}

static xp_status run_reference(xp_stream *stream, void *args) {
    return xp_ops_reference()->silu_gate_prob_forward(stream, args);
}

static xp_status run_reference_backward(xp_stream *stream, void *args) {
    return xp_ops_reference()->silu_gate_prob_backward(stream, args);
}

/* The null device counts memory and runs nothing. */
static xp_status submit_reference(xp_stream *stream, xp_cpu_fn fn, const void *args,
                                  size_t n_bytes) {
    const xp_device *device = xp_stream_device(stream);
    if (xp_device_get_kind(device) == XP_DEVICE_NULL)
        return XP_OK;
    if (xp_device_get_kind(device) != XP_DEVICE_CPU)
        return xp_error(XP_ENOTSUP, "%s: no plain silu*gate*prob here", xp_device_name(device));
    return xp_cpu_submit(stream, fn, args, n_bytes);
}

/* The plain entries of a GPU, which runs its own instead of plain C; NULL on other devices. */
static const xp_ops *gpu_reference(const xp_stream *stream) {
    const xp_cuda_backend *backend;
    if (xp_device_get_kind(xp_stream_device(stream)) != XP_DEVICE_CUDA ||
        xp_cuda_backend_get(&backend) != XP_OK)
        return NULL;
    return backend->plain_activation;
}

xp_status xp_silu_gate_prob_reference(const xp_silu_gate_prob_call *call, xp_stream *stream) {
    XP_DEVICE_SCOPE(xp_stream_device(stream));
    xp_silu_gate_prob_args args = forward_args(call);
    XP_TRY(xp_check_silu_gate_prob_forward(&args));
    const xp_ops *gpu = gpu_reference(stream);
    if (gpu != NULL)
        return gpu->silu_gate_prob_forward(stream, &args);
    return submit_reference(stream, run_reference, &args, sizeof args);
}

xp_status xp_silu_gate_prob_reference_backward(const xp_silu_gate_prob_backward_call *call,
                                               xp_stream *stream) {
    XP_DEVICE_SCOPE(xp_stream_device(stream));
    XP_TRY(check_in_place(call));
    xp_silu_gate_prob_backward_args args = backward_args(call);
    XP_TRY(xp_check_silu_gate_prob_backward(&args));
    const xp_ops *gpu = gpu_reference(stream);
    if (gpu != NULL)
        return gpu->silu_gate_prob_backward(stream, &args);
    return submit_reference(stream, run_reference_backward, &args, sizeof args);
}

xp_status xp_silu_gate_prob(const xp_silu_gate_prob_call *call, xp_stream *stream,
                            xp_activation_path *path) {
    xp_activation_path taken = xp_silu_gate_prob_path(xp_stream_device(stream));
    if (taken == XP_ACTIVATION_FUSED)
        XP_TRY(xp_fused_silu_gate_prob(call, stream));
    else
        XP_TRY(xp_silu_gate_prob_reference(call, stream));
    if (path != NULL)
        *path = taken;
    return XP_OK;
}

xp_status xp_silu_gate_prob_backward(const xp_silu_gate_prob_backward_call *call, xp_stream *stream,
                                     xp_activation_path *path) {
    xp_activation_path taken = xp_silu_gate_prob_path(xp_stream_device(stream));
    if (taken == XP_ACTIVATION_FUSED)
        XP_TRY(xp_fused_silu_gate_prob_backward(call, stream));
    else
        XP_TRY(xp_silu_gate_prob_reference_backward(call, stream));
    if (path != NULL)
        *path = taken;
    return XP_OK;
}
