/* silu * gate * prob in plain kernels: a block a row, an element a thread, fp64 inside. What the
 * fused kernels are compared with on the device itself. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int THREADS = 128;

static __device__ bool is_valid(const xp_silu_gate_prob_args &args, int64_t row) {
    return args.n_rows_device == NULL || row < *args.n_rows_device;
}

template <typename T> __global__ void forward(xp_silu_gate_prob_args args) {
    const int64_t row = blockIdx.x;
    if (!is_valid(args, row))
        return;
    const T *a = (const T *)args.a + row * args.ld, *b = (const T *)args.b + row * args.ld;
    T *h = (T *)args.h + row * args.dim;
    const double p = args.p == NULL ? 1.0 : (double)args.p[row];
    for (int64_t f = threadIdx.x; f < args.dim; f += THREADS) {
        const double x = (double)to_float(a[f]);
        h[f] = from_float<T>((float)(x / (1.0 + exp(-x)) * (double)to_float(b[f]) * p));
    }
}

template <typename T> __global__ void backward(xp_silu_gate_prob_backward_args args) {
    __shared__ double partial[THREADS / 32];
    const xp_silu_gate_prob_args &fwd = args.forward;
    const int64_t row = blockIdx.x;
    if (!is_valid(fwd, row))
        return;
    const T *a = (const T *)fwd.a + row * fwd.ld, *b = (const T *)fwd.b + row * fwd.ld;
    const T *dh = (const T *)args.dh + row * fwd.dim;
    const double p = fwd.p == NULL ? 1.0 : (double)fwd.p[row];
    double dp = 0;
    for (int64_t f = threadIdx.x; f < fwd.dim; f += THREADS) {
        const double x = (double)to_float(a[f]), y = (double)to_float(b[f]);
        const double d = (double)to_float(dh[f]), s = 1.0 / (1.0 + exp(-x)), silu = x * s;
        ((T *)args.da + row * args.ldd)[f] =
            from_float<T>((float)(d * y * p * s * (1.0 + x * (1.0 - s))));
        ((T *)args.db + row * args.ldd)[f] = from_float<T>((float)(d * silu * p));
        if (fwd.h != NULL)
            ((T *)fwd.h + row * fwd.dim)[f] = from_float<T>((float)(silu * y * p));
        dp += d * silu * y;
    }
    dp = block_sum(dp, partial);
    if (args.dp != NULL && threadIdx.x == 0)
        args.dp[row] = (float)dp;
}

} // namespace

extern "C" xp_status xp_cuda_silu_gate_prob_plain_forward(xp_stream *stream,
                                                          const xp_silu_gate_prob_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_rows == 0)
        return XP_OK;
    if (args->dtype == XP_F32)
        forward<float><<<(unsigned)args->n_rows, THREADS, 0, s>>>(*args);
    else
        forward<bf16><<<(unsigned)args->n_rows, THREADS, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_plain_forward");
}

extern "C" xp_status
xp_cuda_silu_gate_prob_plain_backward(xp_stream *stream,
                                      const xp_silu_gate_prob_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->forward.n_rows == 0)
        return XP_OK;
    if (args->forward.dtype == XP_F32)
        backward<float><<<(unsigned)args->forward.n_rows, THREADS, 0, s>>>(*args);
    else
        backward<bf16><<<(unsigned)args->forward.n_rows, THREADS, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_plain_backward");
}
