/* Which attention runs. */
#include "ops/cuda/cuda_ops.h"

xp_status xp_cuda_attention_forward(xp_stream *stream, const xp_attention_args *args) {
    return xp_cuda_attention_plain_forward(stream, args);
}

xp_status xp_cuda_attention_backward(xp_stream *stream, const xp_attention_backward_args *args) {
    return xp_cuda_attention_plain_backward(stream, args);
}

size_t xp_cuda_attention_scratch(const xp_device *device, const xp_attention_args *args,
                                 bool backward) {
    (void)device;
    (void)args;
    (void)backward;
    return 0;
}
