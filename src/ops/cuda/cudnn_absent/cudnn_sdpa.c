/* Built where cuDNN's headers are not installed. */
#include "ops/cuda/cudnn_sdpa.h"

static const char reason[] = "built without cuDNN's headers";

xp_sdpa_plan *xp_sdpa_plan_get(xp_cuda_device *device, const xp_sdpa_shape *shape,
                               const char **why) {
    (void)device;
    (void)shape;
    *why = reason;
    return NULL;
}

size_t xp_sdpa_plan_scratch(const xp_sdpa_plan *plan) {
    (void)plan;
    return 0;
}

xp_status xp_sdpa_plan_forward(xp_sdpa_plan *plan, cudaStream_t stream,
                               const xp_attention_args *args) {
    (void)plan;
    (void)stream;
    (void)args;
    return xp_error(XP_ENOTSUP, "%s", reason);
}

xp_status xp_sdpa_plan_backward(xp_sdpa_plan *plan, cudaStream_t stream,
                                const xp_attention_backward_args *args) {
    (void)plan;
    (void)stream;
    (void)args;
    return xp_error(XP_ENOTSUP, "%s", reason);
}
