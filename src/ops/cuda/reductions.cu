/* Sums in fp64 in a fixed order. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/sum_squares.cuh"
#include "ops/ops_blocks.h"

namespace {

/* A block owns XP_OPS_SUM_BLOCK neighbouring elements. */
template <typename T, int N>
__global__ void __launch_bounds__(SQUARE_THREADS)
    square_blocks(int64_t n, const T *x, double *out) {
    __shared__ double partial[SQUARE_THREADS / 32];
    const int64_t first = (int64_t)blockIdx.x * XP_OPS_SUM_BLOCK;
    const int64_t rest = n - first < XP_OPS_SUM_BLOCK ? n - first : XP_OPS_SUM_BLOCK;
    const double sum = block_squares<T, N>(x + first, rest, partial);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

/* One block: out = sum of n values (+ out). */
template <typename T>
__global__ void __launch_bounds__(LAST_THREADS)
    add_all(int64_t n, const T *x, double *out, bool acc) {
    __shared__ double partial[LAST_THREADS / 32];
    const double sum = block_total<T>(x, n, partial);
    if (threadIdx.x == 0)
        *out = acc ? *out + sum : sum;
}

/* One thread: some hundred numbers in the order that the host would take. */
__global__ void clip(const xp_clip_scale_args a) {
    double total = 0;
    bool stop = false;
#pragma unroll 16
    for (int64_t i = 0; i < a.n; i++)
        total += a.squares[i];
    for (int i = 0; i < 2; i++)
        stop |= a.stop[i] != nullptr && *(const volatile int32_t *)a.stop[i] != 0;
    const double factor = a.max_norm > 0 ? a.max_norm / (sqrt(total) + 1e-6) : 1;
    *a.scale = stop || !isfinite(total) ? NAN : factor < 1 ? (float)factor : 1.0f;
}

template <typename T, int N>
xp_status launch_squares(const xp_sum_squares_args *args, int64_t n_blocks, cudaStream_t s) {
    square_blocks<T, N>
        <<<(unsigned)n_blocks, SQUARE_THREADS, 0, s>>>(args->n, (const T *)args->x, args->scratch);
    return xp_cuda_check(cudaGetLastError(), "sum_squares");
}

xp_status square_all(const xp_sum_squares_args *args, int64_t n_blocks, cudaStream_t s) {
    const bool wide = xp_is_aligned(args->x);
    if (args->dtype == XP_F32)
        return wide ? launch_squares<float, 4>(args, n_blocks, s)
                    : launch_squares<float, 1>(args, n_blocks, s);
    return wide ? launch_squares<bf16, 8>(args, n_blocks, s)
                : launch_squares<bf16, 1>(args, n_blocks, s);
}

} // namespace

extern "C" xp_status xp_cuda_sum_squares(xp_stream *stream, const xp_sum_squares_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const int64_t n_blocks = xp_ceil_div(args->n, XP_OPS_SUM_BLOCK);
    if (n_blocks > 0)
        XP_TRY(square_all(args, n_blocks, s));
    add_all<double><<<1, LAST_THREADS, 0, s>>>(n_blocks, args->scratch, args->out, args->acc);
    return xp_cuda_check(cudaGetLastError(), "sum_squares");
}

extern "C" xp_status xp_cuda_clip_scale(xp_stream *stream, const xp_clip_scale_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    clip<<<1, 1, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "clip_scale");
}

extern "C" xp_status xp_cuda_sum(xp_stream *stream, const xp_sum_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    add_all<float><<<1, LAST_THREADS, 0, s>>>(args->n, args->x, args->out, false);
    return xp_cuda_check(cudaGetLastError(), "sum");
}
