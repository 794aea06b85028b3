/* Initial values. Compiled without contraction to FMA, so that a draw has the host's bits. */
#include "core/random_math.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"

enum { N_THREADS = 256, BLOCKS_AN_SM = 8 };

static __global__ void __launch_bounds__(N_THREADS) draw_kernel(const xp_draw_args args) {
    const int64_t step = (int64_t)gridDim.x * N_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * N_THREADS + threadIdx.x; i < args.n; i += step)
        args.out[i] = args.std > 0 ? args.std * xp_random_normal(args.seed, args.stream,
                                                                 args.first + (uint64_t)i)
                                   : 1.0F;
}

extern "C" xp_status xp_cuda_draw(xp_stream *stream, const xp_draw_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n == 0)
        return XP_OK;
    const int64_t most = (int64_t)xp_cuda_device_of(stream)->n_sms * BLOCKS_AN_SM;
    draw_kernel<<<(unsigned)xp_min_i64(xp_ceil_div(args->n, N_THREADS), most), N_THREADS, 0, s>>>(
        *args);
    return xp_cuda_check(cudaGetLastError(), "draw");
}
