/* Grouped GEMM with the experts' activation in its epilogue (hopper_silu.cuh), or the two ops one after
 * the other, with the same bits. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/tile_gemm.h"

namespace {

constexpr int THREADS = 256;

/* dp of a row: its sums over 256 columns each, in order, as silu_gate_prob_backward adds them. */
__global__ void __launch_bounds__(THREADS)
    sum_parts(const float *parts, int n_parts, int64_t max_rows, const int32_t *n_rows, float *dp) {
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= max_rows || row >= *n_rows)
        return;
    float sum = 0;
    for (int i = 0; i < n_parts; i++)
        sum += parts[i * max_rows + row];
    dp[row] = sum;
}

/* The activation over all assignment rows there are. */
xp_silu_gate_prob_args activation(const xp_grouped_silu_args *args, int64_t width) {
    xp_silu_gate_prob_args silu = {};
    char *gate_up = (char *)args->gate_up;
    silu.n_rows = args->gemm.max_rows;
    silu.dim = width;
    silu.n_rows_device = args->gemm.offsets + args->gemm.n_experts;
    silu.a = gate_up;
    silu.b = gate_up + width * (int64_t)xp_dtype_bytes(args->gemm.dtype);
    silu.ld = 2 * width;
    silu.p = args->p;
    silu.h = args->h;
    silu.dtype = args->gemm.dtype;
    return silu;
}

bool has_epilogue(const xp_cuda_device *device, const xp_tile_args *p) {
    return p->silu.width % 8 == 0 && xp_is_aligned(p->silu.gate_up) && xp_is_aligned(p->silu.h) &&
           xp_cuda_hopper_fits(device, p) && xp_cuda_hopper_is_built();
}

/* The GEMM of both entries, with c as the plain op has it. */
xp_tile_args problem_of(const xp_grouped_silu_args *args, xp_grouped_kind kind) {
    xp_grouped_args gemm = args->gemm;
    const bool forward = kind == XP_GROUPED_FORWARD;
    gemm.y = forward ? args->gate_up : args->h;
    xp_tile_args p = xp_cuda_grouped_problem(&gemm, kind);
    p.silu.width = forward ? gemm.n / 2 : gemm.k;
    p.silu.p = args->p;
    p.silu.gate_up = args->gate_up;
    p.silu.h = args->h;
    return p;
}

} // namespace

extern "C" bool xp_cuda_fuses_silu(const xp_device *device, const xp_silu_sizes *sizes) {
    const xp_cuda_device *cuda = (const xp_cuda_device *)device;
    return cuda->silu_epilogue && cuda->wgmma && xp_cuda_hopper_is_built() &&
           sizes->dtype == XP_BF16 && sizes->dim % 8 == 0 && sizes->width % 8 == 0 &&
           sizes->n_experts <= XP_HOPPER_MAX_EXPERTS;
}

extern "C" xp_status xp_cuda_grouped_silu_forward(xp_stream *stream,
                                                  const xp_grouped_silu_args *args) {
    cudaStream_t s;
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    xp_tile_args p = problem_of(args, XP_GROUPED_FORWARD);
    if (xp_cuda_tile_is_empty(&p) || p.k == 0)
        return XP_OK;
    if (!has_epilogue(device, &p)) {
        xp_grouped_args gemm = args->gemm;
        gemm.y = args->gate_up;
        XP_TRY(xp_cuda_grouped_forward(stream, &gemm));
        const xp_silu_gate_prob_args silu = activation(args, p.silu.width);
        return xp_cuda_silu_gate_prob_forward(stream, &silu);
    }
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(xp_cuda_tile_counter(stream, &p.counter));
    /* A tile has 128 columns of gate and the same of up; the tile scheduler counts n / 256. */
    p.n = 2 * xp_ceil_div(p.silu.width, 128) * 128;
    return xp_cuda_grouped_hopper(device, s, &p);
}

extern "C" xp_status xp_cuda_grouped_silu_backward(xp_stream *stream,
                                                   const xp_grouped_silu_args *args) {
    cudaStream_t s;
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    xp_tile_args p = problem_of(args, XP_GROUPED_DGRAD);
    if (xp_cuda_tile_is_empty(&p) || p.k == 0)
        return XP_OK;
    if (!has_epilogue(device, &p)) {
        xp_grouped_args gemm = args->gemm;
        gemm.y = args->h;
        XP_TRY(xp_cuda_grouped_dgrad(stream, &gemm));
        xp_silu_gate_prob_backward_args silu = {};
        silu.forward = activation(args, p.silu.width);
        silu.dh = args->h;
        silu.da = (void *)silu.forward.a;
        silu.db = (void *)silu.forward.b;
        silu.ldd = silu.forward.ld;
        silu.dp = args->dp;
        return xp_cuda_silu_gate_prob_backward(stream, &silu);
    }
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(xp_cuda_tile_counter(stream, &p.counter));
    const int n_parts = (int)XP_SILU_PARTS(p.silu.width);
    p.silu.dp = n_parts == 1 || args->dp == NULL ? args->dp : args->scratch;
    XP_TRY(xp_cuda_grouped_hopper(device, s, &p));
    if (n_parts == 1 || args->dp == NULL)
        return XP_OK;
    sum_parts<<<(unsigned)xp_ceil_div(p.m, THREADS), THREADS, 0, s>>>(
        args->scratch, n_parts, p.m, p.offsets + p.n_experts, args->dp);
    return xp_cuda_check(cudaGetLastError(), "grouped_silu_backward");
}
