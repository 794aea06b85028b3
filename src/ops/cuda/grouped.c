/* Grouped GEMM: the entries, which choose a kernel. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/tile_gemm.h"

static xp_status grouped(xp_stream *stream, const xp_grouped_args *args, xp_grouped_kind kind) {
    cudaStream_t s;
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    xp_tile_args p = xp_cuda_grouped_problem(args, kind);
    if (xp_cuda_tile_is_empty(&p))
        return XP_OK;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (p.ab_f32)
        return xp_cuda_tile_run(s, &p);
    if (!xp_cuda_hopper_fits(device, &p) || !xp_cuda_hopper_is_built())
        return xp_cuda_grouped_mma(s, &p);
    XP_TRY(xp_cuda_tile_counter(stream, &p.counter));
    return xp_cuda_grouped_hopper(device, s, &p);
}

xp_status xp_cuda_grouped_forward(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_FORWARD);
}

xp_status xp_cuda_grouped_dgrad(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_DGRAD);
}

xp_status xp_cuda_grouped_wgrad(xp_stream *stream, const xp_grouped_args *args) {
    return grouped(stream, args, XP_GROUPED_WGRAD);
}
